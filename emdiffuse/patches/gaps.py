"""Cut gaps from volumes, for vemdiffuse-i and vemdiffuse-a.

Conventions
-----------
* A gap of factor R is cut from neighbouring slices of an isotropic stack. A real slice begins at every R-th
  slice and integrates over ``w = max(thickness * R, 1)`` slices, the last one weighted by the remaining
  fraction; its position is the centre of its thickness. The target is the slices between the centres of the
  middle two real slices, without these if they are one voxel thick.
* With thick slices, some gaps represent the first one of a volume: there is no slice before them, and the
  target begins with the first slice's thickness, at a position below 0.
* vemdiffuse-i takes z of an isotropic volume as depth, or the axes of `patches.axes`. vemdiffuse-a learns
  from an anisotropic volume alone: y or x is depth, and in the remaining plane (z by x, or z by y) the coarse
  z axis is first interpolated linearly to the pixel size of the other, so that structures have their true
  shape, and mirrored if it is shorter than a patch (Lu et al., doi 10.1038/s41467-024-49125-z, train on the
  same planes).
* With `patches.left_out_slices`, vemdiffuse-a also learns from gaps along z, of twice the volume's factor:
  every second slice is left out and is the target between its neighbours. These planes are as sharp as those
  that the model is applied to, whereas the lateral ones are partly interpolated; but they are fewer. Slices
  must be thin: a thick slice is an average of the wanted slices.
* Training and validation are separated along z (vemdiffuse-i: the far end in z; vemdiffuse-a: the far end in
  y, since such a volume has few slices), by one gap. A volume contributes the factors that it is large enough
  for.
* No gap overlaps a slice that is marked as missing, which is only a copy of another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import ceil, floor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import MAXIMUM_FACTOR, Model, anisotropy_factor
from emdiffuse.patches.origins import BLANK, TRAINING, VALIDATION, Cut, Origin, training_length
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.facts import VolumeFacts
from emdiffuse.stores.intensity import shown
from emdiffuse.stores.volume import open_volume

ISOTROPIC = 1.05
"""Largest ratio of the sides of a voxel that counts as isotropic."""
MOST_PLACES = 200_000
"""Maximum number of candidate positions per axis, factor and split: a terabyte has a billion, most of which
would never be seen."""
ENDS = 0.15
"""Fraction of the gaps of thick slices that represent the first of a volume."""


class GapSource:
    """A volume from which gaps are cut; see the module, and `origins.PatchSource`."""

    def __init__(self, path: Path, model: Model, validated: bool = True) -> None:
        self.path = path
        self.validated = validated
        self.volume = open_volume(path)
        self.model = model
        depth = self.volume.array.shape[0]
        missing = np.isin(np.arange(depth), self.facts.missing)
        # number of missing slices before each slice
        self._missing_before = np.concatenate([[0], np.cumsum(missing)])
        z, y, x = self.volume.voxel_size
        if model.task == "vemdiffuse-a":
            self.stretch = float(anisotropy_factor(self.volume.voxel_size, str(path)))
        elif max(z, y, x) > ISOTROPIC * min(z, y, x):
            raise DataError(
                f"{path}: vemdiffuse-i learns from isotropic volumes, but the voxel is {z:g} x {y:g} x {x:g}"
                " nm; use vemdiffuse-a"
            )
        else:
            self.stretch = 1.0
        thin = window(self.stretch, self.facts.thickness) == 1
        twice = left_out_factor(self.stretch)
        self.left_out = twice if model.patches.left_out_slices and thin and depth >= 3 else None

    @property
    def facts(self) -> VolumeFacts:
        """The facts of the volume."""
        return self.volume.facts

    def extent(self, origin: Origin) -> tuple[int, int, int]:
        """Return the extent (z, y, x) of a patch in voxels; a left-out slice includes its two neighbours."""
        size = self.model.patches.size
        if self._leaves_out(origin):
            return 3, size, size
        sides = [self.length(origin.factor) if i == origin.axis else size for i in range(3)]
        if self.stretch > 1:
            sides[0] = ceil((size - 1) / self.stretch) + 1
        return sides[0], sides[1], sides[2]

    def length(self, factor: int) -> int:
        """Return the number of isotropic slices needed for a gap with the thickest slices."""
        return 3 * factor + ceil(window(factor, self.model.thicknesses[1]))

    def origins(self, number: int) -> Iterator[Origin]:
        """Yield the positions of all gaps: regular grids in the region of each split.

        Raises
        ------
        DataError
            If the volume is too small for a gap in training or, if validated, in validation.
        """
        random = np.random.default_rng([0, number])
        for split in (TRAINING, VALIDATION) if self.validated else (TRAINING,):
            found = False
            for factor in self.model.factors:
                for origin in self._grid(number, factor, split):
                    found = True
                    permille, end = self._thickness(factor, random)
                    yield origin._replace(permille=permille, end=end)
            if found and self.left_out is not None:
                yield from self._grid(number, self.left_out, split, left_out=True)
            if not found:
                shape = " x ".join(map(str, self.volume.array.shape))
                missing = self._missing_before[-1]
                less = f" ({missing} of its slices are missing)" if missing else ""
                raise DataError(
                    f"{self.path}: {shape} voxels{less} are too few for gaps of "
                    f"{self.length(min(self.model.factors))} slices of {self.model.patches.size} x "
                    f"{self.model.patches.size} pixels in both training and validation; use a larger volume, "
                    "or a smaller `patches.size` or `factor`"
                )

    def _thickness(self, factor: int, random: np.random.Generator) -> tuple[int, int]:
        """Draw a thickness in thousandths, a third at each end of its range, and whether to cut an end."""
        low, high = self.model.thicknesses
        thickness = low + (high - low) * float(np.clip(3 * random.random() - 1, 0, 1))
        end = random.random() < ENDS
        if window(factor, thickness) == 1:
            return 0, 0
        return round(1000 * thickness), int(end)

    def _leaves_out(self, origin: Origin) -> bool:
        """Return whether the target of a patch is a left-out real slice."""
        return self.stretch > 1 and origin.axis == 0

    def _grid(self, number: int, factor: int, split: int, left_out: bool = False) -> Iterator[Origin]:
        settings = self.model.patches
        shape = (self.volume.array.shape[0], *(side.stop for side in self.volume.valid))
        lateral = self.stretch > 1
        cut = 1 if lateral else 0
        least, largest = (self.length(f(self.model.factors)) for f in (min, max))
        unit = max(largest, settings.size) if lateral else least
        if self.validated:
            end, begin = training_length(shape[cut], settings.validation, unit, max(self.model.factors))
        else:
            end = begin = shape[cut]
        low, high = (0, end) if split == TRAINING else (begin, shape[cut])
        chosen = ["zyx".index(axis) for axis in settings.axes]
        axes = (1, 2) if lateral else chosen if split == TRAINING else (0,)
        axes = (0,) if left_out else axes
        for axis in axes:
            extent = self.extent(Origin(number, axis, 0, 0, 0, factor, split))
            share = 1 - settings.overlap if split == TRAINING else 1.0
            along = 1 if left_out else factor
            steps = [along if i == axis else max(round(e * share), 1) for i, e in enumerate(extent)]
            lows, highs = [0, 0, 0], list(shape)
            lows[cut], highs[cut] = low, high
            if lateral and not left_out:
                highs[0] = max(highs[0], extent[0])
            starts = [
                range(lo, hi - e + 1, s) for lo, hi, e, s in zip(lows, highs, extent, steps, strict=True)
            ]
            whole = [z for z in starts[0] if not self._meets_missing(z, z + extent[0])]
            seed = [0, number, axis, factor, split]
            for z, y, x in _some(whole, starts[1], starts[2], seed):
                yield Origin(number, axis, z, y, x, factor, split)

    def _meets_missing(self, start: int, stop: int) -> bool:
        before = self._missing_before
        return bool(before[min(stop, len(before) - 1)] > before[start])

    def stack(self, origin: Origin) -> NDArray[np.float32]:
        """Return the slices of a gap, (depth, H, W), float32 in [-1, 1], with the gap's axis as depth.

        For a left-out slice: the seven slices around it; absent or untrusted ones are replaced by the nearest
        trusted slice.
        """
        if self._leaves_out(origin):
            return self._around(origin)
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

    def _around(self, origin: Origin) -> NDArray[np.float32]:
        size, middle = self.model.patches.size, origin.z + 1
        first, last = max(middle - 3, 0), min(middle + 4, self.volume.array.shape[0])
        if self._meets_missing(first, origin.z):
            first = origin.z
        if self._meets_missing(middle + 2, last):
            last = middle + 2
        sides = (slice(origin.y, origin.y + size), slice(origin.x, origin.x + size))
        values = self.volume.array[(slice(first, last), *sides)]
        unit = shown(values, self.volume.intensity.at(range(first, last)))
        places = np.arange(middle - 3, middle + 4)
        # an absent outer neighbour is replaced by the inner one, as at the ends of a volume
        places[0] = places[0] if places[0] >= first else middle - 1
        places[-1] = places[-1] if places[-1] < last else middle + 1
        return unit[np.clip(places - first, 0, last - first - 1)]

    def usable(self, origin: Origin) -> bool:
        """Return whether a gap has contrast."""
        return bool(self.stack(origin).std() >= BLANK)

    def cut(self, origin: Origin) -> Cut:
        """Return condition (4, H, W), target (D, H, W) and positions (D,); D is that of the deepest gap."""
        stack, factor = self.stack(origin), origin.factor
        depth = max(
            len(target_places(f, window(f, self.model.thicknesses[1]), True)) for f in self.model.factors
        )
        if self._leaves_out(origin):
            target = np.full((depth, *stack.shape[1:]), np.nan, np.float32)
            positions = np.full(depth, np.nan, np.float32)
            target[0], positions[0] = stack[3], 0.5
            return Cut(stack[::2], target, positions)
        w = window(factor, origin.permille / 1000)
        weights = np.minimum(w - np.arange(ceil(w)), 1).astype(np.float32) / np.float32(w)
        condition = np.stack(
            [np.tensordot(weights, stack[i * factor :][: len(weights)], 1) for i in range(4)]
        )
        places = target_places(factor, w, bool(origin.end))
        if origin.end:
            condition[0] = condition[1]
        target = np.full((depth, *stack.shape[1:]), np.nan, np.float32)
        target[: len(places)] = stack[places.start : places.stop]
        positions = np.full(depth, np.nan, np.float32)
        positions[: len(places)] = (np.array(places) - factor - (w - 1) / 2) / factor
        return Cut(condition, target, positions)


def _some(
    zs: Sequence[int], ys: Sequence[int], xs: Sequence[int], seed: list[int]
) -> Iterator[tuple[int, int, int]]:
    """Yield the positions of a grid in order, or about `MOST_PLACES` of them drawn at random."""
    total = len(zs) * len(ys) * len(xs)
    if total <= MOST_PLACES:
        yield from itertools.product(zs, ys, xs)
        return
    drawn = np.unique(np.random.default_rng(seed).integers(total, size=MOST_PLACES))
    places = np.stack(np.unravel_index(drawn, (len(zs), len(ys), len(xs))), 1)
    for z, y, x in places.tolist():
        yield zs[z], ys[y], xs[x]


def left_out_factor(ratio: float) -> int | None:
    """Return the factor of gaps in which every second slice is left out, or None if it is too large.

    Parameters
    ----------
    ratio : float
        Slice spacing over pixel size.
    """
    factor = round(2 * ratio)
    return factor if ratio > 1 and factor <= MAXIMUM_FACTOR else None


def window(factor: float, thickness: float) -> float:
    """Return the number of isotropic slices that a real slice integrates over, at least one."""
    return max(thickness * factor, 1.0)


def target_places(factor: int, window: float, end: bool) -> range:
    """Return the slices of a stack that are the target of a gap.

    Parameters
    ----------
    factor : int
        Factor R of the gap; real slice i of the gap begins at slice i R.
    window : float
        Number of slices that a real slice integrates over.
    end : bool
        Whether the gap is the first of a volume, so that the target begins with the slice before the gap.
    """
    if window <= 1:
        return range(factor + 1, 2 * factor)
    half = (window - 1) / 2
    return range(factor if end else ceil(factor + half), floor(2 * factor + half) + 1)


def stretched(values: NDArray[np.float32], factor: float, length: int) -> NDArray[np.float32]:
    """Interpolate the first axis linearly to `length` samples, `factor` per input sample."""
    place = np.arange(length, dtype=np.float32) / np.float32(factor)
    before = np.minimum(place.astype(np.int64), len(values) - 2)
    t = (place - before)[:, None, None]
    out: NDArray[np.float32] = (1 - t) * values[before] + t * values[before + 1]
    return out
