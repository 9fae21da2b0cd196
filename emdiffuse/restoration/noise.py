"""Noise that depends only on global voxel positions, so that overlapping tiles start from the same noise.

Conventions
-----------
* Axes are (z, y, x). Noise is a function of (seed, sample, step, global position), drawn by the counter-based
  generator Philox 4x64-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405) in cells of 1 x 64 x 64 voxels.
* The bits of every value are fixed, on any device: uniform words become normal values (Box & Muller 1958, doi
  10.1214/aoms/1177706645) using only additions, multiplications and square roots, which IEEE 754 rounds the
  same way everywhere. Library logarithms and cosines differ in the last bit between CPU and GPU.
* `emdiffuse.restoration.device_noise` draws the same bits on a GPU.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

NOISE_CELL = 64
CELL_WORDS = NOISE_CELL**2 // 2
"""Number of 64-bit words of a cell; each gives two values."""
OFFSET = 2**31
"""Offset added to positions, which may be negative (padding)."""

# single-precision polynomials of Cephes, highest power first, accurate to one unit in the last place
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
LOG_2 = (0.693359375, -2.12194440e-4)
"""Logarithm of 2, split into a float32 whose product with an exponent is exact, and the remainder."""
SQRT_HALF = 0.70710678118654752

Values = TypeVar("Values", NDArray[np.float32], Any)


def noise_field(
    seed: int, sample: int, step: int, origin: tuple[int, int, int], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return standard normal noise that depends only on seed, sample, step and global position.

    Parameters
    ----------
    seed, sample, step : int
        Identify the noise; non-negative, sample and step below 2**32.
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
            cells = _cells(seed, sample, step, range(oz, oz + nz), cy, cx)
            field[:, ys.start - oy : ys.stop - oy, xs.start - ox : xs.stop - ox] = cells[
                :, ys.start - top : ys.stop - top, xs.start - left : xs.stop - left
            ]
    return field


def _cells(seed: int, sample: int, step: int, zs: range, cy: int, cx: int) -> NDArray[np.float32]:
    """Return the cells of a column of slices, (len(zs), 64, 64)."""
    words = np.empty((len(zs), CELL_WORDS), np.uint64)
    for row, z in zip(words, zs, strict=True):
        counter = [0, z + OFFSET, (cy + OFFSET) << 32 | (cx + OFFSET), sample << 32 | step]
        row[:] = np.random.Philox(key=seed, counter=np.array(counter, np.uint64)).random_raw(CELL_WORDS)
    first, second = np.moveaxis(words.view("<u4").reshape(len(zs), 2, -1), 1, 0)
    mantissa, exponent = np.frexp((first.astype(np.float32) + 1) * np.float32(2**-32))
    radius = np.sqrt(-2 * logarithm(mantissa, exponent.astype(np.float32), np.where))
    second = second + np.uint32(2**29)  # wraps around: a full turn is 2**32, and quarters are centred on 0
    angle = ((second & (2**30 - 1)).astype(np.int32) - 2**29).astype(np.float32)
    quarter = second >> np.uint32(30)
    cosine, sine = turned(*circle(angle * np.float32(np.pi * 2**-31)), quarter, np.where)
    return np.concatenate([radius * cosine, radius * sine], 1).reshape(len(zs), NOISE_CELL, NOISE_CELL)


def polynomial(x: Values, coefficients: tuple[float, ...]) -> Values:
    """Return a polynomial by Horner's scheme, highest power first; each operation is rounded separately."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def logarithm(mantissa: Values, exponent: Values, where: Any) -> Values:
    """Return the natural logarithm of ``mantissa * 2**exponent``, the mantissa in [1/2, 1).

    Parameters
    ----------
    mantissa, exponent : ndarray or Tensor
        float32, as returned by `frexp`.
    where : callable
        ``numpy.where`` or ``torch.where``.
    """
    low = mantissa < SQRT_HALF
    x = where(low, mantissa + mantissa, mantissa) - 1
    exponent = where(low, exponent - 1, exponent)
    square = x * x
    value = polynomial(x, _LOG) * x * square + exponent * LOG_2[1] - square * 0.5
    return x + value + exponent * LOG_2[0]


def circle(angle: Values) -> tuple[Values, Values]:
    """Return cosine and sine of angles in [-pi / 4, pi / 4]."""
    square = angle * angle
    cosine = polynomial(square, _COSINE) * square * square - square * 0.5 + 1
    return cosine, polynomial(square, _SINE) * square * angle + angle


def turned(cosine: Values, sine: Values, quarter: Any, where: Any) -> tuple[Values, Values]:
    """Rotate points on a circle by 0 to 3 quarter turns, which is exact."""
    odd = (quarter == 1) | (quarter == 3)
    x, y = where(odd, -sine, cosine), where(odd, cosine, sine)
    back = quarter >= 2
    return where(back, -x, x), where(back, -y, y)
