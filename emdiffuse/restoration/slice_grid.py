"""Positions of the slices of the restored volume relative to the real slices.

Conventions
-----------
* *Real* slices are those of the input, *output* slices those of the restored volume, whose voxels are cubes
  with the input's lateral size. Output slice 0 is real slice 0.
* A real slice may be *thick*: it averages over more than one output slice, starting with its own, and its
  position is the centre of these. Within the extent of thick slices every output slice is generated; a thin
  slice is itself an output slice, and stays unchanged::

      output slices            0   1   2   3   4   5   6   7   8   9  10  11      (factor 6)
      thickness 0 (thin)       *                       *
      thickness 1/2            [---*---]               [---*---]
      thickness 1              [---------*---------]   [---------*---------]

* A *gap* is the space between the centres of two neighbouring trusted real slices; it is wider where slices
  are missing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import anisotropy_factor
from emdiffuse.config.tasks import CONDITION_OFFSETS
from emdiffuse.stores.volume import Volume


@dataclass(frozen=True)
class SliceGrid:
    """Positions of output slices relative to the real ones.

    Parameters
    ----------
    slices : int
        Number of real slices, at least 2.
    factor : Fraction
        Anisotropy factor: spacing of real slices in output voxels; need not be an integer.
    missing : tuple of int
        Real slices that cannot be trusted, in order. Those before the first or after the last good slice
        have no neighbour on one side, and count as good.
    thickness: Fraction
        Fraction of the slice spacing that a real slice integrates over, 0 to 1; below 1 / `factor` it is
        thin.
    """

    slices: int
    factor: Fraction
    missing: tuple[int, ...] = ()
    thickness: Fraction = Fraction(0)

    @property
    def window(self) -> Fraction:
        """Number of output slices that a real slice integrates over, at least one."""
        return max(self.thickness * self.factor, Fraction(1))

    @property
    def thick(self) -> bool:
        """Whether real slices integrate over more than one output slice."""
        return self.window > 1

    def centre(self, real: int) -> Fraction:
        """Return the position of a real slice in output slices: the centre of its thickness."""
        return real * self.factor + (self.window - 1) / 2

    @cached_property
    def good(self) -> Sequence[int]:
        """The real slices that bound the gaps."""
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
        """Number of output slices; the last real slice ends at the last one, or just after it."""
        return floor((self.slices - 1) * self.factor + self.window)

    def first(self, gap: int) -> int:
        """Return the first output slice of a gap; the one after the last gap is the end of the last."""
        if self.thick and gap == 0:
            return 0
        if self.thick and gap == self.gaps:
            return self.length
        return ceil(self.centre(self.good[gap]))

    def generated(self, gap: int) -> range:
        """Return the output slices of a gap that are not real."""
        begin = self.first(gap) if self.thick else floor(self.centre(self.good[gap])) + 1
        return range(begin, min(self.first(gap + 1), self.length))

    def width(self, gap: int) -> Fraction:
        """Return the distance between the slices around a gap, in output voxels."""
        return self.factor * (self.good[gap + 1] - self.good[gap])

    def thickness_of(self, gap: int) -> Fraction:
        """Return the fraction of a gap's width that a real slice integrates over; 0 if it is thin."""
        return self.window / self.width(gap) if self.thick else Fraction(0)

    def positions(self, gap: int) -> NDArray[np.float32]:
        """Return the positions of a gap's slices: 0 at the real slice before it, 1 at the one after it.

        At the ends of a volume of thick slices they extend from -1/2 to 3/2.
        """
        return np.array([float(self.position(gap, z)) for z in self.generated(gap)], np.float32)

    def position(self, gap: int, z: int) -> Fraction:
        """Return the position of an output slice in a gap."""
        return (z - self.centre(self.good[gap])) / self.width(gap)

    def around(self, gap: int) -> list[int]:
        """Return the real slices at `tasks.CONDITION_OFFSETS` of a gap; beyond the ends the outermost."""
        last = len(self.good) - 1
        return [self.good[min(max(gap + offset, 0), last)] for offset in CONDITION_OFFSETS]

    def gap_of(self, z: int) -> int:
        """Return the gap that contains an output slice; the outermost gaps extend to the ends."""
        behind: int = bisect_right(self.good, self._index(z))
        return min(max(behind, 1), self.gaps) - 1

    def _index(self, z: int) -> Fraction:
        """Return the position of an output slice in real slices, counted from 0."""
        return (z - (self.window - 1) / 2) / self.factor

    def integrated(self, real: int) -> tuple[int, NDArray[np.float64]]:
        """Return the first output slice that a real slice integrates over, and the weights from there on."""
        begin = real * self.factor  # output slice z extends from z to z + 1
        end = begin + self.window
        zs = range(floor(begin), min(ceil(end), self.length))
        weights = [min(z + 1.0, float(end)) - max(float(z), float(begin)) for z in zs]
        return zs.start, np.array(weights) / sum(weights)

    def real(self, z: int) -> int | None:
        """Return the real slice at output slice z, or None if z is generated."""
        if self.thick:
            return None
        index = self._index(z)
        before = self.good[bisect_right(self.good, index) - 1]
        return before if before == index else None


@dataclass(frozen=True)
class ImageStack:
    """Slices that are restored one by one: every slice is a separate gap, and none is real.

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
        """Return the slice itself, which is its own gap."""
        return gap

    def generated(self, gap: int) -> range:
        """Return the slice itself, which is its own gap."""
        return range(gap, gap + 1)

    def gap_of(self, z: int) -> int:
        """Return the gap of a slice: itself."""
        return z

    def width(self, gap: int) -> Fraction:
        """Return 1: there is nothing between images."""
        return self.factor

    def thickness_of(self, gap: int) -> Fraction:
        """Return 0: images have no thickness."""
        return Fraction(0)

    def positions(self, gap: int) -> NDArray[np.float32]:
        """Return the position of an image, which is 1/2 by convention (`emdiffuse.models.processes`)."""
        return np.array([0.5], np.float32)

    def real(self, z: int) -> int | None:
        """Return None: no slice stays unchanged."""
        return None


def slice_grid(volume: Volume) -> SliceGrid:
    """Return the positions of the output slices of a volume relative to its real ones.

    The slices in the attribute `missing` are not trusted; if there are any, the volume may be isotropic.

    Raises
    ------
    ConfigError
        If the factor is not between 2 and 12, and no slice is missing.
    """
    missing = volume.facts.missing
    factor = anisotropy_factor(volume.voxel_size, str(volume.path), isotropic=bool(missing))
    thickness = Fraction(volume.facts.thickness).limit_denominator(1000)
    return SliceGrid(volume.array.shape[0], factor, missing, thickness)
