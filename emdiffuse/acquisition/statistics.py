"""Statistics of the slices of a dataset, in one pass and bounded memory.

Conventions
-----------
* A slice may be measured in parts (boxes), in any number; parts are added in a fixed order.
* `low` and `high` are the 0.5 and 99.5 percentiles of all voxels, exact: the smallest value that so many
  voxels do not pass.
* A *doubtful* slice is blank (next to no contrast), repeats the last slice before it, or is saturated (far
  more of it than of other slices lies at its darkest or brightest value).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.volume import Array, Box

LOW, HIGH = 0.005, 0.995
ROWS = 256
"""Rows of a slice that are measured at a time."""
BLANK = 0.05
"""A slice whose standard deviation is below this share of the median slice's is blank."""
SATURATED = 0.5
"""A slice of which so much more than of the median slice lies at one end of its range is saturated."""


@dataclass
class Plane:
    """What is known of a slice, or a part of one.

    Attributes
    ----------
    count : int
        Pixels.
    mean, squares : float
        Mean, and sum of the squared deviations from it.
    lowest, highest : tuple
        Smallest and largest value, each with the number of pixels that have it.
    digest : int
        A fingerprint of the values and where they lie; those of parts are combined by exclusive or.
    """

    count: int
    mean: float
    squares: float
    lowest: tuple[float, int]
    highest: tuple[float, int]
    digest: int

    def add(self, other: Plane) -> None:
        """Take in another part of the slice (Chan et al. 1983)."""
        count, delta = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + delta**2 * self.count * other.count / count
        self.mean += delta * other.count / count
        self.count = count
        self.lowest = _extreme(self.lowest, other.lowest, min)
        self.highest = _extreme(self.highest, other.highest, max)
        self.digest ^= other.digest

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return float(np.sqrt(self.squares / self.count))

    @property
    def clipped(self) -> float:
        """Share of the pixels at one end of the range, whichever has more."""
        return max(self.lowest[1], self.highest[1]) / self.count


def _extreme(a: tuple[float, int], b: tuple[float, int], which: Any) -> tuple[float, int]:
    value = which(a[0], b[0])
    return value, sum(count for found, count in (a, b) if found == value)


@dataclass(frozen=True)
class Part:
    """What was measured of a box: its first slice, a histogram of the leading 16 bits, and its planes."""

    start: int
    counts: NDArray[np.int64]
    planes: list[Plane]


def measure(values: NDArray[Any], box: Box) -> Part:
    """Measure the values (z, y, x) of a box."""
    counts = np.zeros(2**16, np.int64)
    corner = repr([side.start for side in box[1:]]).encode()
    return Part(box[0].start, counts, [_measure_plane(plane, corner, counts) for plane in values])


def _measure_plane(plane: NDArray[Any], corner: bytes, counts: NDArray[np.int64]) -> Plane:
    mean, squares, digest = float(plane.mean(dtype=np.float64)), 0.0, hashlib.blake2b(corner, digest_size=16)
    lowest, highest = plane.min(), plane.max()
    ends = [0, 0]
    for start in range(0, len(plane), ROWS):
        rows = np.ascontiguousarray(plane[start : start + ROWS])
        deviations = np.subtract(rows, mean, dtype=np.float64).ravel()
        squares += float(deviations @ deviations)
        found = np.bincount(_leading(_order(rows)))
        counts[: len(found)] += found
        digest.update(rows.data)
        ends = [ends[0] + int((rows == lowest).sum()), ends[1] + int((rows == highest).sum())]
    number = int.from_bytes(digest.digest(), "big")
    return Plane(plane.size, mean, squares, (float(lowest), ends[0]), (float(highest), ends[1]), number)


class Statistics:
    """Statistics of a volume: of each slice, and a histogram of all voxels by their leading 16 bits."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._counts = np.zeros(2**16, np.int64)
        self._planes: dict[int, Plane] = {}

    def add(self, part: Part) -> None:
        """Take in the next part."""
        self._counts += part.counts
        for z, plane in enumerate(part.planes, part.start):
            if z in self._planes:
                self._planes[z].add(plane)
            else:
                self._planes[z] = plane

    def add_image(self, image: NDArray[Any]) -> None:
        """Take in an image (y, x) as the next slice."""
        z = len(self._planes)
        self.add(measure(image[None], (slice(z, z + 1), slice(0, None), slice(0, None))))

    def doubtful(self, missing: Collection[int] = ()) -> dict[str, list[int]]:
        """Return the numbers of the slices that are blank, repeated or saturated, each in one list.

        Parameters
        ----------
        missing : collection of int
            Slices that are known to be missing, and are not looked at.
        """
        known = {z: plane for z, plane in sorted(self._planes.items()) if z not in missing}
        contrast = BLANK * float(np.median([plane.deviation for plane in known.values()]))
        clipped = SATURATED + float(np.median([plane.clipped for plane in known.values()]))
        found: dict[str, list[int]] = {"blank": [], "repeated": [], "saturated": []}
        last = None
        for z, plane in known.items():
            if plane.deviation <= contrast:
                found["blank"].append(z)
            elif plane.digest == last:
                found["repeated"].append(z)
            elif plane.clipped > clipped:
                found["saturated"].append(z)
            last = plane.digest
        return found

    def intensity(self, where: str, arrays: Sequence[Array]) -> dict[str, float]:
        """Return the intensity facts of all slices, which were written to `arrays`.

        Raises
        ------
        DataError
            If all voxels have the same value.
        """
        whole = Plane(0, 0.0, 0.0, (np.inf, 0), (-np.inf, 0), 0)
        for _, plane in sorted(self._planes.items()):
            whole.add(plane)
        minimum, maximum = whole.lowest[0], whole.highest[0]
        if minimum == maximum:
            raise DataError(f"{where}: every voxel is {minimum:g}; there is no image in it")
        low, high = (self._percentile(share, arrays) for share in (LOW, HIGH))
        if low == high:  # nearly all voxels are alike: the robust range is empty
            low, high = minimum, maximum
        return {
            "minimum": minimum,
            "maximum": maximum,
            "mean": whole.mean,
            "standard_deviation": whole.deviation,
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
