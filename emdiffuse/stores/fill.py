"""Fill: pixels without image content, in runs of equal values.

Conventions
-----------
* Padding, the black of a data bar and saturated regions are runs of equal pixels. Elsewhere, detector noise
  prevents such runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 16
"""Length of a run of equal pixels, along y or x, that counts as fill."""


def fill(plane: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask of pixels (y, x) in a run of at least `RUN` equal ones, along y or x.

    The result at a pixel depends only on pixels within `RUN` of it.
    """
    found = np.zeros(plane.shape, np.bool_)
    for values, mark in ((plane, found), (plane.T, found.T)):
        if len(values) < RUN:
            continue
        runs = values[1:] == values[:-1]  # runs[i]: pixels from i on are equal; first 2, then 3, 5, 9
        for shift in (1, 2, 4):
            runs = runs[shift:] & runs[:-shift]
        runs = runs[7:] & runs[:-7]  # 16
        if runs.any():
            spread = np.zeros(values.shape, np.bool_)
            spread[: len(runs)] = runs
            for shift in (1, 2, 4, 8):
                spread[shift:] |= spread[:-shift].copy()
            mark |= spread
    return found
