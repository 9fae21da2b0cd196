"""Intensity scaling between stored values and the network's range, [-1, 1].

Conventions
-----------
* Every slice has its own range, `low` to `high`, which is mapped to -1 to 1 (or 1 to -1 for inverted
  contrast): separate images independently, slices of a volume with ranges that vary smoothly along z (see
  `acquisition.statistics`). Ranges are measured once, at acquisition, and stored as facts, so that every tile
  and worker scales alike.
* Between two slices the range is interpolated by cubics (`interpolated`), which follow wave-like changes of
  brightness; generated slices are mapped back to intensities by it. Beyond the ends it is that of the
  outermost slice.
* Nothing is clipped, but outliers and padding are hidden from networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from emdiffuse.stores.fill import fill

BEARABLE = 5.0
"""Largest value that a network is shown, in units of half the range from its middle."""
NEAR = 2
"""Half width in pixels of the neighbourhood whose median replaces a hidden pixel."""


class Intensity(BaseModel):
    """The intensity facts of a store.

    Attributes
    ----------
    minimum, maximum : float
        Extremes of all finite values.
    low, high : float
        Range of a typical slice: the median over the slices.
    lows, highs : tuple of float
        Range of each slice; empty if all have the typical range.
    distance : float
        Number of slices from one entry to the next: 1, except in restored volumes.
    start : float
        Slice of the first entry: 0, except in volumes restored from thick slices, whose position is the
        centre of their thickness.
    invert : bool
        Whether networks see the contrast inverted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    minimum: float | None = None
    maximum: float | None = None
    low: float
    high: float
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    distance: float = 1.0
    start: float = 0.0
    invert: bool = False

    @model_validator(mode="after")
    def _check(self) -> Intensity:
        ranges = zip((self.low, *self.lows), (self.high, *self.highs), strict=True)
        if self.distance <= 0 or any(low >= high for low, high in ranges):
            raise ValueError("the intensity range is empty")
        return self

    @cached_property
    def ranges(self) -> NDArray[np.float64]:
        """Low and high of each entry, (2, entries)."""
        return np.array([self.lows or (self.low,), self.highs or (self.high,)])

    @property
    def span(self) -> float:
        """High minus low of a typical slice."""
        return self.high - self.low

    def at(self, slices: ArrayLike | Iterable[float] | None = None) -> Scaling:
        """Return the scaling of slices.

        Parameters
        ----------
        slices : sequence of float, or float, optional
            Slice numbers, possibly fractional; a single number for an image (y, x); by default the typical
            slice.
        """
        sign = -1 if self.invert else 1
        if slices is None:
            return Scaling(np.array(self.low), np.array(self.high), sign)
        wanted = slices if np.isscalar(slices) else list(slices)  # type: ignore[arg-type]
        places = (np.asarray(wanted, np.float64) - self.start) / self.distance
        low, high = interpolated(self.ranges, places)
        shape = (-1, 1, 1) if places.ndim else ()
        return Scaling(np.reshape(low, shape), np.reshape(high, shape), sign)

    def only(self, entry: int) -> Intensity:
        """Return the facts of one of the images."""
        low, high = self.ranges[:, min(entry, self.ranges.shape[1] - 1)].tolist()
        return Intensity(low=low, high=high, invert=self.invert)

    def stretched(self, factor: float, start: float = 0.0) -> Intensity:
        """Return the facts of a volume with `factor` slices from one entry to the next, after `start`."""
        return self.model_copy(
            update={"distance": self.distance * factor, "start": self.start * factor + start}
        )

    def as_facts(self) -> dict[str, Any]:
        """Return JSON data, without default values."""
        return self.model_dump(mode="json", exclude_defaults=True)


def interpolated(ranges: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate ranges between slices by cubics, or linearly where a cubic would overshoot.

    The slope at a slice is a weighted mean of those on both sides, in which the flatter side counts more
    (Akima 1970, doi 10.1145/321607.321609, with MATLAB's makima weights), so that a range stays flat next to
    a jump. Interpolation is linear where a cubic would give a range less than half as wide as its neighbours.

    Parameters
    ----------
    ranges : ndarray
        Low and high of each slice, (2, N).
    places : ndarray
        Positions in slices, of any shape; beyond the ends the outermost range is returned.

    Returns
    -------
    ndarray
        Low and high, (2, ...).
    """
    last = ranges.shape[1] - 1
    places = np.clip(places, 0, last)
    if last < 2:
        return np.stack([np.interp(places, np.arange(last + 1), ends) for ends in ranges])
    steps = np.diff(ranges)
    before, after = (2 * steps[:, :1] - steps[:, 1:2], 2 * steps[:, -1:] - steps[:, -2:-1])
    steps = np.concatenate([2 * before - steps[:, :1], before, steps, after, 2 * after - steps[:, -1:]], 1)
    unlike = np.abs(np.diff(steps)) + np.abs(steps[:, 1:] + steps[:, :-1]) / 2
    left, right = unlike[:, 2:], unlike[:, :-2]
    weights = np.where(left + right > 0, left + right, 1)
    slopes = (left * steps[:, 1:-2] + right * steps[:, 2:-1]) / weights
    start = np.minimum(places.astype(int), last - 1)
    t = places - start
    first, second = ranges[:, start], ranges[:, start + 1]
    straight = (1 - t) * first + t * second  # exact at both ends
    bend = (1 - t) * (slopes[:, start] - (second - first)) - t * (slopes[:, start + 1] - (second - first))
    cubic = straight + t * (1 - t) * bend
    least = np.minimum(first[1] - first[0], second[1] - second[0]) / 2
    found: NDArray[np.float64] = np.where(cubic[1] - cubic[0] >= least, cubic, straight)
    return found


@dataclass(frozen=True)
class Scaling:
    """Intensity ranges that are mapped to [-1, 1].

    Attributes
    ----------
    low, high : ndarray
        Range of one slice, (), or of several, (z, 1, 1).
    sign : int
        -1 if the contrast is inverted, else 1.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    sign: int = 1

    @property
    def span(self) -> NDArray[np.float64]:
        """High minus low."""
        return self.high - self.low

    def __getitem__(self, z: int) -> Scaling:
        """Return the scaling of the z-th of several slices."""
        return Scaling(self.low[z], self.high[z], self.sign)


def cast_to(values: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round and clip floating-point values to an integer type; other types are only converted."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def to_unit(values: ArrayLike, scaling: Scaling) -> NDArray[np.float32]:
    """Map intensities from [low, high] to [-1, 1], or [1, -1] if inverted, without clipping.

    Parameters
    ----------
    values : array_like
        Intensities, (y, x) of one slice or (z, y, x) of several, of any type.
    scaling : Scaling
        Scaling of these slices.

    Returns
    -------
    ndarray
        float32, of the same shape.
    """
    values = np.asarray(values)
    # floats may be far from 0, or tiny: their differences need float64 precision
    exact = np.float64 if values.dtype.kind == "f" else np.float32
    factor = (scaling.sign * 2 / scaling.span).astype(exact)
    unit = (values.astype(exact) - scaling.low.astype(exact)) * factor
    return unit.astype(np.float32) - np.float32(scaling.sign)


def from_unit(values: ArrayLike, scaling: Scaling) -> NDArray[np.float32]:
    """Map -1 to `low` and 1 to `high`: the inverse of `to_unit`, as float32, neither rounded nor clipped."""
    unit: NDArray[np.float32] = np.asarray(values, np.float32) + np.float32(scaling.sign)
    return unit * (scaling.sign * scaling.span / 2).astype(np.float32) + scaling.low.astype(np.float32)


def shown(values: ArrayLike, scaling: Scaling) -> NDArray[np.float32]:
    """Map intensities to the network's input: `to_unit`, with outliers and padding hidden.

    Hidden are voxels that are not finite, further than `BEARABLE` from the middle, or fill outside the range
    (padding, whose edge is not structure). Near other pixels of the slice (within `NEAR`) they become their
    median; elsewhere they are clipped, and NaN becomes the middle.

    Parameters
    ----------
    values : array_like
        Intensities (z, y, x).
    scaling : Scaling
        Scaling of these slices.

    Returns
    -------
    ndarray
        float32, (z, y, x), within `BEARABLE`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        unit = to_unit(values, scaling)
    strange = np.stack([fill(plane) for plane in np.asarray(values)]) & (np.abs(unit) > 1)
    strange |= ~(np.abs(unit) <= BEARABLE)
    if not strange.any():
        return unit
    # imported here: every stage imports this module, but few volumes need scipy
    from scipy.ndimage import maximum_filter

    sides = ((0, 0), (NEAR, NEAR), (NEAR, NEAR))
    known = np.pad(np.where(strange, np.nan, unit), sides, constant_values=np.nan)
    unit = np.clip(np.nan_to_num(unit, nan=0.0), -BEARABLE, BEARABLE)
    offsets = np.arange(2 * NEAR + 1)
    near_others = maximum_filter(~strange, (1, len(offsets), len(offsets)), mode="constant")
    places = np.argwhere(strange & near_others)
    for start in range(0, len(places), 2**16):
        part = places[start : start + 2**16]
        z, y, x = part.T[:, :, None, None]
        unit[tuple(part.T)] = np.nanmedian(known[z, y + offsets[:, None], x + offsets], (1, 2))
    return unit
