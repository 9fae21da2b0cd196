"""Fill: pixels that show nothing, since they are all alike or no numbers.

Conventions
-----------
* Padding, the black of a data bar and saturated regions are runs of equal pixels, which an image never has
  elsewhere: a detector has noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 16
"""Equal pixels in a row, along y or x, that are fill."""


def fill(plane: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which pixels (y, x) lie in a run of `RUN` equal ones, along y or x.

    A pixel depends on those within `RUN` of it alone.
    """
    found = np.zeros(plane.shape, np.bool_)
    for values, mark in ((plane, found), (plane.T, found.T)):
        if len(values) < RUN:
            continue
        runs = values[1:] == values[:-1]  # runs[i]: that those from i on are equal; first 2, then 3, 5, 9
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
