"""Bootstrap intervals of a mean over groups of dependent values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@lru_cache(maxsize=16)
def _draws(groups: int) -> NDArray[np.float64]:
    """Return the number of times that each bootstrap sample draws each group, (RESAMPLES, groups)."""
    even = np.full(groups, 1 / groups)
    return np.random.default_rng(0).multinomial(groups, even, RESAMPLES).astype(np.float64)


def mean_interval(sums: NDArray[Any], counts: NDArray[Any]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean over all groups.

    Groups are resampled whole, since values within a group (neighbouring planes, voxels of a block) are
    not independent.

    Parameters
    ----------
    sums, counts : ndarray
        Sum and number of the values of each group.
    """
    draws = _draws(len(counts))
    low, high = np.percentile(draws @ sums / (draws @ counts), (2.5, 97.5))
    return float(low), float(high)
