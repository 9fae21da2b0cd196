"""Find damaged or missing slices of a volume, and refuse them or mark them as missing.

Conventions
-----------
* Slices are counted from 0. The fact ``missing`` of a volume lists, in order, the slices whose pixels cannot
  be trusted; they are replaced by a copy of the nearest trusted slice.
* Restoration fills them; training and the alignment check ignore them.
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
    "absent": "missing slices",
    "blank": "slices without an image",
    "repeated": "slices identical to the previous one",
    "saturated": "slices that are mostly black or white",
}
SHOWN = 20

logger = logging.getLogger(__name__)


def find_untrusted(source: Source, statistics: Statistics, repair: bool) -> list[int]:
    """Return the slices of a volume that cannot be trusted.

    Parameters
    ----------
    source : Source
        Source of the volume.
    statistics : Statistics
        Statistics of all its slices.
    repair : bool
        Whether to mark them as missing, rather than refuse them.

    Raises
    ------
    DataError
        If there are any and `repair` is false, or fewer than two others; names them.
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
            f"{source.name}: {named}; check and replace them, or set `repair: true` of the dataset to "
            "restore "
            "them"
        )
    if source.shape[0] - len(untrusted) < 2:
        raise DataError(f"{source.name}: {named}; too few other slices are left to restore them from")
    logger.warning("%s: %s; marked as missing, to be restored like gaps", source.name, named)
    return untrusted


def _names(source: Source, numbers: Sequence[int]) -> str:
    """Return the numbers of slices, with their file names if known."""
    names = [
        f"{z} ({Path(source.where(z)).name})" if source.separate and z not in source.missing else str(z)
        for z in numbers[:SHOWN]
    ]
    return ", ".join(names) + (f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else "")


def fill_untrusted(array: Array, untrusted: Sequence[int]) -> None:
    """Overwrite each untrusted slice with the nearest trusted one.

    Parameters
    ----------
    array : Array
        The volume (z, y, x); each shard with such a slice is rewritten.
    untrusted : sequence of int
        Numbers of the slices.
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
