"""Raw files to canonical OME-Zarr, and anisotropic volumes made from isotropic ones.

Conventions
-----------
* Axes are (z, y, x), voxel sizes are in nanometers; values keep the type they were stored with.
* Memory is that of a slab of the depth of a shard, or of one slice and one shard where a slab is larger than
  `SLAB_MEMORY`: the slab then lies in a scratch file beside the store.
* `intensity` is measured on the whole volume. Its `low` and `high` are the 0.5 and 99.5 percentiles, exact
  (the smallest value that so many voxels do not pass); all stages map them to -1 and 1; nothing is clipped.
* A volume is written beside its place and renamed: an interrupted run leaves nothing that a later one trusts.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdiffuse.atomic import replaced
from emdiffuse.errors import DataError
from emdiffuse.progress import progress
from emdiffuse.readers import Slices, open_source
from emdiffuse.volume import Array, create_image_array, open_volume, write_image

LOW, HIGH = 0.005, 0.995
SLAB_MEMORY = 2**30
"""Bytes of a slab that is kept in memory."""
ROWS = 256
"""Rows of a slice that are measured at a time."""
BLANK = 0.05
"""A slice whose standard deviation is below this share of the median slice's is blank."""

logger = logging.getLogger(__name__)
Fill = Callable[[int, int, NDArray[Any]], None]
"""Writes the slices z0 to z1 - 1 into an array (z, y, x)."""


def to_unit(values: ArrayLike, intensity: Mapping[str, float]) -> NDArray[np.float32]:
    """Map intensities so that `low` becomes -1 and `high` becomes 1, without clipping.

    Parameters
    ----------
    values : array_like
        Intensities, of any shape and type.
    intensity : mapping
        The intensity facts of the volume.

    Returns
    -------
    ndarray
        float32, of the same shape.
    """
    low, high = intensity["low"], intensity["high"]
    return (np.asarray(values, np.float32) - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)


def from_unit(values: ArrayLike, intensity: Mapping[str, float]) -> NDArray[np.float32]:
    """Map -1 to `low` and 1 to `high`: the inverse of `to_unit`, as float32, neither rounded nor clipped."""
    low, high = intensity["low"], intensity["high"]
    return (np.asarray(values, np.float32) + np.float32(1)) * np.float32((high - low) / 2) + np.float32(low)


def acquire(source: str, voxel_size: Sequence[float], out: Path, name: str) -> None:
    """Convert raw files to an OME-Zarr image, with intensity statistics and a checksum of every file.

    Parameters
    ----------
    source : str
        A multi-page TIFF, a folder of numbered slices, or a glob of them.
    voxel_size : sequence of float
        Voxel size (z, y, x) in nanometers.
    out : Path
        The OME-Zarr group to write.
    name : str
        Name of the dataset.

    Raises
    ------
    DataError
        If the source cannot be used; `out` is then as it was before.
    StoreError
        If `out` cannot be written.
    """
    slices = open_source(source)

    def fill(z0: int, z1: int, slab: NDArray[Any]) -> None:
        for z in range(z0, z1):
            slab[z - z0] = slices.read(z, z + 1)[0]

    with replaced(out) as partial:
        array = create_image_array(partial / "0", slices.shape, slices.dtype)
        measured = _stream(array, fill, source, f"acquire {name}")
        facts = {"stage": "acquire", "dataset": name, "sources": _checksums(slices, name), **measured}
        write_image(partial, name, voxel_size, facts)


def keep_every(volume: Path, factor: int, out: Path, name: str) -> None:
    """Make an anisotropic volume by keeping the slices 0, factor, 2 * factor, ... of an acquired one.

    Parameters
    ----------
    volume : Path
        The OME-Zarr image whose slices are kept.
    factor : int
        Distance of kept slices, in slices; the voxel becomes as many times longer along z.
    out : Path
        The OME-Zarr group to write.
    name : str
        Name of the new dataset.

    Raises
    ------
    DataError
        If fewer than two slices would be kept.
    StoreError
        If `volume` cannot be read or `out` cannot be written.
    """
    if factor < 2:
        raise ValueError(f"factor {factor} leaves nothing out")
    origin = open_volume(volume)
    depth, height, width = origin.array.shape
    kept = -(-depth // factor)
    if kept < 2:
        raise DataError(
            f"{volume}: of {depth} slices only one is kept by a factor of {factor}; choose a smaller one"
        )

    with replaced(out) as partial:
        array = create_image_array(partial / "0", (kept, height, width), origin.array.dtype)

        def fill(z0: int, z1: int, slab: NDArray[Any]) -> None:
            for _, ys, xs in _shards(array, z0, z1):
                slab[:, ys, xs] = origin.array[slice(z0 * factor, (z1 - 1) * factor + 1, factor), ys, xs]

        facts = {
            "stage": "acquire",
            "dataset": name,
            "derived_from": origin.facts.get("dataset", volume.name),
            "factor": factor,
            "sources": origin.facts.get("sources", []),
            **_stream(array, fill, str(volume), f"keep-every {name}"),
        }
        z, y, x = origin.voxel_size
        write_image(partial, name, (z * factor, y, x), facts)


def _stream(array: Array, fill: Fill, where: str, what: str) -> dict[str, Any]:
    """Fill an image array slab by slab, and measure its intensities and doubtful slices on the way.

    Returns
    -------
    dict
        The facts `intensity` and `suspect_slices`.
    """
    statistics = _Statistics(array.dtype)
    with _slab(array) as slab:
        for start in progress(range(0, array.shape[0], array.chunk[0]), array.grid[0], what, "slab"):
            stop = min(start + array.chunk[0], array.shape[0])
            fill(start, stop, slab[: stop - start])
            for values in slab[: stop - start]:
                statistics.add(values)
            for box in _shards(array, start, stop):
                array[box] = slab[: stop - start, box[1], box[2]]
    intensity = statistics.intensity(where, array)
    suspect = statistics.suspect_slices()
    for reason, numbers in suspect.items():
        if numbers:
            shown = ", ".join(str(n) for n in numbers[:10]) + (", ..." if len(numbers) > 10 else "")
            logger.warning("%s: %s (counted from 0): %s; check them", where, _SUSPECT[reason], shown)
    return {"intensity": intensity, "suspect_slices": suspect}


def _shards(array: Array, start: int, stop: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the boxes of the shards of one slab."""
    for index in np.ndindex(*array.grid[1:]):
        _, ys, xs = array.box((0, *index))
        yield slice(start, stop), ys, xs


@contextmanager
def _slab(array: Array) -> Iterator[NDArray[Any]]:
    """Yield room for a slab: memory, or a scratch file in the folder of the store when it is large."""
    shape = (min(array.chunk[0], array.shape[0]), *array.shape[1:])
    size = int(np.prod(shape)) * array.dtype.itemsize
    if size <= SLAB_MEMORY:
        yield np.empty(shape, array.dtype)
        return
    path = array.path.with_name("slab.scratch")
    try:
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, and not a signal later
        yield np.memmap(path, array.dtype, "r+", shape=shape)
    finally:
        path.unlink(missing_ok=True)


_SUSPECT = {"blank": "slices without an image", "repeated": "slices that repeat the one before"}


class _Statistics:
    """Statistics of a volume, slice by slice: moments, and a histogram of the leading 16 bits."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
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

    def intensity(self, where: str, array: Array) -> dict[str, float]:
        """Return the intensity facts of the volume, which was written to `array`.

        Raises
        ------
        DataError
            If all voxels have the same value.
        """
        minima, maxima, means, deviations = np.array(self._slices).T
        minimum, maximum = float(minima.min()), float(maxima.max())
        if minimum == maximum:
            raise DataError(f"{where}: every voxel is {minimum:g}; there is no image in this volume")
        mean = float(means.mean())
        low, high = (self._percentile(share, array) for share in (LOW, HIGH))
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

    def _percentile(self, share: float, array: Array) -> float:
        """Return the smallest value that at least a share of all voxels does not pass, by radix selection."""
        below = np.cumsum(self._counts)
        rank = int(np.ceil(share * below[-1]))
        lead = int(np.searchsorted(below, rank))
        if self._dtype.itemsize < 4:
            return float(_value(lead, self._dtype))
        counts = np.zeros(
            2**16, np.int64
        )  # of the trailing 16 bits, among the voxels with the same leading ones
        for index in np.ndindex(*array.grid):
            order = _order(array[array.box(index)]).ravel()
            counts += np.bincount(order[order >> 16 == lead] & 0xFFFF, minlength=2**16)
        trail = int(np.searchsorted(np.cumsum(counts), rank - (below[lead] - self._counts[lead])))
        return float(_value(lead << 16 | trail, self._dtype))


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


def _checksums(slices: Slices, name: str) -> list[dict[str, Any]]:
    """Return path, size and SHA-256 of every source file."""
    sources = []
    for path in progress(slices.files, len(slices.files), f"checksums {name}", "file"):
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                sources.append(
                    {"path": str(path), "bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
                )
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
            ) from None
    return sources
