"""Sharded Zarr arrays: reading and writing of pixels.

Conventions
-----------
* zarr-python creates stores and metadata; pixels are read and written through tensorstore, which writes each
  chunk or shard to a temporary file and renames it. Only one process may own a shard.
* Every chunk carries a crc32c checksum.
* Every chunk of a finished store is written, even if all zeros: a missing chunk is lost, and reading it is an
  error (`DamagedError`), never zeros.
* A chunk is damaged only if all its bytes were read and cannot be decoded. Any other failure to read it
  (`AccessError`) proves nothing, and nothing is deleted.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import DTypeLike, NDArray

from emdiffuse.runtime.disks import read_plain, trouble
from emdiffuse.runtime.errors import AccessError, DamagedError, StoreError
from emdiffuse.runtime.outputs import emptied
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.damage import MISSING, damage_of, first_line, of_the_call, os_error, require_mappings

CHUNK = (32, 64, 64)
SHARD = (64, 512, 512)

EVERY_CHUNK = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
"""tensorstore options: write chunks of zeros, and do not read missing chunks as zeros."""

LARGEST_CHUNK = 2**32
"""Maximum bytes of a chunk (or shard), which is in memory as a whole while written."""

Box = tuple[slice, ...]
_CONTEXT = ts.Context({"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 4}})


class Array:
    """An array on disk, read and written through tensorstore.

    Attributes
    ----------
    path : Path
        Path of the array.
    shape, chunk, dtype
        As for a numpy array; `chunk` is the unit of writing: the shard, if there are shards.
    attributes : dict
        Attributes of the array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = read_metadata(path, "array")
        try:
            kvstore = {"driver": "file", "path": str(path.absolute())}
            spec = {"driver": "zarr3", "kvstore": kvstore, **EVERY_CHUNK}
            self._store = ts.open(spec, open=True, context=_CONTEXT).result()
        except UnicodeEncodeError:
            raise StoreError(f"{path}: the name is not valid UTF-8; rename the folder") from None
        except ValueError as error:
            if os_error(error):
                raise AccessError(trouble(path, "read", os_error(error))) from None
            raise StoreError(
                f"{path}: this array cannot be opened ({first_line(error)}); recreate it"
            ) from None
        self.attributes: dict[str, Any] = metadata.get("attributes", {})
        self.shape: tuple[int, ...] = tuple(self._store.shape)
        self.dtype: np.dtype[Any] = self._store.dtype.numpy_dtype
        written = self._store.chunk_layout.write_chunk.shape or ()
        self.chunk: tuple[int, ...] = tuple(int(n or 0) for n in written)
        if 0 in self.shape or not 0 < prod(self.chunk) * self.dtype.itemsize <= LARGEST_CHUNK:
            raise StoreError(
                f"{path}: emdiffuse does not write arrays of this size or with such chunks; recreate it"
            )

    def __getitem__(self, box: Box) -> NDArray[Any]:
        try:
            return self._store[box].read().result()
        except ValueError as error:
            raise self._why(box, error) from None

    def _why(self, box: Box, error: ValueError) -> Exception:
        """Return the error of a box that could not be read: a proven loss, or else a machine failure."""
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
        """Return what is wrong with a chunk (or shard): missing or damaged; None if it can be decoded.

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
        """Return the box of the chunk (or shard) at a grid position, cropped to the array."""
        return tuple(
            slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, self.chunk, self.shape, strict=True)
        )

    def boxes(self) -> Iterator[Box]:
        """Yield the boxes of all chunks (or shards), in the order of the grid."""
        for index in np.ndindex(*self.grid):
            yield self.box(index)

    def exists(self, index: Sequence[int]) -> bool:
        """Return whether the chunk (or shard) at a grid position was written."""
        return self.chunk_path(index).exists()

    def intact(self, index: Sequence[int]) -> bool:
        """Return whether the chunk (or shard) at a grid position was written, and is not damaged.

        A damaged one is removed, to be recomputed, because parts of it could not be rewritten.

        Raises
        ------
        AccessError
            If it cannot be read for another reason; it is left unchanged.
        """
        if not self.exists(index):
            return False
        try:
            self[self.box(index)]
        except DamagedError as error:
            logger.warning("%s; recomputing it", error)
            self.chunk_path(index).unlink(missing_ok=True)
            return False
        return True

    def require_whole(self) -> None:
        """Refuse an array with a missing chunk (or shard).

        Raises
        ------
        DamagedError
            If so; names the first.
        """
        for index in np.ndindex(*self.grid):
            if not self.exists(index):
                raise DamagedError(self.path, self.chunk_path(index), MISSING, store_of(self.path))

    def written(self) -> dict[tuple[int, ...], float]:
        """Return the grid positions of written chunks (or shards), and their times (epoch seconds)."""
        root, found = self.path / "c", {}
        for path in _files(root):
            if path.name.isdigit():
                found[tuple(map(int, path.relative_to(root).parts))] = path.stat().st_mtime
        return found

    def tidy(self) -> None:
        """Remove the temporary files of killed writers; no writer may be active."""
        for path in _files(self.path / "c"):
            if not path.name.isdigit():
                path.unlink()

    def chunk_path(self, index: Sequence[int]) -> Path:
        """Return the file of the chunk (or shard) at a grid position."""
        return self.path.joinpath("c", *(str(i) for i in index))


def store_of(path: Path) -> Path:
    """Return the store of an array: the outermost group around it, or the array itself."""
    while (path.parent / "zarr.json").exists():
        path = path.parent
    return path


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder lazily, since there may be many."""
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
    """Create an array, replacing an earlier one made by emdiffuse, if any.

    Parameters
    ----------
    path : Path
        Path of the array.
    shape, dtype
        As for a numpy array.
    chunk, shard : sequence of int
        Unit of reading; unit of writing (a multiple of `chunk`), None for plain chunks.
    axes : sequence of str
        Names of the axes.
    attributes : dict
        Attributes.

    Notes
    -----
    A chunk or shard that was never written cannot be read. Chunks of zeros are written too, because a chunk
    that exists is a chunk that is done.
    """
    import zarr  # here, as stages that only read start 0.1 s sooner without it
    from zarr.codecs import BloscCodec, Crc32cCodec

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
    """Return the shard shape of an array: whole chunks, no larger than the array needs."""
    return tuple(min(s, ceil(n / c) * c) for n, c, s in zip(shape, chunk, shard, strict=True))


def create_image_array(
    path: Path, shape: Sequence[int], dtype: DTypeLike, attributes: dict[str, Any] | None = None
) -> Array:
    """Create one level (z, y, x) of an OME-Zarr image, sharded, with the standard chunks."""
    return create_array(
        path, shape, dtype, chunk=CHUNK, shard=shard_shape(shape), axes=("z", "y", "x"), attributes=attributes
    )


def write_plane(path: Path, image: NDArray[Any]) -> None:
    """Write one image (y, x) as a level with one slice, shard by shard."""
    array = create_image_array(path, (1, *image.shape), image.dtype)
    for box in array.boxes():
        array[box] = image[None][box]


def read_metadata(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a node's ``zarr.json``.

    Raises
    ------
    StoreError
        If it is missing, or not of that kind ("array" or "group").
    """
    try:
        metadata: dict[str, Any] = json.loads(read_plain(path / "zarr.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path}: there is no finished Zarr {kind}; run the stage that creates it") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, AccessError):
            raise
        raise StoreError(
            f"{path}/zarr.json: not readable as JSON; delete the store and recreate it"
        ) from None
    if not isinstance(metadata, dict) or metadata.get("node_type") != kind:
        raise StoreError(f"{path}: not a Zarr {kind}")
    require_mappings(metadata, path)
    return metadata
