"""Neuroglancer precomputed volumes, on disk or at a URL.

Conventions
-----------
* See `base`. The format's (x, y, z, channel) become (z, y, x); `level` chooses a scale, and `channel` a
  channel.
* The voxel size is the scale's resolution, which is in nanometers.
* On disk, cloud-volume writes compressed chunks, with the suffix ``.gz``, ``.br`` or ``.zstd``. The chunks of
  a part are then decompressed and decoded in memory.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.absent import boxes_of
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Box, Shape, Source, named
from emdiffuse.readers.sizes import Size, told
from emdiffuse.readers.stores import (
    StoredArray,
    answer,
    open_array,
    reached,
    read_json,
)
from emdiffuse.runtime.errors import DataError

AXES = "czyx"
PACKED = (".gz", ".br", ".zstd")


def open_precomputed(name: str, place: str, reading: Reading) -> Source:
    """Open a precomputed volume.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    place : str
        Folder or URL that contains ``info``.
    reading : Reading
        Which part to read.

    Raises
    ------
    DataError
        If it is missing or not an image, chunks are missing, or the server does not respond.
    """
    info = read_json(name, place, "info")
    try:
        scales = (info or {})["scales"]
        resolutions = [[float(v) for v in scale["resolution"]] for scale in scales]
        first = scales[0]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(
            f"{name}: there is no precomputed volume ('info' with a scale); check the path, "
            "or prefix it with zarr:// or n5://"
        ) from None
    if reading.level >= len(scales):
        raise DataError(f"{name}: `level` is {reading.level}, but there are {len(scales)}, counted from 0")
    scale = first if reading.level == 0 else scales[reading.level]
    size = told(resolutions[reading.level][::-1], (1.0, 1.0, 1.0))
    lengths = (int((info or {}).get("num_channels", 1)), *(int(n) for n in scale["size"][::-1]))
    layout = lay_out(name, lengths, AXES, reading)
    if "://" not in place and _packed(Path(place) / str(scale.get("key", ""))):
        return PackedChunks(name, Path(place), info or {}, scale, layout, size, reading)
    store = open_array(name, "neuroglancer_precomputed", place, reading, scale_index=reading.level)
    assert store is not None
    array = store[ts.d[:].transpose[::-1]][ts.d[:].translate_to[0]][ts.d[:].label[("",) * 4]]
    absent: list[Box] | None = None
    if "://" not in place:  # tensorstore does not list folders of this format
        chunks = Chunks(Path(place), scale, layout.shape)
        absent = [] if "sharding" in scale else [box for box in chunks.boxes() if chunks.file(box) is None]
    return StoredArray(name, place, array, layout, size, info, absent)


def _packed(folder: Path) -> bool:
    """Return whether a scale has chunks with the suffix of a compressed file."""
    return folder.is_dir() and any(file.suffix in PACKED for file in folder.iterdir())


def _unpacked(file: Path) -> bytes:
    """Return the decompressed content of a chunk file."""
    content = file.read_bytes()
    if file.suffix == ".gz":
        return gzip.decompress(content)
    if file.suffix in PACKED:
        import imagecodecs

        unpack = imagecodecs.brotli_decode if file.suffix == ".br" else imagecodecs.zstd_decode
        return bytes(unpack(content))
    return content


class Chunks:
    """The files of an unsharded scale, one per chunk, named by its position.

    Parameters
    ----------
    place : Path
        Folder of ``info``.
    scale : mapping
        Entry of the scale in ``info``.
    shape : tuple of int
        Shape (z, y, x).
    """

    def __init__(self, place: Path, scale: dict[str, Any], shape: Shape) -> None:
        z, y, x = (int(n) for n in scale["chunk_sizes"][0][::-1])
        self.steps: Shape = (z, y, x)
        self._corner = [int(n) for n in scale.get("voxel_offset", (0, 0, 0))[::-1]]
        self._folder = place / str(scale["key"])
        self._shape = shape

    def boxes(self, sides: Sequence[slice] | None = None) -> Iterator[Box]:
        """Yield the boxes of all chunks, or of those that overlap a part."""
        for box in boxes_of(self._shape, self.steps):
            if sides is None or all(
                a.start < b.stop and b.start < a.stop for a, b in zip(box, sides, strict=True)
            ):
                yield box

    def key(self, box: Box) -> str:
        """Return the name of a chunk."""
        ends = [(side.start + c, side.stop + c) for side, c in zip(box, self._corner, strict=True)]
        return "_".join(f"{a}-{b}" for a, b in ends[::-1])

    def file(self, box: Box) -> Path | None:
        """Return the file of a chunk, or None if missing."""
        names = (f"{self.key(box)}{packed}" for packed in ("", *PACKED))
        return next((file for name in names if (file := self._folder / name).is_file()), None)


class PackedChunks(Source):
    """A scale with compressed chunk files.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    place : Path
        Folder of ``info``.
    info, scale : mapping
        Content of ``info``, and its entry of the scale.
    layout : Layout
        Position of the stack in the array.
    voxel_size : tuple of float or None
        Voxel size (z, y, x) in nanometers.
    reading : Reading
        Whether chunks may be missing.
    """

    def __init__(
        self,
        name: str,
        place: Path,
        info: dict[str, Any],
        scale: dict[str, Any],
        layout: Layout,
        voxel_size: Size | None,
        reading: Reading,
    ) -> None:
        self._chunks = Chunks(place, scale, layout.shape)
        self._info = {**info, "scales": [{**scale, "key": "scale"}]}
        self._fill = reading.missing_chunks == "fill"
        self._layout = layout
        dtype = np.dtype(str(info["data_type"]))
        super().__init__(name, layout.shape, dtype, self._chunks.steps, [place], voxel_size)
        self.metadata = json.dumps(info, sort_keys=True).encode()
        boxes = list(self._chunks.boxes())
        self.absent = tuple(box for box in boxes if self._chunks.file(box) is None)
        self.chunks = len(boxes)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        _, height, width = self._layout.shape
        sides = [slice(z0, z1), *(slice(*s.indices(n)[:2]) for s, n in ((y, height), (x, width)))]
        context = ts.Context()  # a separate memory store, freed with this part
        with reached(self.name):
            memory = answer(ts.KvStore.open("memory://", context=context))
            answer(memory.write("info", json.dumps(self._info).encode()))
            for box in self._chunks.boxes(sides):
                file = self._chunks.file(box)
                if file is not None:
                    with named(str(file), "chunk"):
                        content = _unpacked(file)
                    answer(memory.write(f"scale/{self._chunks.key(box)}", content))
            spec = {"driver": "neuroglancer_precomputed", "kvstore": "memory://", "scale_index": 0}
            options = {"fill_missing_data_reads": self._fill}
            store = answer(ts.open({**spec, **options}, open=True, read=True, context=context))
            array = store[ts.d[:].transpose[::-1]][ts.d[:].translate_to[0]]
            values: NDArray[Any] = answer(array[self._layout.region(z0, z1, *sides[1:])].read(), once=False)
        return self._layout.arranged(self.where(z0), values)
