"""The parts of the input that a restoration keeps: real slices, fill, and the data bar.

Conventions
-----------
* Real slices are copied from the input, unchanged.
* *Fill* are voxels without data: NaN, and runs of equal values (`stores.fill`) outside the range of their
  slice. It is kept in images, and between two slices if both have the same fill.
* Pixels outside the image (a data bar) are kept; between two slices they are those of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.restoration.plan import Plan
from emdiffuse.restoration.slice_grid import ImageStack
from emdiffuse.stores.array import Box
from emdiffuse.stores.fill import RUN, fill
from emdiffuse.stores.intensity import to_unit
from emdiffuse.stores.volume import Volume

Plane = NDArray[np.generic]
Mask = NDArray[np.bool_]


def with_kept(plan: Plan, volume: Volume, values: NDArray[np.generic], box: Box) -> NDArray[np.generic]:
    """Copy the kept parts of the input into a box (z, y, x) of an output; modify and return `values`."""
    nothing = _Nothing(plan, volume, box)
    for number, z in enumerate(range(box[0].start, box[0].stop)):
        real = plan.grid.z.real(z)
        if real is not None:
            values[number] = volume.array[slice(real, real + 1), box[1], box[2]][0]
        else:
            plane, mask = nothing.at(_around(plan, z))
            values[number][mask] = plane[mask]
    return values


def without_uncertainty(
    plan: Plan, volume: Volume, sums: NDArray[np.float32], box: Box
) -> NDArray[np.float32]:
    """Set the uncertainty of a box to 0 where a generated slice keeps its input; modify and return it."""
    nothing = _Nothing(plan, volume, box)
    for number, z in enumerate(range(box[0].start, box[0].stop)):
        if plan.grid.z.real(z) is None:
            sums[number][nothing.at(_around(plan, z))[1]] = 0
    return sums


def _around(plan: Plan, z: int) -> tuple[int, ...]:
    """Return the input slices of an output slice: one, or those on both sides."""
    grid = plan.grid.z
    if isinstance(grid, ImageStack):
        return (z,)
    gap = grid.gap_of(z)
    return (grid.good[gap], grid.good[gap + 1])


class _Nothing:
    """Fill in the input slices around those of a box."""

    def __init__(self, plan: Plan, volume: Volume, box: Box) -> None:
        self.volume, self.scale = volume, plan.scale
        # input pixels that the box covers, and the surroundings that decide whether they are fill
        self.sides = [slice(side.start // plan.scale, -(-side.stop // plan.scale)) for side in box[1:]]
        self.inside = tuple(
            slice(side.start - own.start * plan.scale, side.stop - own.start * plan.scale)
            for side, own in zip(box[1:], self.sides, strict=True)
        )
        self._of = lru_cache(maxsize=2)(self._look)

    def at(self, slices: Sequence[int]) -> tuple[Plane, Mask]:
        """Return the values of the first of some slices, and the mask of fill common to all: (y, x)."""
        (plane, mask), *others = map(self._of, slices)
        for other, its in others:
            mask = mask & its & ((other == plane) | (other != other))
        return self._enlarged(plane), self._enlarged(mask | self._bar())

    def _enlarged(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return a part of the input, enlarged to the pixel grid of the box."""
        return part.repeat(self.scale, 0).repeat(self.scale, 1)[self.inside]

    def _look(self, z: int) -> tuple[Plane, Mask]:
        shape = self.volume.array.shape[1:]
        wide = [
            slice(max(side.start - RUN, 0), min(side.stop + RUN, n))
            for side, n in zip(self.sides, shape, strict=True)
        ]
        inner = tuple(
            slice(side.start - around.start, side.stop - around.start)
            for side, around in zip(self.sides, wide, strict=True)
        )
        plane = self.volume.array[(slice(z, z + 1), *wide)][0]
        mask = fill(plane)[inner]
        plane = plane[inner]
        if mask.any():
            mask &= np.abs(to_unit(plane, self.volume.intensity.at(z))) > 1
        return plane, mask | np.isnan(plane) if plane.dtype.kind == "f" else mask

    def _bar(self) -> Mask:
        """Return the mask of pixels outside the image."""
        outside = [
            np.arange(side.start, side.stop) >= valid.stop
            for side, valid in zip(self.sides, self.volume.valid, strict=True)
        ]
        return outside[0][:, None] | outside[1]
