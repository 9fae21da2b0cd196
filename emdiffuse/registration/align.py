"""Register one pair of image files, without a workflow.

Conventions
-----------
* Written beside ``OUT.tif``: ``OUT.flow.tif`` (float32 (2, y, x): displacements (y, x) in pixels of the
  moving image, from a pixel of the result to its origin), ``OUT.mask.tif`` (uint8, 255 where both images
  show the field), ``OUT.json`` (the quality) and ``OUT.png`` (a figure).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.readers import open_source
from emdiffuse.registration.fields import averaged
from emdiffuse.registration.figures import draw_field, overlay
from emdiffuse.registration.pair import NotRegistered, register_pair
from emdiffuse.registration.raft import Flow
from emdiffuse.registration.warping import normalised
from emdiffuse.runtime.atomic import scratch
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.outputs import PROGRAM, require_free

BESIDE = ("flow.tif", "mask.tif", "json", "png")
"""Suffixes of the files written beside the warped image."""

logger = logging.getLogger(__name__)


def align(
    moving: Path,
    fixed: Path,
    out: Path,
    scale: int = 1,
    weights: str = "shipped",
    overwrite: bool = False,
) -> None:
    """Register one image to another, and write the warped image and the quality.

    Parameters
    ----------
    moving, fixed : Path
        Images in any readable format.
    out : Path
        TIFF to write.
    scale : int
        Pixels of the fixed image per pixel of the moving one, along a side.
    weights : str
        Weights of RAFT; see `raft`.
    overwrite : bool
        Whether to replace files of these names that emdiffuse did not write.

    Raises
    ------
    OutputError
        If such files exist, or an output is an input.
    ConfigError
        If the output is not a TIFF.
    DataError
        If an image cannot be read, or the two cannot be registered; nothing is written then.
    """
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"{out}: the aligned image is written as TIFF; choose a name that ends in .tif")
    stem = out.name[: -len(out.suffix)]
    for name in (out.name, *(f"{stem}.{ending}" for ending in BESIDE)):
        require_free(out.with_name(name), [moving, fixed], overwrite)
    source, target = _read_image(moving), averaged(_read_image(fixed), scale)
    try:
        result = register_pair(target, source, Flow(weights))
    except NotRegistered as error:
        raise DataError(f"{moving}: cannot be aligned to {fixed}: {error}") from None
    ncc = result.quality["ncc"]
    with scratch(out) as folder:
        tifffile.imwrite(folder / out.name, result.moving, compression="zlib", software=PROGRAM)
        tifffile.imwrite(
            folder / f"{stem}.flow.tif", result.displacement, compression="zlib", software=PROGRAM
        )
        tifffile.imwrite(
            folder / f"{stem}.mask.tif",
            result.mask.astype(np.uint8) * 255,
            compression="zlib",
            software=PROGRAM,
        )
        said = {
            "program": PROGRAM,
            "moving": str(moving),
            "fixed": str(fixed),
            "weights": weights,
            **result.quality,
        }
        write_json(folder / f"{stem}.json", said)
        box = tuple(slice(0, min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
        look = normalised(target)
        draw_field(
            f"{moving.name}: correlation {ncc['before']:.3f} before, {ncc['after']:.3f} after",
            overlay(normalised(source)[box], look[box]),
            overlay(normalised(result.moving), look)[box],
            result.displacement[:, *box],
            folder / f"{stem}.png",
        )
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):  # image last
            path.replace(out.with_name(path.name))
    moved = result.quality["displacement"]
    logger.info(
        "%s: %s; displaced by %.2f pixels (median), correlation %.3f before and %.3f after",
        out,
        "warped" if result.quality["changed"] else "already aligned, left unchanged",
        moved["median"],
        ncc["before"],
        ncc["after"],
    )


def _read_image(path: Path) -> NDArray[Any]:
    """Read one image (y, x)."""
    slices = open_source(str(path))
    if slices.shape[0] != 1:
        raise DataError(f"{path}: expected one image, but the file contains {slices.shape[0]}")
    return slices.read(0, 1)[0]
