"""Blocks, tiles and windows: pure arithmetic on global voxel positions.

Conventions
-----------
* Axes are (z, y, x); boxes are half open. *Real* slices are those of the input, *output* slices those of the
  restored volume, whose voxels are cubes of the input's lateral size. Output slice 0 is real slice 0.
* A real slice may be *thick*: it integrates over more than one output slice, from the one that it begins
  with, and lies at the centre of what it integrates. Between thick slices, and beyond the centres of the
  outermost two as far as these reach, all output slices are generated; a slice as thin as an output slice is
  one itself, and passed on::

      output slices            0   1   2   3   4   5   6   7   8   9  10  11      (factor 6)
      thickness 0 (thin)       *                       *
      thickness 1/2            [---*---]               [---*---]
      thickness 1              [---------*---------]   [---------*---------]

* A *gap* is the space between the centres of two neighbouring real slices that can be trusted: one of missing
  slices is wider than the others.
* The tile grid is global: it depends on the volume and the tile size alone, never on blocks or workers. Along
  z a tile is one gap; along y and x tiles overlap, and their windows add up to one everywhere::

      tile i      |h h|------------------|~~~~|h h|
      tile i + 1                     |h h|~~~~|------------------|h h|
                                          seam            h: halo, thrown away

* A block is a box of tiles. Its *support* is where the windows of its tiles are not zero, so that
  neighbouring blocks overlap by no more than a seam. Each tile belongs to one block, each block to one
  worker.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, prod

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import anisotropy_factor
from emdiffuse.config.tasks import CONDITION_OFFSETS
from emdiffuse.stores.volume import Volume

TILE_MULTIPLE = 16
"""Tiles start at multiples of this, so that a strided network sees every tile on the same grid."""


def ceil_to(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a value."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class SliceGrid:
    """Where output slices lie among the real ones.

    Parameters
    ----------
    slices : int
        Number of real slices, at least 2.
    factor : Fraction
        Anisotropy factor: distance of real slices in output voxels; need not be an integer.
    missing : tuple of int
        Real slices that are not to be trusted, in order. Those before the first or behind the last good one
        have no neighbour on one side: they count as good.
    thickness: Fraction
        Share of the distance of real slices that one integrates over, 0 to 1; below 1 / `factor` it is thin.
    """

    slices: int
    factor: Fraction
    missing: tuple[int, ...] = ()
    thickness: Fraction = Fraction(0)

    @property
    def window(self) -> Fraction:
        """How many output slices a real slice integrates over, at least one."""
        return max(self.thickness * self.factor, Fraction(1))

    @property
    def thick(self) -> bool:
        """Whether real slices integrate over more than an output slice."""
        return self.window > 1

    def centre(self, real: int) -> Fraction:
        """Return the place of a real slice among the output slices: the middle of what it integrates."""
        return real * self.factor + (self.window - 1) / 2

    @cached_property
    def good(self) -> Sequence[int]:
        """The real slices between which the gaps lie."""
        lost = frozenset(self.missing)
        if not lost:
            return range(self.slices)
        sound = [z for z in range(self.slices) if z not in lost]
        if not sound:
            return range(self.slices)
        return [*range(sound[0]), *sound, *range(sound[-1] + 1, self.slices)]

    @property
    def gaps(self) -> int:
        """Number of gaps between good slices."""
        return len(self.good) - 1

    @property
    def length(self) -> int:
        """Number of output slices; the last real slice ends with the last one, or just behind it."""
        return floor((self.slices - 1) * self.factor + self.window)

    def first(self, gap: int) -> int:
        """Return the output slice that a gap's range begins with; that behind the last gap ends the last."""
        if self.thick and gap == 0:
            return 0
        if self.thick and gap == self.gaps:
            return self.length
        return ceil(self.centre(self.good[gap]))

    def generated(self, gap: int) -> range:
        """Return the output slices of a gap that are no real ones."""
        begin = self.first(gap) if self.thick else floor(self.centre(self.good[gap])) + 1
        return range(begin, min(self.first(gap + 1), self.length))

    def width(self, gap: int) -> Fraction:
        """Return the distance of the slices around a gap, in output voxels."""
        return self.factor * (self.good[gap + 1] - self.good[gap])

    def thickness_of(self, gap: int) -> Fraction:
        """Return the share of a gap's width that a real slice integrates over; 0 where it is thin."""
        return self.window / self.width(gap) if self.thick else Fraction(0)

    def positions(self, gap: int) -> NDArray[np.float32]:
        """Return the positions of a gap's slices: 0 at the real slice before it, 1 at the one after it.

        At the ends of a volume of thick slices they reach from -1/2 to 3/2.
        """
        return np.array([float(self.position(gap, z)) for z in self.generated(gap)], np.float32)

    def position(self, gap: int, z: int) -> Fraction:
        """Return the position of an output slice in a gap."""
        return (z - self.centre(self.good[gap])) / self.width(gap)

    def around(self, gap: int) -> list[int]:
        """Return the real slices at `tasks.CONDITION_OFFSETS` of a gap; behind the ends the outermost."""
        last = len(self.good) - 1
        return [self.good[min(max(gap + offset, 0), last)] for offset in CONDITION_OFFSETS]

    def gap_of(self, z: int) -> int:
        """Return the gap that holds an output slice; the outermost ones reach to the ends."""
        behind: int = bisect_right(self.good, self._index(z))
        return min(max(behind, 1), self.gaps) - 1

    def _index(self, z: int) -> Fraction:
        """Return where an output slice lies among the real ones, counted from 0."""
        return (z - (self.window - 1) / 2) / self.factor

    def integrated(self, real: int) -> tuple[int, NDArray[np.float64]]:
        """Return what a real slice integrates over: the first output slice, and the weights from it on."""
        begin = real * self.factor  # in units that have output slice z between z and z + 1
        end = begin + self.window
        zs = range(floor(begin), min(ceil(end), self.length))
        weights = [min(z + 1.0, float(end)) - max(float(z), float(begin)) for z in zs]
        return zs.start, np.array(weights) / sum(weights)

    def real(self, z: int) -> int | None:
        """Return the real slice at output slice z, or None when z is generated."""
        if self.thick:
            return None
        index = self._index(z)
        before = self.good[bisect_right(self.good, index) - 1]
        return before if before == index else None


@dataclass(frozen=True)
class ImageStack:
    """Slices that are restored one by one: every slice is a gap of its own, and none is real.

    Parameters
    ----------
    slices : int
        Number of slices.
    """

    slices: int
    factor: Fraction = Fraction(1)
    thick = False

    @property
    def gaps(self) -> int:
        """Number of slices."""
        return self.slices

    @property
    def length(self) -> int:
        """Number of slices."""
        return self.slices

    def first(self, gap: int) -> int:
        """Return the slice of a gap: itself."""
        return gap

    def generated(self, gap: int) -> range:
        """Return the slice of a gap: itself."""
        return range(gap, gap + 1)

    def gap_of(self, z: int) -> int:
        """Return the gap of a slice: itself."""
        return z

    def width(self, gap: int) -> Fraction:
        """Return 1: there is nothing between images."""
        return self.factor

    def thickness_of(self, gap: int) -> Fraction:
        """Return 0: an image stands for itself."""
        return Fraction(0)

    def positions(self, gap: int) -> NDArray[np.float32]:
        """Return the position of an image, which is 1/2 by convention (`emdiffuse.models.processes`)."""
        return np.array([0.5], np.float32)

    def real(self, z: int) -> int | None:
        """Return None: no slice is passed on as it is."""
        return None


@dataclass(frozen=True)
class TileAxis:
    """Tiles along y or x.

    Parameters
    ----------
    length : int
        Length of the volume in voxels.
    size : int
        Length of a tile, a multiple of `TILE_MULTIPLE`; shorter volumes get one shorter tile.
    halo, blend : int
        Margin thrown away, and width of the seam, in voxels; blend is even and at least 8, and ``2 * halo + 3
        * blend`` is not above `size`, so that seams never cross.
    """

    length: int
    size: int
    halo: int
    blend: int

    @property
    def tile(self) -> int:
        """Length of every tile; reaches past the end of the volume by less than `TILE_MULTIPLE`."""
        return min(self.size, ceil_to(self.length, TILE_MULTIPLE))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First voxel of every tile: spread evenly, no further apart than halo and seam allow."""
        last = ceil_to(max(self.length - self.tile, 0), TILE_MULTIPLE)
        stride = (self.size - 2 * self.halo - self.blend) // TILE_MULTIPLE * TILE_MULTIPLE
        steps = max(-(-last // stride), 1)
        return (0, *(last // TILE_MULTIPLE * i // steps * TILE_MULTIPLE for i in range(1, steps + 1) if last))

    @cached_property
    def seams(self) -> tuple[int, ...]:
        """Centre of the seam behind every tile but the last."""
        return tuple((a + self.tile + b) // 2 for a, b in itertools.pairwise(self.starts))

    def support(self, first: int, last: int) -> tuple[int, int]:
        """Return the box in which the windows of tiles first to last - 1 are not zero."""
        begin = 0 if first == 0 else self.seams[first - 1] - self.blend // 2
        end = self.length if last == len(self.starts) else self.seams[last - 1] + self.blend // 2
        return begin, end

    def window(self, index: int) -> NDArray[np.float32]:
        """Return a tile's weights over its support; raised-cosine seams add up to one with a neighbour."""
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
    """All blocks of a volume, as arithmetic.

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

    def idle(self, block: Block) -> bool:
        """Tell whether a block has nothing to restore: no slice lies in its gaps."""
        return not any(self.z.generated(gap) for gap in block.gaps)

    def overlapping(self, begin: tuple[int, int, int], end: tuple[int, int, int]) -> Iterator[Block]:
        """Yield the blocks whose support meets a box, in the order of their numbers."""
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
    """Return the numbers of the blocks or shards that a worker (counted from 1) owns, of `count` in all."""
    if not 1 <= worker <= workers:
        raise ValueError(f"worker {worker} of {workers} does not exist")
    return range(worker - 1, count, workers)


def slice_grid(volume: Volume) -> SliceGrid:
    """Return where the output slices of a volume lie among its real ones.

    The slices that the attribute `missing` lists are not to be trusted; with some of them a volume may be
    isotropic.

    Raises
    ------
    ConfigError
        If the factor is not between 2 and 12, and there is nothing else to restore.
    """
    missing = volume.facts.missing
    factor = anisotropy_factor(volume.voxel_size, str(volume.path), isotropic=bool(missing))
    thickness = Fraction(volume.facts.thickness).limit_denominator(1000)
    return SliceGrid(volume.array.shape[0], factor, missing, thickness)
