"""Slices of a volume that cannot be trusted: found, and refused or marked as missing.

Conventions
-----------
* Slices are counted from 0. The fact ``missing`` of a volume lists, in order, those whose pixels are not to
  be trusted; in their place lies a copy of the nearest slice that is.
* Restoration fills them; training and the alignment check leave them out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emdiffuse.acquisition.statistics import Statistics
from emdiffuse.readers.base import Source
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.array import Array

REASONS = {
    "absent": "slices that are not there",
    "blank": "slices without an image",
    "repeated": "slices that repeat the one before",
    "saturated": "slices that are mostly black or white",
}
SHOWN = 20

logger = logging.getLogger(__name__)


def find_untrusted(source: Source, statistics: Statistics, repair: bool) -> list[int]:
    """Return the slices of a volume that cannot be trusted.

    Parameters
    ----------
    source : Source
        Where the volume comes from.
    statistics : Statistics
        Of all its slices.
    repair : bool
        Whether they are to be marked, rather than refused.

    Raises
    ------
    DataError
        If there are any and they are not to be marked, or fewer than two others: they are named.
    """
    found = {"absent": list(source.missing), **statistics.doubtful(source.missing)}
    untrusted = sorted(z for numbers in found.values() for z in numbers)
    if not untrusted:
        return []
    named = "; ".join(
        f"{REASONS[reason]} (counted from 0): {_names(source, numbers)}"
        for reason, numbers in found.items()
        if numbers
    )
    if not repair:
        raise DataError(
            f"{source.name}: {named}; look at them and replace them, or have them restored by `repair: true` "
            "of the dataset"
        )
    if source.shape[0] - len(untrusted) < 2:
        raise DataError(f"{source.name}: {named}; too few other slices are left to restore them from")
    logger.warning("%s: %s; marked as missing, to be restored", source.name, named)
    return untrusted


def _names(source: Source, numbers: Sequence[int]) -> str:
    """Return the numbers of slices, and of numbered files their names."""
    names = [
        f"{z} ({Path(source.where(z)).name})" if source.separate and z not in source.missing else str(z)
        for z in numbers[:SHOWN]
    ]
    return ", ".join(names) + (f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else "")


def fill_untrusted(array: Array, untrusted: Sequence[int]) -> None:
    """Copy the nearest trusted slice over each that is not.

    Parameters
    ----------
    array : Array
        The volume (z, y, x); each shard with such a slice is rewritten.
    untrusted : sequence of int
        The slices.
    """
    if not untrusted:
        return
    good = np.setdiff1d(np.arange(array.shape[0]), untrusted)
    nearest = {z: int(good[np.abs(good - z).argmin()]) for z in untrusted}
    for depth, y, x in array.boxes():
        inside = [z for z in untrusted if depth.start <= z < depth.stop]
        if inside:
            values = array[depth, y, x]
            for z in inside:
                values[z - depth.start] = array[slice(nearest[z], nearest[z] + 1), y, x][0]
            array[depth, y, x] = values
