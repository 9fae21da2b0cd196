"""Missing chunks of a store, which count as damage unless the user sets `missing_chunks: fill`.

Conventions
-----------
* A box (z, y, x) is the part of the stack that a chunk covers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from emdiffuse.config.reading import Reading
from emdiffuse.readers.base import Box, Source
from emdiffuse.readers.reasons import warn_once
from emdiffuse.runtime.errors import DataError

SHOWN = 3
"""Maximum number of chunks that a message names."""


def boxes_of(shape: Sequence[int], steps: Sequence[int], start: Sequence[int] = (0, 0, 0)) -> Iterator[Box]:
    """Yield the boxes (z, y, x) of chunks, starting at the corner of a chunk."""
    sides = [range(a, n, step) for a, n, step in zip(start, shape, steps, strict=True)]
    for corner in itertools.product(*sides):
        z, y, x = (slice(a, min(a + step, n)) for a, step, n in zip(corner, steps, shape, strict=True))
        yield z, y, x


def require_chunks(source: Source, reading: Reading) -> None:
    """Refuse a source with missing chunks, unless `missing_chunks` is ``fill``.

    Chunks outside a crop may be missing.

    Raises
    ------
    DataError
        If chunks are missing; counts them, and names the first.
    """
    if not source.absent:
        return
    missing = [_told(box) for box in source.absent]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    what = (
        f"{source.name}: {len(missing)} of {source.chunks} chunks are missing "
        f"({'; '.join(missing[:SHOWN])}{more})"
    )
    if reading.missing_chunks != "fill":
        raise DataError(
            f"{what}; copy the store again, or set `missing_chunks: fill` if they stand for its fill value"
        )
    warn_once("%s; they are read as the fill value, as set by `missing_chunks`", what)


def _told(box: Sequence[slice]) -> str:
    return ", ".join(f"{axis} {side.start}-{side.stop}" for axis, side in zip("zyx", box, strict=True))
