"""Blocks, tiles and windows: pure arithmetic on global voxel positions.

Conventions
-----------
* Axes are (z, y, x) of the restored volume (see `slice_grid`); boxes are half open.
* The tile grid is global: it depends only on the volume and the tile size, not on blocks or workers. Along
  z a tile is one gap; along y and x tiles overlap, and their windows add up to one everywhere::

      tile i      |h h|------------------|~~~~|h h|
      tile i + 1                     |h h|~~~~|------------------|h h|
                                          seam            h: halo, discarded

* A block is a box of tiles. Its *support* is the box in which the windows of its tiles are not zero, so
  neighbouring blocks overlap only by a seam. Each tile belongs to one block, each block to one worker.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid
from emdiffuse.runtime.rounding import ceil_to

TILE_MULTIPLE = 16
"""Tiles start at multiples of this, so that strided layers sample every tile on the same grid."""


@dataclass(frozen=True)
class TileAxis:
    """Tiles along y or x.

    Parameters
    ----------
    length : int
        Length of the volume in voxels.
    size : int
        Length of a tile, a multiple of `TILE_MULTIPLE`; a shorter volume has one shorter tile.
    halo, blend : int
        Discarded margin, and width of the seam, in voxels; blend is even and at least 8, and ``2 * halo + 3 *
        blend`` is at most `size`, so that seams never cross.
    """

    length: int
    size: int
    halo: int
    blend: int

    @property
    def tile(self) -> int:
        """Length of every tile; extends past the end of the volume by less than `TILE_MULTIPLE`."""
        return min(self.size, ceil_to(self.length, TILE_MULTIPLE))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First voxel of every tile: evenly spaced, no further apart than halo and seam allow."""
        last = ceil_to(max(self.length - self.tile, 0), TILE_MULTIPLE)
        stride = (self.size - 2 * self.halo - self.blend) // TILE_MULTIPLE * TILE_MULTIPLE
        steps = max(-(-last // stride), 1)
        return (0, *(last // TILE_MULTIPLE * i // steps * TILE_MULTIPLE for i in range(1, steps + 1) if last))

    @cached_property
    def seams(self) -> tuple[int, ...]:
        """Centre of the seam after every tile but the last."""
        return tuple((a + self.tile + b) // 2 for a, b in itertools.pairwise(self.starts))

    def support(self, first: int, last: int) -> tuple[int, int]:
        """Return begin and end of the voxels where the windows of tiles first to last - 1 are not zero."""
        begin = 0 if first == 0 else self.seams[first - 1] - self.blend // 2
        end = self.length if last == len(self.starts) else self.seams[last - 1] + self.blend // 2
        return begin, end

    def window(self, index: int) -> NDArray[np.float32]:
        """Return a tile's weights over its support; at raised-cosine seams, neighbours add up to one."""
        begin, end = self.support(index, index + 1)
        weights = np.ones(end - begin, np.float32)
        ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(self.blend) + 0.5) / self.blend)).astype(np.float32)
        if index > 0:
            weights[: self.blend] = ramp
        if index + 1 < len(self.starts):
            weights[-self.blend :] = 1 - ramp
        return weights


@dataclass(frozen=True)
class Block:
    """A box of tiles.

    Attributes
    ----------
    index : tuple of int
        Position in the grid of blocks (z, y, x).
    gaps, rows, columns : range
        Its gaps, and its tiles along y and x.
    begin, end : tuple of int
        Support: the box (z, y, x) of output voxels that its tiles contribute to.
    """

    index: tuple[int, int, int]
    gaps: range
    rows: range
    columns: range
    begin: tuple[int, int, int]
    end: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the support."""
        z, y, x = (e - b for b, e in zip(self.begin, self.end, strict=True))
        return (z, y, x)

    @property
    def voxels(self) -> int:
        """Number of voxels of the support."""
        return prod(self.shape)


@dataclass(frozen=True)
class BlockGrid:
    """All blocks of a volume, computed on the fly.

    Parameters
    ----------
    z : SliceGrid or ImageStack
        Output slices.
    y, x : TileAxis
        Tiles along y and x.
    block : tuple of int
        Gaps, tiles along y and tiles along x in a block.
    """

    z: SliceGrid | ImageStack
    y: TileAxis
    x: TileAxis
    block: tuple[int, int, int]

    @property
    def volume(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the output volume."""
        return (self.z.length, self.y.length, self.x.length)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of blocks along z, y and x."""
        units = (self.z.gaps, len(self.y.starts), len(self.x.starts))
        z, y, x = (-(-unit // size) for unit, size in zip(units, self.block, strict=True))
        return (z, y, x)

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    @cached_property
    def chunk(self) -> tuple[int, int, int]:
        """Largest support of any block: the shape of a chunk of the tile store."""
        counts = self.counts
        regular = isinstance(self.z, ImageStack) or not self.z.missing
        period = min(counts[0], self.z.factor.denominator + 1) if regular else counts[0]
        spans = (self._span_z(i) for i in {*range(period), counts[0] - 1})
        depth = max(end - begin for begin, end in spans)
        height = max(e - b for b, e in (self._span(self.y, i, 1) for i in range(counts[1])))
        width = max(e - b for b, e in (self._span(self.x, i, 2) for i in range(counts[2])))
        return (depth, height, width)

    def _units(self, i: int, axis: int, count: int) -> range:
        return range(i * self.block[axis], min((i + 1) * self.block[axis], count))

    def _span_z(self, i: int) -> tuple[int, int]:
        gaps = self._units(i, 0, self.z.gaps)
        return self.z.first(gaps.start), min(self.z.first(gaps.stop), self.z.length)

    def _span(self, axis: TileAxis, i: int, number: int) -> tuple[int, int]:
        tiles = self._units(i, number, len(axis.starts))
        return axis.support(tiles.start, tiles.stop)

    def at(self, index: tuple[int, int, int]) -> Block:
        """Return the block at a position (z, y, x) of the grid."""
        spans = (self._span_z(index[0]), self._span(self.y, index[1], 1), self._span(self.x, index[2], 2))
        return Block(
            index,
            self._units(index[0], 0, self.z.gaps),
            self._units(index[1], 1, len(self.y.starts)),
            self._units(index[2], 2, len(self.x.starts)),
            (spans[0][0], spans[1][0], spans[2][0]),
            (spans[0][1], spans[1][1], spans[2][1]),
        )

    def __getitem__(self, number: int) -> Block:
        if not 0 <= number < len(self):
            raise IndexError(number)
        _, ny, nx = self.counts
        return self.at((number // (ny * nx), number // nx % ny, number % nx))

    def __iter__(self) -> Iterator[Block]:
        return (self[number] for number in range(len(self)))

    def idle(self, block: Block) -> bool:
        """Return whether a block has nothing to restore because its gaps contain no slice."""
        return not any(self.z.generated(gap) for gap in block.gaps)

    def overlapping(self, begin: tuple[int, int, int], end: tuple[int, int, int]) -> Iterator[Block]:
        """Yield the blocks whose support overlaps a box, in the order of their numbers."""
        spans: tuple[Callable[[int], tuple[int, int]], ...] = (
            self._span_z,
            lambda i: self._span(self.y, i, 1),
            lambda i: self._span(self.x, i, 2),
        )
        hits = [
            range(
                bisect_right(range(count), low, key=lambda i, span=span: span(i)[1]),  # type: ignore[misc]
                bisect_left(range(count), high, key=lambda i, span=span: span(i)[0]),  # type: ignore[misc]
            )
            for count, span, low, high in zip(self.counts, spans, begin, end, strict=True)
        ]
        for z, y, x in itertools.product(*hits):
            yield self.at((z, y, x))


def owned(count: int, worker: int, workers: int) -> range:
    """Return the numbers of the blocks or shards, of `count` in all, that a worker (from 1) owns."""
    if not 1 <= worker <= workers:
        raise ValueError(f"worker {worker} of {workers} does not exist")
    return range(worker - 1, count, workers)
