"""The blocks that are evaluated: all blocks of a volume, or a stated sample of a large one.

Conventions
-----------
* A block spans some gaps (or images) in depth and a tile of at most `TILE` pixels a side, plus a margin for
  the windows of SSIM, so that planes divided into blocks are measured as if whole.
* Of more than `BLOCKS` blocks, `BLOCKS` are drawn with the seed `SEED`, the same for every method. Each block
  of a sample counts as a separate small volume: its planes are not joined with those of other blocks, and
  the bootstrap draws blocks.
* Costly metrics (FSIM, structures, LPIPS) use one or more generated slices of each gap, cycling through the
  positions in a gap, so that they cover at least `COSTLY` voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid

Grid = SliceGrid | ImageStack

PLANES = {"xy": 0, "xz": 1, "yz": 2}
"""Orientations, and the axis perpendicular to their planes."""
TILE, DEPTH = 256, 32
"""Maximum lateral side and depth of a block, in voxels; a block spans at least one gap."""
BLOCKS, SEED = 64, 0
"""Maximum number of blocks measured, and the seed of the draw."""
COSTLY = 500_000
"""Minimum number of voxels that costly metrics use."""
MARGIN = 5
"""Half width of SSIM's window, in voxels."""
RUN = 16
"""Number of neighbouring xz or yz planes that the bootstrap draws together."""


@dataclass(frozen=True)
class EvaluationBlock:
    """A box of voxels, with a margin for the windows of SSIM.

    Attributes
    ----------
    index : int
        Number among the measured blocks.
    box : tuple of slice
        The block with its margin, in the volume.
    counted : tuple of ndarray
        Counted voxels along each axis, relative to the corner of the box; along z the generated slices.
    windows : tuple of ndarray
        The counted voxels whose window is within the volume; along z all.
    own : tuple of slice
        All voxels without the margin, including real slices, relative to the corner of the box.
    generated : ndarray
        Mask of the generated slices of the box, including the margin.
    places : tuple of ndarray
        Along each axis, the entries of the counted planes in a metric's sums.
    costly : tuple of int
        The counted slices that costly metrics use.
    """

    index: int
    box: tuple[slice, slice, slice]
    counted: tuple[NDArray[np.int64], ...]
    windows: tuple[NDArray[np.int64], ...]
    own: tuple[slice, slice, slice]
    generated: NDArray[np.bool_]
    places: tuple[NDArray[np.int64], ...]
    costly: tuple[int, ...]


@dataclass(frozen=True)
class BlockLayout:
    """How a volume is divided into blocks, which are measured, and what the bootstrap draws.

    Parameters
    ----------
    grid : SliceGrid or ImageStack
        Output slices.
    shape : tuple of int
        Shape (z, y, x) of the measured volume.
    """

    grid: Grid
    shape: tuple[int, int, int]

    @cached_property
    def cuts(self) -> tuple[list[int], list[int], list[int]]:
        """Start of the blocks along each axis, and end of the last one."""
        gaps = max(int(DEPTH / self.grid.factor), 1)
        along_z = [self.grid.first(gap) for gap in range(0, self.grid.gaps, gaps)] + [self.grid.length]
        lateral = []
        for length in self.shape[1:]:
            parts = ceil(length / TILE)
            lateral.append([length * part // parts for part in range(parts + 1)])
        return along_z, lateral[0], lateral[1]

    @cached_property
    def generated(self) -> NDArray[np.int64]:
        """The generated slices, in order."""
        return np.array([z for gap in range(self.grid.gaps) for z in self.grid.generated(gap)])

    @cached_property
    def _layers(self) -> list[int]:
        """Layers of blocks with generated slices."""
        edges = np.searchsorted(self.generated, self.cuts[0])
        return np.flatnonzero(np.diff(edges)).tolist()

    @property
    def total(self) -> int:
        """Number of blocks with generated slices."""
        return len(self._layers) * prod(len(cut) - 1 for cut in self.cuts[1:])

    @property
    def sampled(self) -> bool:
        """Whether only a sample of the blocks is measured."""
        return self.total > BLOCKS

    @cached_property
    def chosen(self) -> list[tuple[int, int, int]]:
        """Positions (z, y, x) of the measured blocks, in order."""
        rows, columns = (len(cut) - 1 for cut in self.cuts[1:])
        numbers = np.arange(self.total)
        if self.sampled:
            numbers = np.sort(np.random.default_rng(SEED).choice(self.total, BLOCKS, replace=False))
        return [
            (self._layers[n // (rows * columns)], n // columns % rows, n % columns) for n in numbers.tolist()
        ]

    def _extents(self, at: tuple[int, int, int]) -> list[tuple[int, int]]:
        return [(cut[i], cut[i + 1]) for cut, i in zip(self.cuts, at, strict=True)]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """Start of the entries of every sampled block along each axis, and end of the last one."""
        sizes = [[end - begin for begin, end in self._extents(at)] for at in self.chosen]
        return np.concatenate([[[0, 0, 0]], np.cumsum(sizes, axis=0)])

    @property
    def voxels(self) -> int:
        """Number of generated voxels that are measured."""
        if not self.sampled:
            return len(self.generated) * self.shape[1] * self.shape[2]
        return sum(prod(len(own) for own in block.counted) for block in self.blocks())

    @property
    def lengths(self) -> dict[str, int]:
        """Number of entries of each orientation in a metric's sums."""
        sizes = self._offsets[-1].tolist() if self.sampled else list(self.shape)
        if isinstance(self.grid, ImageStack):
            return {"xy": sizes[0]}
        return {name: sizes[axis] for name, axis in PLANES.items()} | {"xyz": len(self.chosen)}

    @property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Bootstrap group of every entry, by orientation."""
        blocks = np.arange(len(self.chosen))
        if self.sampled:
            sizes = np.diff(self._offsets, axis=0)
            groups = {name: np.repeat(blocks, sizes[:, axis]) for name, axis in PLANES.items()}
        else:
            groups = {"xy": np.array([int(z / self.grid.factor) for z in range(self.shape[0])])}
            groups |= {name: np.arange(self.shape[axis]) // RUN for name, axis in PLANES.items() if axis}
        groups["xyz"] = blocks
        return {name: groups[name] for name in self.lengths}

    @property
    def drawn(self) -> str:
        """What the bootstrap draws, in words."""
        if self.sampled:
            return "blocks"
        if isinstance(self.grid, ImageStack):
            return "images"
        return f"gaps (xy), runs of {RUN} planes (xz, yz) and blocks (xyz)"

    @cached_property
    def looked_at(self) -> int:
        """Number of generated slices per gap that costly metrics use."""
        if self.sampled:
            return 1
        gaps = sum(bool(self.grid.generated(gap)) for gap in range(self.grid.gaps))
        return max(ceil(COSTLY / max(gaps * self.shape[1] * self.shape[2], 1)), 1)

    def _costly(self, slices: NDArray[np.int64]) -> tuple[int, ...]:
        """Return the slices that costly metrics use, cycling through the positions in a gap."""
        rows = []
        for row, z in enumerate(slices.tolist()):
            gap = self.grid.gap_of(z)
            members = self.grid.generated(gap)
            turns = np.random.default_rng(SEED).permutation(len(members))
            begin = gap * self.looked_at
            taken = turns[np.arange(begin, begin + self.looked_at) % len(members)]
            if z - members.start in taken:
                rows.append(row)
        return tuple(rows)

    @property
    def statement(self) -> str:
        """The part of the volume that is measured, in words; empty if it is measured completely."""
        said = []
        if self.sampled:
            said.append(
                f"Measured on {len(self.chosen)} of {self.total} blocks of up to {TILE} x {TILE} pixels, "
                f"drawn at random (seed {SEED}); each counts as a separate small volume."
            )
        deepest = max(len(self.grid.generated(gap)) for gap in range(self.grid.gaps))
        if self.looked_at < deepest:
            said.append(
                "FSIM and the overlap of structures (and LPIPS), which take longest, are measured on "
                f"{self.looked_at} of the up to {deepest} generated slices of each gap, cycling through the "
                f"positions in a gap (seed {SEED})."
            )
        return " ".join(said)

    def blocks(self) -> Iterator[EvaluationBlock]:
        """Yield the measured blocks."""
        for index, at in enumerate(self.chosen):
            box, counted, windows, own, places = [], [], [], [], []
            for axis, (begin, end) in enumerate(self._extents(at)):
                length = self.shape[axis]
                start = max(begin - MARGIN, 0)
                box.append(slice(start, min(end + MARGIN, length)))
                if axis == 0:
                    at_axis = inside_axis = self._between(begin, end)
                else:
                    at_axis = np.arange(begin, end)
                    within = inside(length)
                    inside_axis = at_axis[(at_axis >= within.start) & (at_axis < within.stop)]
                counted.append(at_axis - start)
                windows.append(inside_axis - start)
                own.append(slice(begin - start, end - start))
                shift = int(self._offsets[index, axis]) - begin if self.sampled else 0
                places.append(at_axis + shift)
            made = np.isin(np.arange(box[0].start, box[0].stop), self._between(box[0].start, box[0].stop))
            yield EvaluationBlock(
                index,
                (box[0], box[1], box[2]),
                tuple(counted),
                tuple(windows),
                (own[0], own[1], own[2]),
                made,
                tuple(places),
                self._costly(counted[0] + box[0].start),
            )

    def _between(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the generated slices in a range."""
        low, high = np.searchsorted(self.generated, (begin, end))
        return self.generated[low:high]


def inside(length: int) -> slice:
    """Return the pixels along an axis whose SSIM window is within it; all if it is too short."""
    return slice(MARGIN, length - MARGIN) if length > 2 * MARGIN else slice(0, length)
