"""Convert image pairs to a canonical store.

Conventions
-----------
* See `emdiffuse.stores.pairs` for the store, and `acquisition.layouts` for how files are found.
* The voxel size is that of the fixed images; moving ones have pixels `scale` times as large. Pairs need not
  be aligned, but a moving image must have the size of its partner, or half of it. One that shows twice the
  field in as many pixels is cropped to its middle half, which its partner shows.
* Scale and type are those of the majority of pairs; others cannot be used.
* Every image has its own intensity range.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from math import floor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emdiffuse.acquisition.checksums import file_checksums
from emdiffuse.acquisition.layouts import Pair, find_pairs
from emdiffuse.acquisition.sizes import agreed_voxel_size
from emdiffuse.acquisition.statistics import Statistics
from emdiffuse.readers import open_source
from emdiffuse.runtime.atomic import replaced
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.array import write_plane
from emdiffuse.stores.facts import PairField, PairsFacts, VolumeFacts
from emdiffuse.stores.pairs import SCALES, finish_pairs
from emdiffuse.stores.provenance import made_by, raw, reuse
from emdiffuse.stores.volume import write_image

SHOWN = 20
"""Maximum number of images without a partner that a message names."""
SIZE_TOLERANCE = 0.02
"""Tolerance of the ratio of the sizes of a pair."""

logger = logging.getLogger(__name__)


def acquire_pairs(
    folder: str,
    voxel_size: Sequence[float],
    out: Path,
    name: str,
    pattern: str | None = None,
    keep_going: bool = False,
    scale: int | None = None,
    invert: bool = False,
    override: bool = False,
    scans: Sequence[str] | None = None,
) -> None:
    """Convert image pairs to one store with intensity statistics and a checksum of every file.

    Parameters
    ----------
    folder : str
        Folder of the images.
    voxel_size : sequence of float
        Voxel size (z, y, x) of the fixed images, in nanometers.
    out : Path
        The store to write.
    name : str
        Name of the dataset.
    pattern : str, optional
        How the files are named, if not in a known layout.
    keep_going : bool
        Whether to skip unusable pairs with a warning, instead of refusing them.
    scale : int, optional
        Pixels of the fixed image per pixel of the moving one; by default that of most pairs.
    invert : bool
        Whether networks see the contrast inverted.
    override : bool
        Whether `voxel_size` takes precedence over that of the fixed images.
    scans : sequence of str, optional
        If there are no clean images: names of the noisy scans of each field.

    Raises
    ------
    DataError
        If no pairs are found, or one cannot be used; names it.
    """
    scale = 1 if scans else scale
    found = find_pairs(Path(folder), pattern, scale, scans)
    logger.info("%s: %s", folder, found.summary())
    settings = {
        "kind": "pairs",
        "pattern": pattern,
        "voxel_size": list(voxel_size),
        "scale": scale,
        "keep_going": keep_going,
        "invert": invert,
        **({"scans": list(scans)} if scans else {}),
    }
    files = [Path(path) for path in found.files()]
    if reuse(
        out,
        lambda: made_by("acquire", name, settings, raw(file_checksums(files, name))),
        lambda: {"dataset": name},
    ):
        return
    skipped = {}
    if found.alone:
        names = ", ".join(found.alone[:SHOWN])
        more = f" and {len(found.alone) - SHOWN} more" if len(found.alone) > SHOWN else ""
        message = f"{folder}: there is no partner for {names}{more}"
        if not keep_going:
            raise DataError(f"{message}; add the missing images, remove these, or set `keep_going: true`")
        logger.warning("%s; skipped", message)
        skipped = dict.fromkeys(found.alone, "no partner")
    scale, dtype = _usual(found.pairs, scale)
    fields: list[PairField] = []
    used: set[Path] = set()
    statistics = {role: Statistics(dtype) for role in ("moving", "fixed")}
    with replaced(out, [folder, *found.files()]) as partial:
        for pair in progress(found.pairs, len(found.pairs), f"acquire {name}", "pair"):
            try:
                images = _read_pair(pair, scale, dtype, None if override else voxel_size)
            except DataError as error:
                if not keep_going:
                    raise
                logger.warning("%s (skipped)", error)
                skipped[pair.name] = str(error)
                continue
            group = f"{len(fields):04d}"
            for role, image in images.items():
                write_plane(partial / group / role / "0", image)
                statistics[role].add_image(image)
            fields.append(PairField(group=group, name=pair.name, specimen=pair.specimen, level=pair.level))
            used |= {pair.moving, pair.fixed}
        if not fields:
            raise DataError(f"{folder}: none of the {len(found.pairs)} pairs can be used; see the warnings")
        logger.info("%s: %d of %d pairs can be used", name, len(fields), len(found.pairs))
        sources = file_checksums(files, name)
        z, y, x = voxel_size
        sizes = {"moving": (z, y * scale, x * scale), "fixed": (z, y, x)}
        write_fields(partial, fields, sizes, name, statistics, invert)
        facts = PairsFacts(
            stage="acquire",
            dataset=name,
            made=made_by("acquire", name, settings, raw(sources)),
            scale=scale,
            sources=tuple(source for source in sources if Path(source.path) in used),
            skipped=skipped,
            scans=tuple(scans) if scans else None,
            fields=tuple(fields),
        )
        finish_pairs(partial, facts)


def write_fields(
    out: Path,
    fields: Sequence[PairField],
    sizes: Mapping[str, Sequence[float]],
    name: str,
    statistics: Mapping[str, Statistics],
    invert: bool,
) -> None:
    """Write the metadata of the images of all fields, each with its intensity range.

    Parameters
    ----------
    out : Path
        The store.
    fields : sequence of PairField
        Fields, in the order of their measurement.
    sizes, statistics : mapping
        Voxel size (z, y, x) in nanometers, and statistics, of the moving and the fixed images.
    name : str
        Name of the dataset.
    invert : bool
        Whether networks see the contrast inverted.
    """
    for role, own in statistics.items():
        intensity = own.intensity(f"{name}, {role} images", images=True, invert=invert)
        for number, field in enumerate(fields):
            facts = VolumeFacts(
                stage="acquire", kind="images", dataset=name, intensity=intensity.only(number)
            )
            write_image(out / field.group / role, field.name, sizes[role], facts)


def _usual(pairs: Sequence[Pair], scale: int | None) -> tuple[Literal[1, 2], np.dtype[Any]]:
    """Return the scale (unless given) and the type of most pairs."""
    counts: Counter[tuple[Literal[1, 2], str]] = Counter()
    unread: DataError | None = None
    for pair in pairs[:50]:
        try:
            moving, fixed = (open_source(str(path)) for path in (pair.moving, pair.fixed))
        except DataError as error:
            unread = unread or error
            continue  # reported when the pair is read
        shapes = moving.shape, fixed.shape
        fitting = [s for s in SCALES if scale in (None, s) and (pair.wide or _fits(*shapes, s))]
        counts.update((s, fixed.dtype.name) for s in fitting[-1:] if moving.dtype == fixed.dtype)
    if not counts and unread:
        raise unread
    if not counts:
        wanted = {1: "that", 2: "half", None: "that, or half,"}[scale]
        raise DataError(
            f"{pairs[0].moving}: its size is not {wanted} of {pairs[0].fixed}, or its pixels have another "
            f"type; {'check `scale`, ' if scale else ''}crop the pairs to the same field, and convert them "
            "to the same type"
        )
    most, dtype = counts.most_common(1)[0][0]
    return most, np.dtype(dtype)


def _fits(moving: tuple[int, ...], fixed: tuple[int, ...], scale: int) -> bool:
    ratios = [b / a for a, b in zip(moving[1:], fixed[1:], strict=True)]
    return all(abs(ratio - scale) <= SIZE_TOLERANCE * scale for ratio in ratios)


def _read_pair(
    pair: Pair, scale: int, dtype: np.dtype[Any], size: Sequence[float] | None
) -> dict[str, NDArray[Any]]:
    """Read the images (y, x) of a pair; refuse unusable images and those with another `size` (z, y, x)."""
    images, bars = {}, []
    for role in ("moving", "fixed"):
        path = getattr(pair, role)
        slices = open_source(str(path))
        if slices.shape[0] != 1:
            raise DataError(f"{path}: expected a single image, but the file contains {slices.shape[0]}")
        if role == "fixed" and size is not None:
            agreed_voxel_size(slices, size, images=True)
        slices.look_for_data_bar()
        bars.append(slices.bar / slices.shape[1])
        images[role] = slices.read(0, 1)[0]
        if images[role].min() == images[role].max():
            raise DataError(f"{path}: every pixel is {images[role].flat[0]}; there is no image")
    if any(bars):  # crop both alike, as nothing is to be learned from a data bar
        images = {role: image[: floor(len(image) * (1 - max(bars)))] for role, image in images.items()}
    moving, fixed = images["moving"], images["fixed"]
    if moving.dtype != fixed.dtype:
        raise DataError(
            f"{pair.moving}: its pixels are {moving.dtype}, but those of {pair.fixed} are {fixed.dtype}; "
            "convert them to the same type"
        )
    if moving.dtype != dtype:
        raise DataError(
            f"{pair.moving}: its pixels are {moving.dtype}, but those of most pairs are {dtype}; convert "
            "them "
            "to the same type"
        )
    if pair.wide and _fits((1, *moving.shape), (1, *fixed.shape), 1):
        middle = tuple(slice((n - n // 2) // 2, (n - n // 2) // 2 + n // 2) for n in moving.shape)
        moving = images["moving"] = moving[middle]
    if not _fits((1, *moving.shape), (1, *fixed.shape), scale):
        sizes = [" x ".join(map(str, image.shape)) for image in (moving, fixed)]
        raise DataError(
            f"{pair.moving}: it has {sizes[0]} pixels and {pair.fixed} has {sizes[1]}, but it should have "
            f"{'as many' if scale == 1 else 'half as many a side'}; crop it to the same field"
        )
    return images
