"""Zarr stores: OME-Zarr 0.5 images, and plain sharded arrays.

Conventions
-----------
* Axes are (z, y, x); voxel sizes are (z, y, x) in nanometers, kept in the OME metadata as the scale of each
  level.
* The pixel at index i covers [i, i + 1) voxels; OME's coordinates are those of pixel centres, so that level
  n, whose pixel averages 2**n, is translated by (2**n - 1) / 2 voxels along each axis that was reduced.
* zarr-python creates stores and metadata; pixels are read and written through tensorstore, which writes each
  chunk or shard to a temporary file and renames it. Only one process may own a shard.
* Every chunk carries a crc32c checksum. What the project knows of a store is in its attributes, under
  ``emdiffuse``.
* A group's ``zarr.json`` is written last: a store without it was not finished, and nothing opens it.
* Every chunk of a finished store was written, also one of zeros: one that is missing is lost, and reading it
  is an error (`DamagedError`), never zeros.
* A chunk is called damaged only when all its bytes were read and cannot be decoded. Whatever else keeps it
  from being read (`AccessError`) says nothing about it, and leaves every byte.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf, prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorstore as ts
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.disks import read_plain, trouble
from emdiffuse.runtime.errors import AccessError, DamagedError, StoreError
from emdiffuse.runtime.outputs import emptied
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.damage import MISSING, damage_of, first_line, of_the_call, os_error, require_mappings
from emdiffuse.stores.facts import Facts, RestoredFacts, VolumeFacts, parse_volume_facts, require_made
from emdiffuse.stores.intensity import Intensity
from emdiffuse.stores.provenance import Link, write_and_keep

CHUNK = (32, 64, 64)
SHARD = (64, 512, 512)

EVERY_CHUNK = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
"""Of tensorstore: chunks of zeros are written, and those that are missing are no zeros."""

LARGEST_CHUNK = 2**32
"""Bytes of a chunk (or shard), which is held whole while it is written."""

Box = tuple[slice, ...]
_CONTEXT = ts.Context({"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 4}})


class Array:
    """An array on disk, whose pixels are read and written through tensorstore.

    Attributes
    ----------
    path : Path
        Where it is.
    shape, chunk, dtype
        As of a numpy array; `chunk` is the unit of writing: the shard, where there are shards.
    attributes : dict
        Its attributes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = read_metadata(path, "array")
        try:
            kvstore = {"driver": "file", "path": str(path.absolute())}
            spec = {"driver": "zarr3", "kvstore": kvstore, **EVERY_CHUNK}
            self._store = ts.open(spec, open=True, context=_CONTEXT).result()
        except UnicodeEncodeError:
            raise StoreError(f"{path}: this name is no valid text (UTF-8); rename the folder") from None
        except ValueError as error:
            if os_error(error):
                raise AccessError(trouble(path, "read", os_error(error))) from None
            raise StoreError(
                f"{path}: this array cannot be opened ({first_line(error)}); make it anew"
            ) from None
        self.attributes: dict[str, Any] = metadata.get("attributes", {})
        self.shape: tuple[int, ...] = tuple(self._store.shape)
        self.dtype: np.dtype[Any] = self._store.dtype.numpy_dtype
        written = self._store.chunk_layout.write_chunk.shape or ()
        self.chunk: tuple[int, ...] = tuple(int(n or 0) for n in written)
        if 0 in self.shape or not 0 < prod(self.chunk) * self.dtype.itemsize <= LARGEST_CHUNK:
            raise StoreError(
                f"{path}: no array of this program's has this size, or such chunks; make it anew"
            )

    def __getitem__(self, box: Box) -> NDArray[Any]:
        try:
            return self._store[box].read().result()
        except ValueError as error:
            raise self._why(box, error) from None

    def _why(self, box: Box, error: ValueError) -> Exception:
        """Return why a box could not be read: what is proven to be lost, else a trouble of the machine."""
        if of_the_call(error):
            return error
        starts = (range(n)[side].start // c for n, side, c in zip(self.shape, box, self.chunk, strict=False))
        ends = (range(n)[side].stop for n, side in zip(self.shape, box, strict=False))
        ranges = (range(a, ceil(e / c)) for a, e, c in zip(starts, ends, self.chunk, strict=False))
        for index in itertools.product(*ranges, *map(range, self.grid[len(box) :])):
            if what := self.loss(index):
                return DamagedError(self.path, self.chunk_path(index), what, store_of(self.path))
        return AccessError(trouble(self.path, "read", os_error(error), first_line(error)))

    def __setitem__(self, box: Box, values: NDArray[Any]) -> None:
        try:
            self._store[box].write(values).result()
        except ValueError as error:
            if of_the_call(error):
                raise
            raise AccessError(trouble(self.path, "written", os_error(error), first_line(error))) from None

    def loss(self, index: Sequence[int]) -> str | None:
        """Return what is wrong with a chunk (or shard): missing, or damaged; None where it can be decoded.

        Raises
        ------
        AccessError
            If it cannot be read, or there is no memory for it.
        """
        path = self.chunk_path(index)
        if not path.exists():
            return MISSING
        return damage_of(path, self.path / "zarr.json", self.chunk, self.dtype)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks (or shards) along each axis."""
        return tuple(ceil(n / c) for n, c in zip(self.shape, self.chunk, strict=True))

    def box(self, index: Sequence[int]) -> Box:
        """Return the box of the chunk (or shard) at a position of the grid, cut at the array's end."""
        return tuple(
            slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, self.chunk, self.shape, strict=True)
        )

    def exists(self, index: Sequence[int]) -> bool:
        """Tell whether the chunk (or shard) at a position of the grid was written."""
        return self.chunk_path(index).exists()

    def intact(self, index: Sequence[int]) -> bool:
        """Tell whether the chunk (or shard) at a position of the grid was written, and is not damaged.

        One that is damaged is removed, to be recomputed: a part of it could not be written either.

        Raises
        ------
        AccessError
            If it cannot be read for another reason; it is left as it is.
        """
        if not self.exists(index):
            return False
        try:
            self[self.box(index)]
        except DamagedError as error:
            logger.warning("%s; it is recomputed", error)
            self.chunk_path(index).unlink(missing_ok=True)
            return False
        return True

    def require_whole(self) -> None:
        """Refuse an array of which a chunk (or shard) is missing.

        Raises
        ------
        DamagedError
            If one is; names the first.
        """
        for index in np.ndindex(*self.grid):
            if not self.exists(index):
                raise DamagedError(self.path, self.chunk_path(index), MISSING, store_of(self.path))

    def written(self) -> dict[tuple[int, ...], float]:
        """Return the positions of the chunks (or shards) that were written, and when (epoch seconds)."""
        root, found = self.path / "c", {}
        for path in _files(root):
            if path.name.isdigit():
                found[tuple(map(int, path.relative_to(root).parts))] = path.stat().st_mtime
        return found

    def tidy(self) -> None:
        """Remove the temporary files of writers that were killed; nobody may be writing."""
        for path in _files(self.path / "c"):
            if not path.name.isdigit():
                path.unlink()

    def chunk_path(self, index: Sequence[int]) -> Path:
        """Return the file of the chunk (or shard) at a position of the grid."""
        return self.path.joinpath("c", *(str(i) for i in index))


def store_of(path: Path) -> Path:
    """Return the store that an array belongs to: the outermost group around it, or the array itself."""
    while (path.parent / "zarr.json").exists():
        path = path.parent
    return path


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, one at a time: there may be many."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def create_array(
    path: Path,
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    chunk: Sequence[int],
    shard: Sequence[int] | None = None,
    axes: Sequence[str] | None = None,
    attributes: dict[str, Any] | None = None,
) -> Array:
    """Create an array in the place of one that this program made there before, if any.

    Parameters
    ----------
    path : Path
        Where to create it.
    shape, dtype
        As of a numpy array.
    chunk, shard : sequence of int
        Unit of reading; unit of writing (a multiple of `chunk`), None for plain chunks.
    axes : sequence of str
        Names of the axes.
    attributes : dict
        Attributes.

    Notes
    -----
    A chunk or shard that was never written cannot be read. One that is all zeros is written all the same,
    since its existence says that it is done.
    """
    if path.exists():
        emptied(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    zarr.create_array(
        store=str(path),
        shape=tuple(shape),
        chunks=tuple(chunk),
        shards=None if shard is None else tuple(shard),
        dtype=np.dtype(dtype),
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
        fill_value=0,
        dimension_names=axes,
        attributes=attributes,
        zarr_format=3,
    )
    return Array(path)


def shard_shape(
    shape: Sequence[int], chunk: Sequence[int] = CHUNK, shard: Sequence[int] = SHARD
) -> tuple[int, ...]:
    """Return the shard for an array: no larger than needed to hold it, always whole chunks."""
    return tuple(min(s, ceil(n / c) * c) for n, c, s in zip(shape, chunk, shard, strict=True))


def create_image_array(
    path: Path, shape: Sequence[int], dtype: DTypeLike, attributes: dict[str, Any] | None = None
) -> Array:
    """Create one level (z, y, x) of an OME-Zarr image: sharded, with the project's chunks."""
    return create_array(
        path, shape, dtype, chunk=CHUNK, shard=shard_shape(shape), axes=("z", "y", "x"), attributes=attributes
    )


def read_metadata(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a node's ``zarr.json``.

    Raises
    ------
    StoreError
        If there is none, or it is not of that kind ("array" or "group").
    """
    try:
        metadata: dict[str, Any] = json.loads(read_plain(path / "zarr.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{path}: there is no finished Zarr {kind} here; run the stage that makes it"
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, AccessError):
            raise
        raise StoreError(
            f"{path}/zarr.json: not readable as JSON; delete the store and make it anew"
        ) from None
    if not isinstance(metadata, dict) or metadata.get("node_type") != kind:
        raise StoreError(f"{path}: this is not a Zarr {kind}")
    require_mappings(metadata, path)
    return metadata


def known_of(path: Path) -> dict[str, Any]:
    """Return what a finished group says of itself, as JSON; nothing, of somebody else's."""
    attributes = read_metadata(path, "group").get("attributes")
    known = attributes.get("emdiffuse") if isinstance(attributes, dict) else None
    return known if isinstance(known, dict) else {}


def kind_of(path: Path) -> str:
    """Return what a store holds: "volume", "images" or "pairs"."""
    return str(known_of(path).get("kind", "volume"))


def write_group(path: Path, attributes: dict[str, Any]) -> None:
    """Write a group's ``zarr.json``, atomically: the last thing that the maker of a store does.

    Where the group says what it was made of, a copy is kept, by which it is known when it is asked for again.
    """
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    if "made" in attributes.get("emdiffuse", {}):
        write_and_keep(path / "zarr.json", metadata)
    else:
        write_atomically(path / "zarr.json", json.dumps(metadata, indent=2))


def multiscale(
    name: str, voxel_size: Sequence[float], paths: Sequence[str], scales: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Return the OME-Zarr 0.5 metadata of one multiscale image.

    Parameters
    ----------
    name : str
        Name of the image.
    voxel_size : sequence of float
        Voxel size (z, y, x) of level 0, in nanometers.
    paths : sequence of str
        Path of each level, from the group.
    scales : sequence of sequence of int
        How many voxels of level 0 a pixel of each level averages along (z, y, x).
    """
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [float(v * s) for v, s in zip(voxel_size, scale, strict=True)],
                    },
                    {
                        "type": "translation",
                        "translation": [
                            float(v * (s - 1) / 2) for v, s in zip(voxel_size, scale, strict=True)
                        ],
                    },
                ],
            }
            for path, scale in zip(paths, scales, strict=True)
        ],
    }


@dataclass(frozen=True)
class Volume:
    """A finished OME-Zarr image, opened.

    Attributes
    ----------
    path : Path
        The group.
    array : Array
        Level 0, (z, y, x).
    voxel_size : tuple of float
        Voxel size (z, y, x) in nanometers.
    facts : VolumeFacts
        What it says of itself: `RestoredFacts`, of a restored one.
    """

    path: Path
    array: Array
    voxel_size: tuple[float, float, float]
    facts: VolumeFacts

    @property
    def intensity(self) -> Intensity:
        """How its slices are scaled."""
        if self.facts.intensity is None:
            raise StoreError(f"{self.path}: its range of intensities is not known; acquire it again")
        return self.facts.intensity

    @property
    def restoration(self) -> RestoredFacts:
        """What is known of how it was restored: nothing, where this program did not do it."""
        return self.facts if isinstance(self.facts, RestoredFacts) else RestoredFacts()

    @property
    def made(self) -> Link:
        """How it was made."""
        return require_made(self.facts, self.path)

    @property
    def valid(self) -> tuple[slice, slice]:
        """Rows and columns that are image, and no data bar of a microscope."""
        _, height, width = self.array.shape
        top, bottom, left, right = self.facts.valid or (0, height, 0, width)
        return slice(top, bottom), slice(left, right)


def open_volume(path: Path) -> Volume:
    """Open an OME-Zarr 0.5 image of three axes (z, y, x).

    Raises
    ------
    StoreError
        If it is missing, unfinished, or not such an image.
    """
    attributes = read_metadata(path, "group").get("attributes", {})
    try:
        image = attributes["ome"]["multiscales"][0]
        axes = [str(axis["name"]) for axis in image["axes"]]
        level = image["datasets"][0]
        z, y, x = (float(side) for side in level["coordinateTransformations"][0]["scale"])
        place = PurePosixPath(level["path"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{path}: this Zarr group is not an OME-Zarr 0.5 image") from None
    if axes != ["z", "y", "x"]:
        raise StoreError(f"{path}: the axes must be z, y, x, but are {', '.join(axes)}")
    if not all(0 < side < inf for side in (z, y, x)):
        raise StoreError(f"{path}: its voxel size ({z:g}, {y:g}, {x:g}) is none; make the store anew")
    if place.is_absolute() or ".." in place.parts:
        raise StoreError(f"{path}: its level '{place}' lies outside of the store; make the store anew")
    array = Array(path / place)
    if len(array.shape) != 3:
        raise StoreError(f"{array.path}: three axes (z, y, x) are expected, not {len(array.shape)}")
    return Volume(path, array, (z, y, x), parse_volume_facts(attributes.get("emdiffuse"), path))


def write_image(path: Path, name: str, voxel_size: Sequence[float], facts: Facts) -> None:
    """Finish an image of one level, stored as array ``0``: write its group's metadata."""
    image = multiscale(name, voxel_size, ["0"], [(1, 1, 1)])
    write_group(path, {"ome": {"version": "0.5", "multiscales": [image]}, "emdiffuse": facts.as_json()})
