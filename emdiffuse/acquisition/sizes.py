"""The voxel size of a dataset: as the source tells it, as the user states it, and both must agree.

Conventions
-----------
* Sizes are (z, y, x) in nanometers; None for an unknown axis. Nothing is invented.
* Pixels are square, or are resampled so: networks know no others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from emdiffuse.readers.base import Source
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

SIZE_TOLERANCE = 0.01
"""How far a voxel size that was given may be from what the source tells."""
SQUARE = 0.01
"""How far y may be from x in what a source tells, which is rounded."""
logger = logging.getLogger(__name__)


def agreed_voxel_size(
    source: Source,
    given: Sequence[float] | None,
    override: bool = False,
    images: bool = False,
    square: bool = True,
) -> tuple[float, float, float]:
    """Return the voxel size (z, y, x) in nanometers: as it was given, or else as the source tells it.

    Parameters
    ----------
    source : Source
        The source.
    given : sequence of float or None
        What the user states; where pixels are to be resampled, also the size that they will have.
    override : bool
        Whether that counts more than what the source tells.
    images : bool
        Whether these are separate images, which have no distance: it is set to the size of a pixel.
    square : bool
        Whether pixels must be square; those that will be resampled need not.

    Raises
    ------
    DataError
        If neither says it, they disagree by more than `SIZE_TOLERANCE`, or pixels are not square.
    """
    told: Size = source.voxel_size or (None, None, None)
    if given is None:
        return _told_size(source, told, images, square)
    z, y, x = given
    sides = [side for side in told[1:] if side is not None]
    if not (square or override) and y == x and len(sides) == 2 and abs(y - min(sides)) <= SIZE_TOLERANCE * y:
        y, x = sides  # what was given is the size after resampling
    if not override:
        _require_agreement(source.name, told, (z, y, x), images)
    if square:
        _require_square(source, y, x)
    return (z, y, x)


def _told_size(source: Source, told: Size, images: bool, square: bool) -> tuple[float, float, float]:
    """Return the size that a source tells."""
    z_told, y_told, x_told = told
    if y_told is None or x_told is None:
        raise DataError(
            f"{source.name}: the file does not give its voxel size; set `voxel_size` of the dataset"
        )
    if abs(y_told - x_told) <= SQUARE * y_told:
        y_told = x_told = (y_told + x_told) / 2 if y_told != x_told else y_told
    elif square:
        _require_square(source, y_told, x_told)
    if z_told is None and not images:
        raise DataError(
            f"{source.name}: it tells that its pixels are {y_told:.4g} nm, but not how far its slices "
            "are apart; give `voxel_size` of the dataset"
        )
    return (min(y_told, x_told) if images or z_told is None else z_told, y_told, x_told)


def _require_square(source: Source, y: float, x: float) -> None:
    if abs(y - x) > SQUARE * y:
        raise DataError(
            f"{source.name}: its pixels are {y:.4g} nm high and {x:.4g} nm wide; only square pixels can be "
            f"restored: say `square_pixels: true` to have them resampled to {min(y, x):.4g} nm, or, if the "
            "file is wrong, give `voxel_size` with `override: true`"
        )


def _require_agreement(name: str, told: Size, given: Sequence[float], images: bool) -> None:
    """Refuse a stated size that is not what the source tells."""
    for axis, stated, own in zip("zyx", given, told, strict=True):
        if own is None or (images and axis == "z") or abs(stated - own) <= SIZE_TOLERANCE * own:
            continue
        has = " x ".join("?" if v is None else f"{v:.5g}" for v in told)
        says = " x ".join(f"{v:.5g}" for v in given)
        raise DataError(
            f"{name}: its voxel is {has} nm (z, y, x), but `voxel_size` says {says} nm; correct that, "
            "leave it out, "
            "or add `override: true` to it if the file is wrong"
        )
