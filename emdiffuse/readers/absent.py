"""Chunks that a store does not hold: they are damage, unless the user says that their fill value is meant.

Conventions
-----------
* A box (z, y, x) is what a chunk covers of the stack.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

from emdiffuse.config.reading import Reading
from emdiffuse.readers.base import Box
from emdiffuse.runtime.errors import DataError

SHOWN = 3
"""Chunks that a message names."""
logger = logging.getLogger(__name__)


def boxes_of(shape: Sequence[int], steps: Sequence[int]) -> Iterator[Box]:
    """Yield the boxes (z, y, x) of chunks."""
    sides = [range(0, n, step) for n, step in zip(shape, steps, strict=True)]
    for corner in itertools.product(*sides):
        z, y, x = (slice(a, min(a + step, n)) for a, step, n in zip(corner, steps, shape, strict=True))
        yield z, y, x


def accept_absent(name: str, absent: Sequence[str], chunks: int, reading: Reading) -> None:
    """Refuse chunks that are not there, unless the user says that their fill value is meant.

    Raises
    ------
    DataError
        If there are any: they are counted, and the first are named.
    """
    if not absent:
        return
    more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
    what = f"{name}: {len(absent)} of {chunks} chunks are missing ({'; '.join(absent[:SHOWN])}{more})"
    if reading.missing_chunks != "fill":
        raise DataError(
            f"{what}; copy the store again, or say `missing_chunks: fill` if they stand for its fill value"
        )
    logger.warning("%s; they are filled with the fill value, as `missing_chunks` says", what)


def box_name(box: Sequence[slice]) -> str:
    """Return a box (z, y, x) for a person."""
    return ", ".join(f"{axis} {side.start}-{side.stop}" for axis, side in zip("zyx", box, strict=True))
