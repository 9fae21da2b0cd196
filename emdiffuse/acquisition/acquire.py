"""Convert raw files to canonical OME-Zarr, and make anisotropic volumes from isotropic ones.

Conventions
-----------
* Axes are (z, y, x), voxel sizes are in nanometers; values keep their stored type.
* Memory does not grow with the volume: see `streaming`. Measurements are recorded in the facts: `intensity`,
  and for a volume `missing` (see `repair`).
* The intensity range of each slice is measured here, once for all stages: see `statistics` and
  `emdiffuse.stores.intensity`.
* A volume is written beside its final path and renamed, so that later runs never trust an interrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.acquisition.checksums import checksums
from emdiffuse.acquisition.repair import fill_untrusted, find_untrusted
from emdiffuse.acquisition.sizes import SQUARE, agreed_voxel_size
from emdiffuse.acquisition.streaming import default_workers, stream, stream_source
from emdiffuse.acquisition.stripes import Destriped, find_artefacts
from emdiffuse.config.reading import Reading
from emdiffuse.config.sources import parse_source
from emdiffuse.readers import open_source
from emdiffuse.readers.base import Source
from emdiffuse.readers.resampled import SquarePixels
from emdiffuse.runtime.atomic import replaced
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.stores.array import Box, create_image_array
from emdiffuse.stores.facts import VolumeFacts
from emdiffuse.stores.intensity import cast_to
from emdiffuse.stores.provenance import listed, made_by, raw, reuse
from emdiffuse.stores.volume import open_volume, write_image

logger = logging.getLogger(__name__)


def acquire(
    source: str,
    voxel_size: Sequence[float] | None,
    out: Path,
    name: str,
    images: bool = False,
    *,
    repair: bool = False,
    stripes: bool = False,
    invert: bool = False,
    reading: Reading | None = None,
    override: bool = False,
    thickness: float = 0.0,
    workers: int | None = None,
) -> None:
    """Convert raw files to an OME-Zarr image with intensity statistics and a checksum of every file.

    Do nothing if `out` was made from the same content with the same settings.

    Parameters
    ----------
    source : str
        Any source that `readers.open_source` can open.
    voxel_size : sequence of float or None
        Voxel size (z, y, x) in nanometers; None to take it from the source.
    out : Path
        The OME-Zarr group to write.
    name : str
        Name of the dataset.
    images : bool
        Whether these are separate images, rather than the slices of a volume.
    repair : bool
        Whether damaged or missing slices of a volume are marked as missing, rather than refused.
    stripes : bool
        Whether stripes are removed where they are found.
    invert : bool
        Whether networks see the contrast inverted; stored and restored voxels are not inverted.
    reading : Reading, optional
        Which part of the source is read: series, channel, level, crop, ...
    override : bool
        Whether `voxel_size` takes precedence over that of the source.
    thickness : float
        Fraction of the slice spacing that each slice of a volume integrates over.
    workers : int, optional
        Number of threads.

    Raises
    ------
    DataError
        If the source cannot be used; `out` is then unchanged.
    StoreError
        If `out` cannot be written.
    """
    reading = reading or Reading()
    slices: Source = open_source(source, repair and not images, reading, images)
    if reading.data_bar == "auto":
        slices.look_for_data_bar()
    depth, height, width = slices.shape
    what = f"{depth} {'images' if images else 'slices'} of {height} x {width} pixels, {slices.dtype.name}"
    logger.info("%s: found %s", source, what)
    if slices.dtype != slices.stored:
        logger.info("%s: %s is stored as %s, with unchanged values", source, slices.stored, slices.dtype)
    size = agreed_voxel_size(slices, voxel_size, override, images, not reading.square_pixels)
    if abs(size[1] - size[2]) > SQUARE * size[1]:
        size, slices = (size[0], min(size[1:]), min(size[1:])), SquarePixels(slices, size)
        logger.info("%s: resampled to square pixels of %.4g nm", source, size[1])
    if slices.shape[0] < 2 and not images:
        raise DataError(
            f"{source}: there is only one slice, but a volume needs two or more; for separate "
            "images set `images: true`"
        )
    kind = "images" if images else "volume"
    settings = {
        # only the part of the source that selects within files; the files are identified by content
        "within": source.replace(parse_source(source).place, ""),
        "reading": reading.model_dump(mode="json"),
        "voxel_size": list(size),
        "thickness": thickness,
        "kind": kind,
        "repair": repair,
        "stripes": stripes,
        "invert": invert,
    }
    known = cache(lambda: checksums(slices, name))
    if reuse(
        out,
        lambda: made_by("acquire", name, settings, raw(known())),
        lambda: {"dataset": name, "sources": listed(known())},
    ):
        return
    threads = workers or default_workers()
    with replaced(out, [*slices.files, parse_source(source).place]) as partial:
        array = create_image_array(partial / "0", slices.shape, slices.dtype)
        artefacts = find_artefacts(slices)
        shown = Destriped(slices, artefacts) if stripes and artefacts else slices
        statistics = stream_source(shown, array, f"acquire {name}", threads)
        sources = checksums(slices, name)
        statistics.extremes(source)
        missing: list[int] = []
        if images:
            for z in statistics.doubtful()["blank"]:
                logger.warning("%s: this image is almost uniform", slices.where(z))
        else:
            missing = find_untrusted(slices, statistics, repair)
            fill_untrusted(array, missing)
        rows, columns = slices.valid
        facts = VolumeFacts(
            stage="acquire",
            kind="images" if images else "volume",
            dataset=name,
            made=made_by("acquire", name, settings, raw(sources)),
            sources=sources,
            thickness=0.0 if images else thickness,
            missing=tuple(missing),
            artefacts=artefacts,
            destriped=isinstance(shown, Destriped),
            intensity=statistics.intensity(source, images=images, missing=missing, invert=invert),
            # the image without the microscope's data bar
            valid=(rows.start, rows.stop, columns.start, columns.stop) if slices.bar else None,
        )
        write_image(partial, name, size, facts)


def keep_every(
    volume: Path,
    factor: int,
    out: Path,
    name: str,
    thickness: float = 0.0,
    workers: int | None = None,
) -> None:
    """Make an anisotropic volume from every factor-th slice of an acquired one, or from means of slices.

    A slice of thickness t is the mean of ``max(t * factor, 1)`` slices, beginning with slice 0, factor, 2 *
    factor, ...; the last of them is weighted by the remaining fraction.

    Parameters
    ----------
    volume : Path
        The OME-Zarr image whose slices are kept.
    factor : int
        Spacing of the kept slices, in slices; the voxel becomes longer along z by this factor.
    out : Path
        The OME-Zarr group to write.
    name : str
        Name of the new dataset.
    thickness : float
        Fraction of the new slice spacing that each kept slice integrates over, 0 to 1.
    workers : int, optional
        Number of threads.

    Raises
    ------
    DataError
        If fewer than two slices would be kept.
    StoreError
        If `volume` cannot be read or `out` cannot be written.
    """
    if factor < 2:
        raise ConfigError(f"factor: {factor} leaves nothing out; give 2 or more")
    origin = open_volume(volume)
    made = made_by("keep-every", name, {"factor": factor, "thickness": thickness}, origin.made)
    kept_of = {"kept_every": factor}
    sources = tuple(source.model_copy(update=kept_of) for source in origin.facts.sources)
    parent = origin.facts.dataset or volume.name
    names = {"dataset": name, "derived_from": parent, "sources": listed(sources)}
    if reuse(out, lambda: made, lambda: names):
        return
    depth, height, width = origin.array.shape
    window = max(thickness * factor, 1.0)
    kept = (depth - ceil(window)) // factor + 1
    weights = np.minimum(window - np.arange(ceil(window)), 1) / window
    if kept < 2:
        raise DataError(
            f"{volume}: a factor of {factor} keeps only one of {depth} slices; choose a smaller factor"
        )

    with replaced(out, [volume]) as partial:
        array = create_image_array(partial / "0", (kept, height, width), origin.array.dtype)

        def read(box: Box) -> NDArray[Any]:
            z, *sides = box
            firsts = (z.start * factor, (z.stop - 1) * factor + 1)
            parts = (
                origin.array[(slice(firsts[0] + i, firsts[1] + i, factor), *sides)]
                for i in range(len(weights))
            )
            if len(weights) == 1:
                return next(parts)
            mean = sum(weight * part for weight, part in zip(weights, parts, strict=True))
            return cast_to(np.asarray(mean), origin.array.dtype)

        statistics = stream(array, read, f"keep-every {name}", workers or default_workers(), origin.valid)
        lost = [divmod(z, factor) for z in origin.facts.missing]
        missing = sorted({z for z, rest in lost if rest < len(weights) and z < kept})
        # measured on the kept slices only: the others are ground truth and must not leak
        intensity = statistics.intensity(str(volume), missing=missing, invert=origin.intensity.invert)
        facts = VolumeFacts(
            stage="acquire",
            dataset=name,
            made=made,
            derived_from=parent,
            factor=Fraction(factor),
            thickness=thickness if len(weights) > 1 else 0.0,
            sources=sources,
            missing=tuple(missing),
            artefacts=origin.facts.artefacts,
            destriped=origin.facts.destriped,
            intensity=intensity,
            valid=origin.facts.valid,
        )
        z, y, x = origin.voxel_size
        write_image(partial, name, (z * factor, y, x), facts)
