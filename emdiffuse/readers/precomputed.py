"""Neuroglancer precomputed volumes, on disk or at an address.

Conventions
-----------
* See `base`. The format's (x, y, z, channel) become (z, y, x); `level` chooses a scale, and `channel` a
  channel.
* The voxel size is the scale's resolution, which is in nanometers.
* cloud-volume writes chunks to a disk gzipped, with ``.gz`` behind their names. The chunks of a part are then
  unpacked into memory, and decoded there.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Source, named
from emdiffuse.readers.sizes import Size, told
from emdiffuse.readers.stores import SHOWN, StoredArray, answer, open_array, reached, read_json
from emdiffuse.runtime.errors import DataError

AXES = "czyx"


def open_precomputed(name: str, place: str, reading: Reading) -> Source:
    """Open a precomputed volume.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : str
        Folder or address that holds ``info``.
    reading : Reading
        Which part is meant.

    Raises
    ------
    DataError
        If there is none, it is not an image, chunks are missing, or the address does not answer.
    """
    info = read_json(name, place, "info")
    try:
        scales = (info or {})["scales"]
        resolutions = [[float(v) for v in scale["resolution"]] for scale in scales]
        first = scales[0]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(
            f"{name}: there is no precomputed volume ('info' with a scale) here; check the path, "
            "or say zarr:// or n5:// before it"
        ) from None
    if reading.level >= len(scales):
        raise DataError(f"{name}: `level` is {reading.level}, but there are {len(scales)}, counted from 0")
    scale = first if reading.level == 0 else scales[reading.level]
    size = told(resolutions[reading.level][::-1], (1.0, 1.0, 1.0))
    lengths = (int((info or {}).get("num_channels", 1)), *(int(n) for n in scale["size"][::-1]))
    layout = lay_out(name, lengths, AXES, reading)
    if "://" not in place and _packed(Path(place) / str(scale.get("key", ""))):
        return PackedChunks(name, Path(place), info or {}, scale, layout, size, reading)
    store = open_array(name, "neuroglancer_precomputed", place, scale_index=reading.level)
    assert store is not None
    array = store[ts.d[:].transpose[::-1]][ts.d[:].translate_to[0]][ts.d[:].label[("",) * 4]]
    return StoredArray(name, place, array, layout, size, info, reading)


def _packed(folder: Path) -> bool:
    """Tell whether a scale has chunks with ``.gz`` behind their names."""
    return folder.is_dir() and any(file.suffix == ".gz" for file in folder.iterdir())


class PackedChunks(Source):
    """A scale whose chunks, or some of them, are gzipped files.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : Path
        The folder of ``info``.
    info, scale : mapping
        What that says, and of this scale.
    layout : Layout
        Where the stack lies in it.
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
        self._chunk = [int(n) for n in scale["chunk_sizes"][0][::-1]]
        self._corner = [int(n) for n in scale.get("voxel_offset", (0, 0, 0))[::-1]]
        self._folder = place / str(scale["key"])
        self._info = {**info, "scales": [{**scale, "key": "scale"}]}
        self._layout = layout
        z, y, x = self._chunk
        dtype = np.dtype(str(info["data_type"]))
        super().__init__(name, layout.shape, dtype, (z, y, x), [place], voxel_size)
        self.metadata = json.dumps(info, sort_keys=True).encode()
        boxes = list(self._boxes([slice(0, n) for n in self.shape]))
        absent = [box for box in boxes if self._file(box) is None]
        if absent and reading.missing_chunks != "fill":
            names = ", ".join(self._key(box) for box in absent[:SHOWN])
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            raise DataError(
                f"{name}: {len(absent)} of {len(boxes)} chunks are missing ({names}{more}); copy the "
                "store again, or "
                "say `missing_chunks: fill` if they stand for zeros"
            )
        self.absent = tuple((box[0], box[1], box[2]) for box in absent)

    def _boxes(self, sides: Sequence[slice]) -> Any:
        """Yield the boxes (z, y, x) of the chunks that a part touches."""
        ranges = [
            range(side.start // step * step, side.stop, step)
            for side, step in zip(sides, self._chunk, strict=True)
        ]
        for corner in product(*ranges):
            yield [
                slice(a, min(a + step, n))
                for a, step, n in zip(corner, self._chunk, self._layout.shape, strict=True)
            ]

    def _key(self, box: Sequence[slice]) -> str:
        ends = [(side.start + c, side.stop + c) for side, c in zip(box, self._corner, strict=True)]
        return "_".join(f"{a}-{b}" for a, b in ends[::-1])

    def _file(self, box: Sequence[slice]) -> Path | None:
        key = self._key(box)
        return next((f for f in (self._folder / key, self._folder / f"{key}.gz") if f.is_file()), None)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        _, height, width = self._layout.shape
        sides = [slice(z0, z1), *(slice(*s.indices(n)[:2]) for s, n in ((y, height), (x, width)))]
        context = ts.Context()  # a memory of its own, gone with this part
        with reached(self.name):
            memory = answer(ts.KvStore.open("memory://", context=context))
            answer(memory.write("info", json.dumps(self._info).encode()))
            for box in self._boxes(sides):
                file = self._file(box)
                if file is not None:
                    with named(str(file), "chunk"):
                        packed = file.read_bytes()
                        content = gzip.decompress(packed) if file.suffix == ".gz" else packed
                    answer(memory.write(f"scale/{self._key(box)}", content))
            spec = {"driver": "neuroglancer_precomputed", "kvstore": "memory://", "scale_index": 0}
            store = answer(ts.open(spec, open=True, read=True, context=context))
            array = store[ts.d[:].transpose[::-1]][ts.d[:].translate_to[0]]
            values: NDArray[Any] = answer(array[self._layout.region(z0, z1, *sides[1:])].read(), once=False)
        return self._layout.arranged(self.where(z0), values)
