"""Coarser levels of an image, each averaged from the previous one.

Conventions
-----------
* See `volume`: the pixel at index i of level n averages the voxels from i to i + 1 of the level below.
* An unfinished level of the same image is completed: a shard is done if it and the voxels that it averages
  can be read.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emdiffuse.runtime.errors import StoreError
from emdiffuse.stores.array import CHUNK, Array, Box, create_image_array
from emdiffuse.stores.intensity import cast_to

SMALLEST_LEVEL = 64
"""The last level is the first whose lateral sides are at most this, in pixels."""


def build_pyramid(image: Path, voxel_size: Sequence[float], own: str = "") -> list[tuple[int, int, int]]:
    """Add the levels 1, 2, ... beside level ``0`` of an image: averages of 2 x 2 x 2 voxels.

    An axis is halved while its voxel is at most twice the smallest, so that anisotropic volumes
    become isotropic first; axes of one voxel are ignored. Memory is that of one shard, which is filled
    by rows of chunks.

    Parameters
    ----------
    image : Path
        Group that contains array ``0``.
    voxel_size : sequence of float
        Voxel size (z, y, x) of level 0.
    own : str
        Hash of the image: levels with this hash are only completed.

    Returns
    -------
    list of tuple of int
        Number of level-0 voxels that a pixel averages along (z, y, x), by level, from level 0.
    """
    scales: list[tuple[int, int, int]] = [(1, 1, 1)]
    source = Array(image / "0")
    while max(source.shape[1:]) > SMALLEST_LEVEL:
        sizes = [v * s for v, s in zip(voxel_size, scales[-1], strict=True)]
        smallest = min(size for n, size in zip(source.shape, sizes, strict=True) if n > 1)
        step = tuple(
            2 if n > 1 and size < 2 * smallest else 1 for n, size in zip(source.shape, sizes, strict=True)
        )
        shape = [ceil(n / s) for n, s in zip(source.shape, step, strict=True)]
        target = _level(image / str(len(scales)), shape, source.dtype, own)
        for index in np.ndindex(*target.grid):
            box = target.box(index)
            if target.intact(index):
                _require_readable(source, box, step)
            else:
                target[box] = _average_box(source, box, step)
        scales.append(tuple(s * t for s, t in zip(scales[-1], step, strict=True)))  # type: ignore[arg-type]
        source = target
    return scales


def _level(path: Path, shape: Sequence[int], dtype: DTypeLike, own: str) -> Array:
    """Open an unfinished level of the same image, or create one."""
    with contextlib.suppress(StoreError):
        level = Array(path)
        if own and level.attributes.get("hash") == own:
            return level
    return create_image_array(path, shape, dtype, {"hash": own} if own else None)


def _require_readable(source: Array, box: Box, step: tuple[int, ...]) -> None:
    """Read the source of a finished box, which may have been damaged since and is not checked elsewhere."""
    for _, fine in _rows(source, box, step):
        source[fine]


def _average_box(source: Array, box: Box, step: tuple[int, ...]) -> NDArray[Any]:
    """Return a box (z, y, x) of the level above a source, row of chunks by row of chunks."""
    values = np.empty([side.stop - side.start for side in box], source.dtype)
    for row, fine in _rows(source, box, step):
        values[row] = _average(source[fine], step)
    return values


def _rows(source: Array, box: Box, step: tuple[int, ...]) -> Iterator[tuple[Box, Box]]:
    """Yield the rows of chunks of a box (z, y, x), relative to its corner, and the box that each averages."""
    depth, height, width = (side.stop - side.start for side in box)
    for corner in itertools.product(range(0, depth, CHUNK[0]), range(0, height, CHUNK[1])):
        row = (*(slice(at, at + c) for at, c in zip(corner, CHUNK[:2], strict=True)), slice(0, width))
        fine = tuple(
            slice((side.start + part.start) * s, min((side.start + part.stop) * s, n))
            for side, part, s, n in zip(box, row, step, source.shape, strict=True)
        )
        yield row, fine


def _average(values: NDArray[Any], step: tuple[int, ...]) -> NDArray[Any]:
    """Average boxes of `step` voxels; at odd ends the last voxel is repeated."""
    padding = [(0, -n % s) for n, s in zip(values.shape, step, strict=True)]
    padded: NDArray[Any] = np.pad(values, padding, mode="edge").astype(np.float32)
    for axis, s in enumerate(step):
        if s == 2:
            even = tuple(slice(0, None, 2) if i == axis else slice(None) for i in range(3))
            odd = tuple(slice(1, None, 2) if i == axis else slice(None) for i in range(3))
            padded = padded[even] / 2 + padded[odd] / 2  # the sum of two spikes may be infinite
    return cast_to(padded, values.dtype)
