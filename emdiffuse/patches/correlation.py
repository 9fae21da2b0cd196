"""Measure the noise correlation of neighbouring pixels from noisy images alone.

Conventions
-----------
* The correlation along x is measured in second differences along y: these remove nearly all structure, which
  is smooth from line to line, but not the correlation along x, if the noise of lines is independent. The same
  holds with x and y exchanged.
* Only the flattest blocks of an image count, in which little structure remains: those whose local means vary
  least.
* SEM noise is often correlated along the fast scan axis, x, because the detector lags behind. A hidden pixel,
  including its noise, can then be predicted from its neighbours, so a blind spot must extend as far as the
  correlation (Broaddus et al. 2020, doi 10.1109/ISBI45749.2020.9098336).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from emdiffuse.stores.facts import NoiseCorrelation

LAGS = 8
"""Largest distance at which the correlation is measured, in pixels."""
BLOCK = 32
"""Side of the blocks of an image, in pixels."""
FLAT = 0.25
"""Fraction of the blocks that counts."""
LEAST = 0.1
"""Correlation that a blind spot must cover; below it, less than 1 % of the noise variance is predictable."""


def noise_correlation(images: Iterable[NDArray[np.float32]]) -> NoiseCorrelation:
    """Measure the correlation of the noise at distances of 1 to `LAGS` pixels, along y and along x.

    Parameters
    ----------
    images : iterable of ndarray
        Noisy images (H, W), in any unit; those smaller than a block are ignored.

    Returns
    -------
    NoiseCorrelation
        Correlations along y and x; zeros if nothing could be measured.
    """
    sums = np.zeros((2, LAGS + 1))
    for image in images:
        flat = _flat_blocks(image)
        for axis, blocks in enumerate((flat.transpose(0, 2, 1), flat)):
            sums[axis] += _autocovariance(np.diff(blocks, 2, axis=1))
    variance = np.where(sums[:, :1] > 0, sums[:, :1], 1)
    along_y, along_x = (tuple(float(round(value, 4)) for value in row) for row in (sums / variance)[:, 1:])
    return NoiseCorrelation(y=along_y, x=along_x)


def reach(correlation: tuple[float, ...]) -> int:
    """Return the distance in pixels up to which the correlation is continuously at least `LEAST`."""
    count = 0
    while count < len(correlation) and correlation[count] >= LEAST:
        count += 1
    return count


def _flat_blocks(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the flattest blocks of an image, (N, BLOCK, BLOCK)."""
    rows, columns = (side // BLOCK for side in image.shape)
    parts = image[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    blocks = parts.transpose(0, 2, 1, 3).reshape(-1, BLOCK, BLOCK)
    means = blocks.reshape(-1, BLOCK // 8, 8, BLOCK // 8, 8).mean((2, 4))
    order = np.argsort(means.std((1, 2)))
    return blocks[order[: max(round(FLAT * len(blocks)), 1)]]


def _autocovariance(blocks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean products of values 0 to `LAGS` apart along the last axis."""
    values = blocks.astype(np.float64)
    width = values.shape[2]
    return np.array(
        [(values[:, :, lag:] * values[:, :, : width - lag]).sum() / (width - lag) for lag in range(LAGS + 1)]
    )
