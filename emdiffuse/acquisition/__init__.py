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

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdiffuse.acquisition.checksums import checksums
from emdiffuse.acquisition.statistics import Statistics
from emdiffuse.atomic import replaced
from emdiffuse.errors import DataError
from emdiffuse.progress import progress
from emdiffuse.readers import Source, open_source
from emdiffuse.volume import Array, create_image_array, open_volume, write_image

SLAB_MEMORY = 2**30
"""Bytes of a slab that is kept in memory."""
SIZE_TOLERANCE = 0.01
"""How far a voxel size that was given may be from what the source tells."""

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


def acquire(
    source: str, voxel_size: Sequence[float] | None, out: Path, name: str, images: bool = False
) -> None:
    """Convert raw files to an OME-Zarr image, with intensity statistics and a checksum of every file.

    Parameters
    ----------
    source : str
        Any that `readers.open_source` reads.
    voxel_size : sequence of float or None
        Voxel size (z, y, x) in nanometers; None to take it from the source.
    out : Path
        The OME-Zarr group to write.
    name : str
        Name of the dataset.
    images : bool
        Whether these are separate images, rather than the slices of a volume.

    Raises
    ------
    DataError
        If the source cannot be used; `out` is then as it was before.
    StoreError
        If `out` cannot be written.
    """
    slices = open_source(source)
    size = agreed_voxel_size(slices, voxel_size)
    if slices.shape[0] < 2 and not images:
        raise DataError(
            f"{source}: there is only one slice; a volume needs two or more; for separate "
            "images say `images: true`"
        )

    def fill(z0: int, z1: int, slab: NDArray[Any]) -> None:
        for z in range(z0, z1):
            slab[z - z0] = slices.read(z, z + 1)[0]

    with replaced(out) as partial:
        array = create_image_array(partial / "0", slices.shape, slices.dtype)
        measured = _stream(array, fill, source, f"acquire {name}")
        kind = "images" if images else "volume"
        facts = {
            "stage": "acquire",
            "kind": kind,
            "dataset": name,
            "sources": checksums(slices, name),
            **measured,
        }
        write_image(partial, name, size, facts)


def agreed_voxel_size(source: Source, given: Sequence[float] | None) -> Sequence[float]:
    """Return the voxel size (z, y, x) in nanometers: as it was given, or else as the source tells it.

    Raises
    ------
    DataError
        If neither says it, or they disagree by more than `SIZE_TOLERANCE`.
    """
    told = source.voxel_size
    if told is None and given is None:
        raise DataError(f"{source.name}: it does not tell its voxel size; give `voxel_size` of the dataset")
    if given is None or told is None:
        return given or told or ()
    if any(abs(a - b) > SIZE_TOLERANCE * b for a, b in zip(given, told, strict=True)):
        stated, own = (" x ".join(f"{v:g}" for v in size) for size in (given, told))
        raise DataError(
            f"{source.name}: its voxel is {own} nm (z, y, x), but `voxel_size` says {stated} nm; correct "
            "that, or leave it out"
        )
    return given


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
    statistics = Statistics(array.dtype)
    with _slab(array) as slab:
        for start in progress(range(0, array.shape[0], array.chunk[0]), array.grid[0], what, "slab"):
            stop = min(start + array.chunk[0], array.shape[0])
            fill(start, stop, slab[: stop - start])
            for values in slab[: stop - start]:
                statistics.add(values)
            for box in _shards(array, start, stop):
                array[box] = slab[: stop - start, box[1], box[2]]
    intensity = statistics.intensity(where, [array])
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
