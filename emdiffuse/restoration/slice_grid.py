"""Slices: where those of the restored volume lie among the real ones.

Conventions
-----------
* *Real* slices are those of the input, *output* slices those of the restored volume, whose voxels are cubes
  of the input's lateral size. Output slice 0 is real slice 0.
* A real slice may be *thick*: it averages over more than one output slice, starting with its own, and its
  position is the centre of these. Between thick slices, and past the centres of the outermost two as far as
  they reach, every output slice is generated; a thin slice is an output slice itself, and passes unchanged::

      output slices            0   1   2   3   4   5   6   7   8   9  10  11      (factor 6)
      thickness 0 (thin)       *                       *
      thickness 1/2            [---*---]               [---*---]
      thickness 1              [---------*---------]   [---------*---------]

* A *gap* is the space between the centres of two neighbouring real slices that can be trusted; it is wider
  where slices are missing.
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
    """Where output slices lie among the real ones.

    Parameters
    ----------
    slices : int
        Number of real slices, at least 2.
    factor : Fraction
        Anisotropy factor: spacing of real slices in output voxels; need not be an integer.
    missing : tuple of int
        Real slices that are not to be trusted, in order. Those before the first or behind the last good one
        have no neighbour on one side: they count as good.
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
