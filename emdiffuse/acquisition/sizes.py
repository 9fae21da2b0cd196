"""The voxel size of a dataset: as the source tells it, as the user states it, and both must agree.

Conventions
-----------
* Sizes are (z, y, x) in nanometers; None for an axis that nobody knows. Nothing is made up.
* Pixels are square: networks know no others.
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
    source: Source, given: Sequence[float] | None, override: bool = False, images: bool = False
) -> tuple[float, float, float]:
    """Return the voxel size (z, y, x) in nanometers: as it was given, or else as the source tells it.

    Parameters
    ----------
    source : Source
        The source.
    given : sequence of float or None
        What the user states.
    override : bool
        Whether that counts more than what the source tells.
    images : bool
        Whether these are separate images, which have no distance: it is set to the size of a pixel.

    Raises
    ------
    DataError
        If neither says it, they disagree by more than `SIZE_TOLERANCE`, or pixels are not square.
    """
    told: Size = source.voxel_size or (None, None, None)
    if given is not None:
        z, y, x = given
        if not override:
            _require_agreement(source.name, told, (z, y, x), images)
        return (z, y, x)
    z_told, y_told, x_told = told
    if y_told is None or x_told is None:
        raise DataError(f"{source.name}: it does not tell its voxel size; give `voxel_size` of the dataset")
    if abs(y_told - x_told) > SQUARE * y_told:
        raise DataError(
            f"{source.name}: its pixels are {y_told:.4g} nm high and {x_told:.4g} nm wide; only "
            "square pixels can "
            "be restored: resample it (or, if it is wrong, give `voxel_size` with `override: true`)"
        )
    pixel = (y_told + x_told) / 2 if y_told != x_told else y_told
    if z_told is None and not images:
        raise DataError(
            f"{source.name}: it tells that its pixels are {pixel:.4g} nm, but not how far its slices "
            "are apart; give "
            "`voxel_size` of the dataset"
        )
    return (pixel if images or z_told is None else z_told, pixel, pixel)


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
