"""The voxel size of a dataset: those of the source and of the user must agree.

Conventions
-----------
* Sizes are (z, y, x) in nanometers; None for an unknown axis. Nothing is invented.
* Pixels are square, or resampled to be, because networks are trained on square pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from emdiffuse.readers.base import Source
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

SIZE_TOLERANCE = 0.01
"""Relative tolerance between the given voxel size and that of the source."""
SQUARE = 0.01
"""Relative tolerance between y and x of a source, whose sizes are rounded."""
logger = logging.getLogger(__name__)


def agreed_voxel_size(
    source: Source,
    given: Sequence[float] | None,
    override: bool = False,
    images: bool = False,
    square: bool = True,
) -> tuple[float, float, float]:
    """Return the voxel size (z, y, x) in nanometers: the given one, or else that of the source.

    Parameters
    ----------
    source : Source
        The source.
    given : sequence of float or None
        Size given by the user; if pixels are resampled, the size after resampling.
    override : bool
        Whether `given` takes precedence over the size in the source.
    images : bool
        Whether these are separate images; their z spacing is set to the pixel size.
    square : bool
        Whether pixels must be square; false if they will be resampled.

    Raises
    ------
    DataError
        If both are unknown, they disagree by more than `SIZE_TOLERANCE`, or pixels are not square.
    """
    told: Size = source.voxel_size or (None, None, None)
    if given is None:
        return _told_size(source, told, images, square)
    z, y, x = given
    sides = [side for side in told[1:] if side is not None]
    if not (square or override) and y == x and len(sides) == 2 and abs(y - min(sides)) <= SIZE_TOLERANCE * y:
        y, x = sides  # the given size is that after resampling
    if not override:
        _require_agreement(source.name, told, (z, y, x), images)
    if square:
        _require_square(source, y, x)
    return (z, y, x)


def _told_size(source: Source, told: Size, images: bool, square: bool) -> tuple[float, float, float]:
    """Return the voxel size stated by a source."""
    z_told, y_told, x_told = told
    if y_told is None or x_told is None:
        raise DataError(
            f"{source.name}: the file does not state its voxel size; set `voxel_size` of the dataset"
        )
    if abs(y_told - x_told) <= SQUARE * y_told:
        y_told = x_told = (y_told + x_told) / 2 if y_told != x_told else y_told
    elif square:
        _require_square(source, y_told, x_told)
    if z_told is None and not images:
        raise DataError(
            f"{source.name}: the file states pixels of {y_told:.4g} nm, but not the distance between slices; "
            "set `voxel_size` of the dataset"
        )
    return (min(y_told, x_told) if images or z_told is None else z_told, y_told, x_told)


def _require_square(source: Source, y: float, x: float) -> None:
    if abs(y - x) > SQUARE * y:
        raise DataError(
            f"{source.name}: pixels are {y:.4g} nm high and {x:.4g} nm wide, but only square pixels can be "
            f"restored: set `square_pixels: true` to resample them to {min(y, x):.4g} nm, or, if the "
            "file is wrong, give `voxel_size` with `override: true`"
        )


def _require_agreement(name: str, told: Size, given: Sequence[float], images: bool) -> None:
    """Refuse a given size that disagrees with that of the source."""
    for axis, stated, own in zip("zyx", given, told, strict=True):
        if own is None or (images and axis == "z") or abs(stated - own) <= SIZE_TOLERANCE * own:
            continue
        has = " x ".join("?" if v is None else f"{v:.5g}" for v in told)
        says = " x ".join(f"{v:.5g}" for v in given)
        raise DataError(
            f"{name}: the file states a voxel of {has} nm (z, y, x), but `voxel_size` is {says} nm; correct "
            "it, remove it, or add `override: true` to it if the file is wrong"
        )
