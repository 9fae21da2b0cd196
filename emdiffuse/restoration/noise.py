"""Noise that depends on global voxel positions alone, so that overlapping tiles begin from the same.

Conventions
-----------
* Axes are (z, y, x). Noise is a function of (seed, sample, step, global position): drawn by Philox (Salmon et
  al. 2011, doi 10.1145/2063384.2063405) in cells of 1 x 64 x 64 voxels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOISE_CELL = 64


def noise_field(
    seed: int, sample: int, step: int, origin: tuple[int, int, int], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return standard normal noise that depends on global positions alone.

    Parameters
    ----------
    seed, sample, step : int
        What makes it different from other noise: non-negative; sample and step below 2**32.
    origin : tuple of int
        First voxel (z, y, x); may be negative (padding).
    shape : tuple of int
        Shape (z, y, x).

    Returns
    -------
    ndarray
        float32, independent standard normal values; two calls agree wherever their boxes overlap.
    """
    field = np.empty(shape, np.float32)
    (oz, oy, ox), (nz, ny, nx) = origin, shape
    for cy in range(oy // NOISE_CELL, -(-(oy + ny) // NOISE_CELL)):
        for cx in range(ox // NOISE_CELL, -(-(ox + nx) // NOISE_CELL)):
            top, left = cy * NOISE_CELL, cx * NOISE_CELL
            ys = slice(max(top, oy), min(top + NOISE_CELL, oy + ny))
            xs = slice(max(left, ox), min(left + NOISE_CELL, ox + nx))
            for z in range(nz):
                cell = _noise_cell(seed, sample, step, oz + z, cy, cx)
                field[z, ys.start - oy : ys.stop - oy, xs.start - ox : xs.stop - ox] = cell[
                    ys.start - top : ys.stop - top, xs.start - left : xs.stop - left
                ]
    return field


def _noise_cell(seed: int, sample: int, step: int, z: int, cy: int, cx: int) -> NDArray[np.float32]:
    """Return one cell: Philox words, two uniforms each, through the Box-Muller transform."""
    offset = 2**31
    counter = [0, z + offset, (cy + offset) << 32 | (cx + offset), sample << 32 | step]
    words = np.random.Philox(key=seed, counter=np.array(counter, np.uint64)).random_raw(NOISE_CELL**2 // 2)
    first, second = words.view(np.uint32).reshape(2, -1).astype(np.float32)
    radius = np.sqrt(-2 * np.log((first + 1) * np.float32(2**-32)))
    angle = second * np.float32(2**-31 * np.pi)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).reshape(NOISE_CELL, NOISE_CELL)
