"""How far the noise of neighbouring pixels is correlated, measured in a noisy image alone.

Conventions
-----------
* Along x it is measured in second differences along y: they take away nearly all structure, which is smooth
  from line to line, and leave the correlation along x of noise whose lines are independent. Along y it is the
  other way round.
* Only the flattest blocks of an image count, where little structure is left: those whose local means differ
  least.
* The noise of SEM is often correlated along the fast axis of the scan, x, since the detector lags behind. A
  hidden pixel can then be guessed from those beside it, noise and all, so that a blind spot must reach as far
  as the correlation (Broaddus et al. 2020, doi 10.1109/ISBI45749.2020.9098336).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from emdiffuse.stores.facts import NoiseCorrelation

LAGS = 8
"""Pixels that the correlation is measured over."""
BLOCK = 32
"""Side of the blocks that an image is cut into."""
FLAT = 0.25
"""Share of the blocks that counts."""
LEAST = 0.1
"""Correlation that a blind spot must cover: less predicts 1 % of the variance of the noise, its square."""


def noise_correlation(images: Iterable[NDArray[np.float32]]) -> NoiseCorrelation:
    """Measure the correlation of the noise at distances of 1 to `LAGS` pixels, along y and along x.

    Parameters
    ----------
    images : iterable of ndarray
        Noisy images (H, W), in any unit; those smaller than a block add nothing.

    Returns
    -------
    NoiseCorrelation
        Zeros where nothing could be measured.
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
    """Return over how many pixels noise is correlated by `LEAST` or more, without a gap."""
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
    """Return the summed products of values 0 to `LAGS` apart along the last axis, each by its count."""
    values = blocks.astype(np.float64)
    width = values.shape[2]
    return np.array(
        [(values[:, :, lag:] * values[:, :, : width - lag]).sum() / (width - lag) for lag in range(LAGS + 1)]
    )
