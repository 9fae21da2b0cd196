"""Statistics of the slices of a dataset, in one pass and bounded memory.

Conventions
-----------
* `low` and `high` are the 0.5 and 99.5 percentiles of all voxels, exact: the smallest value that so many
  voxels do not pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.errors import DataError
from emdiffuse.volume import Array

LOW, HIGH = 0.005, 0.995
ROWS = 256
"""Rows of a slice that are measured at a time."""
BLANK = 0.05
"""A slice whose standard deviation is below this share of the median slice's is blank."""


class Statistics:
    """Statistics of a volume, slice by slice: moments, and a histogram of the leading 16 bits."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._counts = np.zeros(2**16, np.int64)
        self._slices: list[
            tuple[float, float, float, float]
        ] = []  # minimum, maximum, mean, standard deviation
        self._repeated: list[int] = []
        self._last = b""

    def add(self, values: NDArray[Any]) -> None:
        """Take in the next slice (y, x)."""
        mean, squares, digest = float(values.mean(dtype=np.float64)), 0.0, hashlib.blake2b()
        for start in range(0, len(values), ROWS):
            rows = np.ascontiguousarray(values[start : start + ROWS])
            squares += float((np.subtract(rows, mean, dtype=np.float64) ** 2).sum())
            self._counts += np.bincount(_leading(_order(rows)), minlength=2**16)
            digest.update(rows.tobytes())
        deviation = float(np.sqrt(squares / values.size))
        self._slices.append((float(values.min()), float(values.max()), mean, deviation))
        if digest.digest() == self._last:
            self._repeated.append(len(self._slices) - 1)
        self._last = digest.digest()

    def suspect_slices(self) -> dict[str, list[int]]:
        """Return the slices that hold next to nothing, and those that repeat the one before."""
        deviations = np.array([s[3] for s in self._slices])
        blank = np.flatnonzero(deviations <= BLANK * np.median(deviations)).tolist()
        return {"blank": blank, "repeated": [z for z in self._repeated if z not in blank]}

    def intensity(self, where: str, arrays: Sequence[Array]) -> dict[str, float]:
        """Return the intensity facts of all slices, which were written to `arrays`.

        Raises
        ------
        DataError
            If all voxels have the same value.
        """
        minima, maxima, means, deviations = np.array(self._slices).T
        minimum, maximum = float(minima.min()), float(maxima.max())
        if minimum == maximum:
            raise DataError(f"{where}: every voxel is {minimum:g}; there is no image in it")
        mean = float(means.mean())
        low, high = (self._percentile(share, arrays) for share in (LOW, HIGH))
        if low == high:  # nearly all voxels are alike: the robust range is empty
            low, high = minimum, maximum
        return {
            "minimum": minimum,
            "maximum": maximum,
            "mean": mean,
            "standard_deviation": float(np.sqrt((deviations**2 + (means - mean) ** 2).mean())),
            "low": low,
            "high": high,
        }

    def _percentile(self, share: float, arrays: Sequence[Array]) -> float:
        """Return the smallest value that at least a share of all voxels does not pass, by radix selection."""
        below = np.cumsum(self._counts)
        rank = int(np.ceil(share * below[-1]))
        lead = int(np.searchsorted(below, rank))
        if self.dtype.itemsize < 4:
            return float(_value(lead, self.dtype))
        counts = np.zeros(
            2**16, np.int64
        )  # of the trailing 16 bits, among the voxels with the same leading ones
        for array in arrays:
            for index in np.ndindex(*array.grid):
                order = _order(array[array.box(index)]).ravel()
                counts += np.bincount(order[order >> 16 == lead] & 0xFFFF, minlength=2**16)
        trail = int(np.searchsorted(np.cumsum(counts), rank - (below[lead] - self._counts[lead])))
        return float(_value(lead << 16 | trail, self.dtype))


def _order(values: NDArray[Any]) -> NDArray[Any]:
    """Return unsigned integers in the order of the values, from their bits."""
    if values.dtype == np.int16:
        return values.view(np.uint16) ^ np.uint16(0x8000)
    if values.dtype == np.float32:
        bits = np.ascontiguousarray(values).view(np.uint32)
        return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return values


def _leading(order: NDArray[Any]) -> NDArray[Any]:
    """Return the leading 16 bits, flat."""
    return (order >> 16 if order.dtype == np.uint32 else order).ravel()


def _value(order: int, dtype: np.dtype[Any]) -> float:
    """Return the value at a place of the order: the inverse of `_order`."""
    if dtype == np.int16:
        return float(order - 0x8000)
    if dtype == np.float32:
        bits = order & 0x7FFFFFFF if order >> 31 else ~order & 0xFFFFFFFF
        return float(np.uint32(bits).view(np.float32))
    return float(order)
