"""Gaps cut from volumes, for vemdiffuse-i and vemdiffuse-a.

Conventions
-----------
* A gap of factor R is cut from 3 R + 1 neighbouring slices: every R-th is real, those between the middle two
  are the target.
* vemdiffuse-i takes z of an isotropic volume as depth, or the axes of `patches.axes`. vemdiffuse-a learns
  from an anisotropic volume alone: y or x is depth, and in the lateral plane that is left (z by x, or z by y)
  the coarse z axis is first interpolated linearly to the pixel size of the other, so that structures have
  their true shape, and mirrored where it is shorter than a patch
  (Lu et al., doi 10.1038/s41467-024-49125-z, train on the same planes).
* Training and validation lie apart along z (vemdiffuse-i: the far end in z; vemdiffuse-a: the far end in y,
  since such a volume has few slices), with one gap between them.
* No gap meets a slice that is marked as missing: what lies there is a copy of another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Model, anisotropy_factor
from emdiffuse.patches.origins import TRAINING, VALIDATION, Cut, Origin, training_length
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.intensity import shown
from emdiffuse.stores.volume import open_volume

ISOTROPIC = 1.05
"""Largest ratio of the sides of a voxel that counts as isotropic."""


class GapSource:
    """A volume that gaps are cut from; see the module, and `origins.Source`."""

    def __init__(self, path: Path, model: Model) -> None:
        self.path = path
        self.volume = open_volume(path)
        self.model = model
        depth = self.volume.array.shape[0]
        missing = np.isin(np.arange(depth), self.facts.get("missing", []))
        self._missing_before = np.concatenate([[0], np.cumsum(missing)])  # how many lie before a slice
        z, y, x = self.volume.voxel_size
        if model.task == "vemdiffuse-a":
            self.stretch = float(anisotropy_factor(self.volume.voxel_size, str(path)))
        elif max(z, y, x) > ISOTROPIC * min(z, y, x):
            raise DataError(
                f"{path}: vemdiffuse-i learns from isotropic volumes, but this voxel is {z:g} x {y:g} x {x:g}"
                " nm; use vemdiffuse-a"
            )
        else:
            self.stretch = 1.0

    @property
    def facts(self) -> dict[str, Any]:
        """What the volume says of itself."""
        return self.volume.facts

    def extent(self, origin: Origin) -> tuple[int, int, int]:
        """Return the voxels (z, y, x) that a patch is cut from."""
        size = self.model.patches.size
        sides = [3 * origin.factor + 1 if i == origin.axis else size for i in range(3)]
        if self.stretch > 1:
            sides[0] = ceil((size - 1) / self.stretch) + 1
        return sides[0], sides[1], sides[2]

    def origins(self, number: int) -> Iterator[Origin]:
        """Yield the places of all gaps: regular grids in the region of each split."""
        for factor, split in itertools.product(self.model.factors, (TRAINING, VALIDATION)):
            found = False
            for origin in self._grid(number, factor, split):
                found = True
                yield origin
            if not found:
                shape = " x ".join(map(str, self.volume.array.shape))
                missing = self._missing_before[-1]
                less = f" ({missing} slices of which are missing)" if missing else ""
                raise DataError(
                    f"{self.path}: {shape} voxels{less} are too few for gaps of {3 * factor + 1} slices of "
                    f"{self.model.patches.size} x {self.model.patches.size} pixels in both training and "
                    "validation; use a larger volume, or a smaller `patches.size` or `factor`"
                )

    def _grid(self, number: int, factor: int, split: int) -> Iterator[Origin]:
        settings, shape = self.model.patches, self.volume.array.shape
        lateral = self.stretch > 1
        cut = 1 if lateral else 0
        largest = 3 * max(self.model.factors) + 1
        unit = max(largest, settings.size) if lateral else largest
        end, begin = training_length(shape[cut], settings.validation, unit, max(self.model.factors))
        low, high = (0, end) if split == TRAINING else (begin, shape[cut])
        chosen = ["zyx".index(axis) for axis in settings.axes]
        axes = (1, 2) if lateral else chosen if split == TRAINING else (0,)
        for axis in axes:
            extent = self.extent(Origin(number, axis, 0, 0, 0, factor, split))
            share = 1 - settings.overlap if split == TRAINING else 1.0
            steps = [factor if i == axis else max(round(e * share), 1) for i, e in enumerate(extent)]
            lows, highs = [0, 0, 0], list(shape)
            lows[cut], highs[cut] = low, high
            if lateral:
                highs[0] = max(highs[0], extent[0])
            starts = [
                range(lo, hi - e + 1, s) for lo, hi, e, s in zip(lows, highs, extent, steps, strict=True)
            ]
            whole = [z for z in starts[0] if not self._meets_missing(z, z + extent[0])]
            for z, y, x in itertools.product(whole, *starts[1:]):
                yield Origin(number, axis, z, y, x, factor, split)

    def _meets_missing(self, start: int, stop: int) -> bool:
        before = self._missing_before
        return bool(before[min(stop, len(before) - 1)] > before[start])

    def stack(self, origin: Origin) -> NDArray[np.float32]:
        """Return the 3 R + 1 slices of a gap, (depth, H, W), float32 in [-1, 1], its axis taken as depth."""
        start = (origin.z, origin.y, origin.x)
        shape = self.volume.array.shape
        ends = [min(s + e, n) for s, e, n in zip(start, self.extent(origin), shape, strict=True)]
        box = tuple(slice(s, e) for s, e in zip(start, ends, strict=True))
        values = shown(self.volume.array[box], self.volume.intensity.at(range(box[0].start, box[0].stop)))
        if self.stretch > 1:
            missing = self.extent(origin)[0] - len(values)
            values = np.pad(values, [(0, missing), (0, 0), (0, 0)], mode="symmetric")
            values = stretched(values, self.stretch, self.model.patches.size)
        return np.moveaxis(values, origin.axis, 0)

    def usable(self, origin: Origin) -> bool:
        """Tell whether a gap has contrast."""
        return bool(self.stack(origin).std() >= self.model.patches.minimum_contrast)

    def cut(self, origin: Origin) -> Cut:
        """Return condition (4, H, W) and target (D, H, W), D that of the largest factor, NaN where absent."""
        stack, factor = self.stack(origin), origin.factor
        target = np.full((max(self.model.factors) - 1, *stack.shape[1:]), np.nan, np.float32)
        target[: factor - 1] = stack[factor + 1 : 2 * factor]
        return stack[::factor], target


def stretched(values: NDArray[np.float32], factor: float, length: int) -> NDArray[np.float32]:
    """Interpolate the first axis linearly to `length` samples, `factor` to one of the input."""
    place = np.arange(length, dtype=np.float32) / np.float32(factor)
    before = np.minimum(place.astype(np.int64), len(values) - 2)
    t = (place - before)[:, None, None]
    out: NDArray[np.float32] = (1 - t) * values[before] + t * values[before + 1]
    return out
