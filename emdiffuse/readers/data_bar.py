"""Detection of the data bar that scanning microscopes write below an image.

Conventions
-----------
* Rows are counted from the bottom; 0 means that there is none.
* Metadata take precedence (FEI and Thermo Fisher, TESCAN, JEOL). Without them a bar is detected by its
  appearance: text and lines of one grey on another, over the whole width, below an image with many greys.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.readers.tiff_sizes import jeol_properties, tescan_properties

LEAST_ROWS = 12
LARGEST_SHARE = 0.25
"""Maximum height of a bar detected by appearance, as a fraction of the image height."""
FLAT = 0.55
"""Minimum fraction of a bar's pixels with its most common grey."""
TWO_TONES = 0.75
"""Minimum fraction with the two most common greys; anti-aliased text has some in between."""
LINE = 0.98
"""Minimum fraction of one grey in the line above a bar."""
IMAGE_TONE = 0.3
"""Maximum fraction of one grey in an image."""


def bar_of_tiff(tif: Any, file: Path, height: int) -> int:
    """Return the rows of a data bar from a TIFF's metadata; 0 if they mention none."""
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError, OSError):
        if tif.fei_metadata:
            said = tif.fei_metadata
            rows = int(said.get("PrivateFei", {}).get("DatabarHeight", 0) or 0)
            image = int(said.get("Image", {}).get("ResolutionY", 0) or 0)
            return _sensible(height - image if image else rows, height)
        if tescan := tescan_properties(tif, file):
            return _sensible(int(tescan.get("ImageStripSize", 0)), height)
        if jeol := jeol_properties(file):
            return _sensible(height - int(jeol["CM_FULL_SIZE"].split()[1]), height)
    return 0


def _sensible(rows: int, height: int) -> int:
    return rows if 0 < rows < height / 2 else 0


def bar_by_look(plane: NDArray[Any]) -> int:
    """Return the number of rows of a data bar, detected in the pixels (y, x) of an image.

    A row belongs to a bar if most of it has one grey; a few rows of text, with more greys, are tolerated. A
    bar has two greys (a band of one grey is padding), and the image above it has many.
    """
    if plane.dtype.kind not in "iu" or min(plane.shape) < 4 * LEAST_ROWS:
        return 0
    height = plane.shape[0]
    most = int(LARGEST_SHARE * height)
    bottom = plane[height - most :]
    background = _commonest(bottom[-LEAST_ROWS:])[0]
    flat = (bottom == background).mean(axis=1)
    rows = 0
    for count, share in enumerate(flat[::-1], 1):
        if share >= FLAT:
            rows = count
        elif count - rows > LEAST_ROWS:
            break
    if rows < LEAST_ROWS or rows >= most:
        return 0
    rows += _line_above(plane, height - rows)
    bar, above = plane[height - rows :], plane[: height - rows]
    tones = _commonest(bar)
    share = [float((bar == tone).mean()) for tone in tones[:2]]
    contrasts = len(tones) > 1 and share[1] > 0.002 and sum(share) >= TWO_TONES
    many = max(float((above[-most:] == tone).mean()) for tone in _commonest(above[-most:])[:1]) <= IMAGE_TONE
    return rows if contrasts and many else 0


def _line_above(plane: NDArray[Any], first: int) -> int:
    """Return how many rows above a bar form a line of one grey, apart from its ends."""
    count = 0
    while count < 4 and first - count > 0:
        row = plane[first - count - 1]
        if (row == _commonest(row)[0]).mean() < LINE:
            break
        count += 1
    return count


def _commonest(values: NDArray[Any]) -> list[Any]:
    """Return the greys of an image, most common first."""
    greys, counts = np.unique(values, return_counts=True)
    return list(greys[np.argsort(counts)[::-1]])
