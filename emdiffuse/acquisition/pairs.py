"""Image pairs to a canonical store.

Conventions
-----------
* See `emdiffuse.pairs` for the store, and `acquisition.layouts` for how files are found.
* The voxel size is that of the fixed images; moving ones have pixels `scale` times as large. Sizes are those
  of the files: pairs need not be aligned here, but a moving image must have the size of its partner, or half.
* Intensities are measured over all moving and over all fixed images of the dataset.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.acquisition.checksums import file_checksums
from emdiffuse.acquisition.layouts import Pair, find_pairs
from emdiffuse.acquisition.statistics import Statistics
from emdiffuse.atomic import replaced
from emdiffuse.errors import DataError
from emdiffuse.pairs import SCALES
from emdiffuse.progress import progress
from emdiffuse.readers import open_source
from emdiffuse.volume import Array, create_image_array, write_group, write_image

SIZE_TOLERANCE = 0.02
"""How far the ratio of the sizes of a pair may be from a scale."""

logger = logging.getLogger(__name__)


def acquire_pairs(
    folder: str,
    voxel_size: Sequence[float],
    out: Path,
    name: str,
    pattern: str | None = None,
    keep_going: bool = False,
) -> None:
    """Convert image pairs to one store, with intensity statistics and a checksum of every file.

    Parameters
    ----------
    folder : str
        Where the images are.
    voxel_size : sequence of float
        Voxel size (z, y, x) of the fixed images, in nanometers.
    out : Path
        The store to write.
    name : str
        Name of the dataset.
    pattern : str, optional
        How the files are named, if no known layout fits.
    keep_going : bool
        Whether pairs that cannot be used are left out with a warning, instead of refused.

    Raises
    ------
    DataError
        If no pairs are found, or one cannot be used: it is named.
    """
    found = find_pairs(Path(folder), pattern)
    logger.info("%s: %s", folder, found.summary())
    skipped = {}
    if found.alone:
        message = f"{folder}: {len(found.alone)} images have no partner, such as {found.alone[0]}"
        if not keep_going:
            raise DataError(f"{message}; add their partners, remove them, or say `keep_going: true`")
        logger.warning("%s; they are left out", message)
        skipped = dict.fromkeys(found.alone, "no partner")
    scale = _scale(found.pairs)
    fields: list[dict[str, Any]] = []
    used: list[Pair] = []
    statistics: dict[str, Statistics] = {}
    with replaced(out) as partial:
        for pair in progress(found.pairs, len(found.pairs), f"acquire {name}", "pair"):
            try:
                images = _read(pair, scale)
                for role, image in images.items():
                    known = statistics.setdefault(role, Statistics(image.dtype))
                    if known.dtype != image.dtype:
                        raise DataError(
                            f"{getattr(pair, role)}: its pixels are {image.dtype}, those of other {role} "
                            f"images {known.dtype}; convert them to one type"
                        )
            except DataError as error:
                if not keep_going:
                    raise
                logger.warning("%s (left out)", error)
                skipped[pair.name] = str(error)
                continue
            group = f"{len(fields):04d}"
            for role, image in images.items():
                array = create_image_array(partial / group / role / "0", (1, *image.shape), image.dtype)
                for index in np.ndindex(*array.grid):
                    box = array.box(index)
                    array[box] = image[None][box]
                statistics[role].add(image)
            fields.append({"group": group, "name": pair.name, "specimen": pair.specimen, "level": pair.level})
            used.append(pair)
        if not fields:
            raise DataError(f"{folder}: none of the {len(found.pairs)} pairs can be used; see the warnings")
        intensity = {
            role: own.intensity(folder, [Array(partial / f["group"] / role / "0") for f in fields])
            for role, own in statistics.items()
        }
        files = sorted({path for pair in used for path in (pair.moving, pair.fixed)})
        facts = {
            "stage": "acquire",
            "kind": "pairs",
            "dataset": name,
            "scale": scale,
            "intensity": intensity,
            "sources": file_checksums(files, name),
            "skipped": skipped,
        }
        z, y, x = voxel_size
        for field in fields:
            for role, size in (("moving", (z, y * scale, x * scale)), ("fixed", (z, y, x))):
                own = {"stage": "acquire", "dataset": name, "intensity": intensity[role]}
                write_image(partial / field["group"] / role, field["name"], size, own)
        write_group(partial, {"emdiffuse": {**facts, "fields": fields}})


def _scale(pairs: Sequence[Pair]) -> int:
    """Return the scale that most pairs have, from their sizes."""
    counts: Counter[int] = Counter()
    for pair in pairs[:50]:
        try:
            moving, fixed = (open_source(str(path)).shape for path in (pair.moving, pair.fixed))
        except DataError:
            continue  # named when the pair is read
        counts.update(scale for scale in SCALES if _fits(moving, fixed, scale))
    if not counts:
        raise DataError(
            f"{pairs[0].moving}: its size is neither that of {pairs[0].fixed.name} nor half of it; crop the "
            "pairs to the same field"
        )
    return counts.most_common(1)[0][0]


def _fits(moving: tuple[int, ...], fixed: tuple[int, ...], scale: int) -> bool:
    ratios = [b / a for a, b in zip(moving[1:], fixed[1:], strict=True)]
    return all(abs(ratio - scale) <= SIZE_TOLERANCE * scale for ratio in ratios)


def _read(pair: Pair, scale: int) -> dict[str, NDArray[Any]]:
    """Read the images (y, x) of a pair, and refuse what cannot be one."""
    images = {}
    for role in ("moving", "fixed"):
        path = getattr(pair, role)
        slices = open_source(str(path))
        if slices.shape[0] != 1:
            raise DataError(f"{path}: it holds {slices.shape[0]} images; an image of a pair is one")
        images[role] = slices.read(0, 1)[0]
        if images[role].min() == images[role].max():
            raise DataError(f"{path}: every pixel is {images[role].flat[0]}; there is no image")
    moving, fixed = images["moving"], images["fixed"]
    if moving.dtype != fixed.dtype:
        raise DataError(
            f"{pair.moving}: its pixels are {moving.dtype}, those of {pair.fixed.name} {fixed.dtype}; "
            "convert them to one type"
        )
    if not _fits((1, *moving.shape), (1, *fixed.shape), scale):
        sizes = [" x ".join(map(str, image.shape)) for image in (moving, fixed)]
        raise DataError(
            f"{pair.moving}: {sizes[0]} pixels beside {sizes[1]} of {pair.fixed.name}, but the other pairs "
            f"have scale {scale}; crop it to the same field"
        )
    return images
