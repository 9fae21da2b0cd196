"""Measure the intensity range of every slice of a dataset, and find doubtful slices, in one pass.

Conventions
-----------
* A slice may be measured in any number of parts (boxes), which are added in a fixed order. Only its pixels on
  a regular grid are kept: at most about `SAMPLES`, or all of a small slice.
* Pixels without specimen are ignored: values that are not finite, fill (`stores.fill`), and pixels outside
  the rectangle of the image (a data bar).
* The range of a slice is that between the 0.5 and 99.5 percentiles of the rest. These depend on which
  structures are present rather than on how much of each, and are robust to outliers.
* Each separate image has its own range. Slices of a volume show nearly the same tissue as their neighbours,
  so their ranges are averaged with those of neighbours, unless they jump (`smoothed`): this removes drift of
  the microscope, but not changes of the tissue. A slice that shows little takes the range of its neighbours.
* A *doubtful* slice is blank (almost no contrast), identical to the previous slice, or saturated (far more
  pixels at its darkest or brightest value than in other slices).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.array import Box
from emdiffuse.stores.fill import fill
from emdiffuse.stores.intensity import Intensity

LOW, HIGH = 0.5, 99.5
SAMPLES = 2**16
LEAST = 0.01
"""Minimum fraction of specimen pixels for a slice to be measured."""
BLANK = 0.05
"""A slice whose range is at most this fraction of the median slice's is blank."""
FAINT = 0.2
"""A slice whose range is below this fraction of the median slice's takes that of its neighbours."""
SATURATED = 0.5
"""A slice with this much larger a fraction at one end of its range than the median slice is saturated."""
LEVELS = 24
"""Number of grey levels between low and high below which a warning is given."""
REACH, WIDTH = 8, 4.0
"""Slices on each side over which a range is averaged, and the standard deviation of their weights."""
JUMP = 0.05
"""Ranges that differ by much more than this fraction of their width are not averaged."""
NAMED = 20
"""Maximum number of slices that a warning names."""


@dataclass
class Plane:
    """Sampled pixels of a slice, or of a part of one.

    Attributes
    ----------
    values : list of ndarray
        Finite pixels on the grid, by part.
    fill : list of ndarray
        Masks of the fill among them, by part.
    lowest, highest : float
        Of all finite pixels.
    digest : int
        Fingerprint of the values and their positions; parts are combined by exclusive or.
    """

    values: list[NDArray[Any]]
    fill: list[NDArray[np.bool_]]
    lowest: float
    highest: float
    digest: int

    def add(self, other: Plane) -> None:
        """Add another part of the slice."""
        self.values += other.values
        self.fill += other.fill
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)
        self.digest ^= other.digest


@dataclass(frozen=True)
class Measured:
    """Measurements of a slice.

    Attributes
    ----------
    low, high : float
        Intensity range; NaN if too few pixels show specimen.
    lowest, highest : float
        Extremes of all finite pixels; (inf, -inf) if there are none.
    clipped : float
        Fraction of pixels at the lowest or the highest value, whichever is larger.
    digest : int
        Fingerprint of the values.
    """

    low: float
    high: float
    lowest: float
    highest: float
    clipped: float
    digest: int

    @classmethod
    def of(cls, plane: Plane) -> Measured:
        """Measure a complete slice."""
        values, fill = np.concatenate(plane.values), np.concatenate(plane.fill)
        low = high = np.nan
        clipped = 1.0
        if (~fill).sum() > LEAST * len(fill):
            low, high = np.percentile(values[~fill], [LOW, HIGH], method="inverted_cdf").astype(float)
        if len(values):
            clipped = max(float(np.mean(values == end)) for end in (values.min(), values.max()))
        return cls(low, high, plane.lowest, plane.highest, clipped, plane.digest)


@dataclass(frozen=True)
class Part:
    """Samples of a box: its first slice, and its planes."""

    start: int
    planes: list[Plane]


def measure(
    values: NDArray[Any], box: Box, shape: tuple[int, ...], valid: tuple[slice, slice] | None = None
) -> Part:
    """Measure the values (z, y, x) of a box.

    Parameters
    ----------
    values : ndarray
        Values of the box.
    box : tuple of slice
        Position of the box in the volume or stack of images.
    shape : tuple of int
        Shape (z, y, x) of the whole.
    valid : tuple of slice, optional
        Rows and columns of the image within the whole; all by default.
    """
    step = ceil(sqrt(shape[1] * shape[2] / SAMPLES))
    corner = (box[1].start, box[2].start)
    inside = tuple(
        slice(0, max((side.stop or start + length) - start, 0))  # the data bar follows the image
        for side, start, length in zip(valid or box[1:], corner, values.shape[1:], strict=True)
    )
    return Part(box[0].start, [_measure_plane(plane, corner, step, inside) for plane in values])


def _measure_plane(
    plane: NDArray[Any], corner: tuple[int, int], step: int, inside: tuple[slice, ...]
) -> Plane:
    digest = hashlib.blake2b(repr(list(corner)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(plane).data)
    plane = plane[inside]
    grid = tuple(slice(-start % step, None, step) for start in corner)
    values, filled, finite = plane[grid].ravel(), fill(plane)[grid].ravel(), plane
    if plane.dtype.kind == "f":
        known = np.isfinite(values)
        values, filled, finite = values[known], filled[known], plane[np.isfinite(plane)]
    ends = (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)
    return Plane([values], [filled], *ends, int.from_bytes(digest.digest(), "big"))


@dataclass
class Statistics:
    """Statistics of a volume or a stack of images; parts are added in the order of slices."""

    dtype: np.dtype[Any]
    _open: dict[int, Plane] = field(default_factory=dict)
    _measured: dict[int, Measured] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Add the next part."""
        self._close(part.start)
        for z, plane in enumerate(part.planes, part.start):
            if z in self._open:
                self._open[z].add(plane)
            else:
                self._open[z] = plane

    def add_image(self, image: NDArray[Any]) -> None:
        """Add an image (y, x) as the next slice."""
        z = len(self._measured) + len(self._open)
        self.add(measure(image[None], (slice(z, z + 1), slice(0, None), slice(0, None)), (1, *image.shape)))

    def _close(self, before: int | None = None) -> None:
        """Measure the complete slices: those before a slice, or all."""
        for z in sorted(z for z in self._open if before is None or z < before):
            self._measured[z] = Measured.of(self._open.pop(z))

    @property
    def slices(self) -> list[Measured]:
        """Measurements of each slice."""
        self._close()
        return [self._measured[z] for z in sorted(self._measured)]

    def doubtful(self, missing: Collection[int] = ()) -> dict[str, list[int]]:
        """Return the numbers of blank, repeated and saturated slices, by reason.

        Parameters
        ----------
        missing : collection of int
            Slices known to be missing, which are skipped.
        """
        known = {z: plane for z, plane in enumerate(self.slices) if z not in missing}
        ranges = np.nan_to_num([plane.high - plane.low for plane in known.values()])
        contrast = BLANK * float(np.median(ranges))
        clipped = SATURATED + float(np.median([plane.clipped for plane in known.values()]))
        found: dict[str, list[int]] = {"blank": [], "repeated": [], "saturated": []}
        last = None
        for (z, plane), width in zip(known.items(), ranges, strict=True):
            if width <= contrast:
                found["blank"].append(z)
            elif plane.digest == last:
                found["repeated"].append(z)
            elif plane.clipped > clipped:
                found["saturated"].append(z)
            last = plane.digest
        return found

    def extremes(self, where: str) -> tuple[float, float]:
        """Return the lowest and highest finite value.

        Raises
        ------
        DataError
            If all voxels have the same value, or none is finite.
        """
        lowest, highest = (min(s.lowest for s in self.slices), max(s.highest for s in self.slices))
        if lowest > highest:
            raise DataError(f"{where}: no voxel is a finite number; there is no image")
        if lowest == highest:
            raise DataError(f"{where}: every voxel is {lowest:g}; there is no image")
        return lowest, highest

    def intensity(
        self, where: str, *, images: bool = False, missing: Collection[int] = (), invert: bool = False
    ) -> Intensity:
        """Return the intensity facts of all slices.

        Parameters
        ----------
        where : str
            Name of the data, for errors and warnings.
        images : bool
            Whether these are separate images, rather than the slices of a volume.
        missing : collection of int
            Untrusted slices of a volume, which take the range of their neighbours.
        invert : bool
            Whether networks see the contrast inverted.

        Raises
        ------
        DataError
            If all voxels have the same value, or none is finite.
        """
        slices = self.slices
        lowest, highest = self.extremes(where)
        own = np.array([(s.low, s.high) for s in slices]).T
        own[:, ~(own[0] < own[1])] = np.nan  # almost all pixels are equal, or fill
        if images:
            ranges = _filled(own, [(s.lowest, s.highest) for s in slices])
        else:
            own[:, sorted(missing)] = np.nan
            ranges = _trusted(own, lowest, highest)
        _warn(where, own, ranges, self.dtype)
        ranges = np.array([[float(f"{end:.9g}") for end in ends] for ends in ranges])
        alike = bool((ranges == ranges[:, :1]).all())
        low, high = (ranges[:, 0] if alike else np.median(ranges, axis=1)).tolist()
        lows, highs = ((), ()) if alike else map(tuple, ranges.tolist())
        return Intensity(
            minimum=lowest, maximum=highest, low=low, high=high, lows=lows, highs=highs, invert=invert
        )


def _filled(own: NDArray[np.float64], ends: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Return the ranges of images (2, N); an undefined one becomes that of all pixels, or a typical one."""
    ranges = own.copy()
    widths = own[1] - own[0]
    typical = float(np.nanmedian(widths)) if np.isfinite(widths).any() else 1.0
    for z in np.flatnonzero(np.isnan(widths)):
        lowest, highest = ends[z] if ends[z][0] <= ends[z][1] else (0.0, 0.0)
        middle = (lowest + highest) / 2
        ranges[:, z] = (lowest, highest) if lowest < highest else (middle - typical / 2, middle + typical / 2)
    return ranges


def _trusted(own: NDArray[np.float64], lowest: float, highest: float) -> NDArray[np.float64]:
    """Return the smoothed ranges of the slices of a volume (2, N); NaN marks undefined input ranges."""
    widths = own[1] - own[0]
    if np.isnan(widths).all():
        return np.tile([[lowest], [highest]], len(widths))
    trusted = np.flatnonzero(widths >= FAINT * np.nanmedian(widths))
    places = np.arange(len(widths))
    return smoothed(np.stack([np.interp(places, trusted, ends[trusted]) for ends in own]))


def smoothed(ranges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the range of each slice with those of symmetric pairs of neighbours.

    This exactly preserves a steady drift, up to the ends, and a jump: pairs whose mean differs from the slice
    by more than about `JUMP` of its width are ignored (a bilateral filter: Tomasi and Manduchi 1998, doi
    10.1109/ICCV.1998.710815).

    Parameters
    ----------
    ranges : ndarray
        Low and high of each slice, (2, N).

    Returns
    -------
    ndarray
        Smoothed low and high, (2, N).
    """
    total, weights = ranges.copy(), np.ones(ranges.shape[1])
    for reach in range(1, min(REACH, (ranges.shape[1] - 1) // 2) + 1):
        inner = slice(reach, -reach)
        pairs, here = (ranges[:, : -2 * reach] + ranges[:, 2 * reach :]) / 2, ranges[:, inner]
        apart = np.abs(pairs - here).max(0) / (JUMP * (here[1] - here[0]))
        weight = 2 * np.exp(-((reach / WIDTH) ** 2 + apart**2) / 2)
        total[:, inner] += weight * pairs
        weights[inner] += weight
    averaged: NDArray[np.float64] = total / weights
    return averaged


def _warn(where: str, own: NDArray[np.float64], ranges: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
    """Warn about slices that use little of their scaling range, or have few grey levels."""
    widths, used = own[1] - own[0], ranges[1] - ranges[0]
    few = dtype.kind in "iu" and used < LEVELS
    little = np.flatnonzero((widths < FAINT * used) | few)
    if len(little):
        names = ", ".join(map(str, little[:NAMED].tolist()))
        more = f" and {len(little) - NAMED} more" if len(little) > NAMED else ""
        widest = float(np.nan_to_num(widths[little]).max())
        logger.warning(
            "%s: slices %s%s (counted from 0) use little of the intensity range: %.3g at most; check "
            "their contrast, because detail lost in rounding cannot be restored",
            where, names, more, widest,
        )  # fmt: skip
