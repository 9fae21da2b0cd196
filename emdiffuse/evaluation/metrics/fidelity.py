"""Fidelity: how far the intensities of an image are from the truth's, a pixel or a window at a time.

Conventions
-----------
* See `evaluation.metrics`. SSIM and MS-SSIM share one window: a Gaussian of 1.5 pixels, cut at 11 x 11.
"""

from __future__ import annotations

from math import inf, log10, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[Any]
Map = NDArray[np.float64]

SSIM_RADIUS = 5
"""Half width of SSIM's window (11 x 11 pixels), in pixels."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's scales, from fine to coarse."""


def psnr_of(mean_squared_error: float, data_range: float) -> float:
    """Return the peak signal-to-noise ratio of a mean squared error, in dB: infinite when it is zero."""
    return 10 * log10(data_range**2 / mean_squared_error) if mean_squared_error > 0 else inf


def psnr(image: Image, truth: Image, data_range: float) -> float:
    """Return the peak signal-to-noise ratio: 10 log10(data_range**2 / mean squared error).

    Parameters
    ----------
    image, truth : ndarray
        Equal shapes, any dimension.
    data_range : float
        Range of intensities.

    Returns
    -------
    float
        In dB; infinite for identical images.
    """
    return psnr_of(float(np.mean((image.astype(np.float64) - truth) ** 2)), data_range)


def nrmse(image: Image, truth: Image) -> float:
    """Return the root mean squared error divided by the root mean square of the truth.

    Returns
    -------
    float
        Without unit: 0 for identical images, infinite when only the truth is all zeros.
    """
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    power = float(np.mean(truth.astype(np.float64) ** 2))
    return sqrt(error / power) if power > 0 else (0.0 if error == 0 else inf)


def ssim_map(image: Image, truth: Image, data_range: float, axes: tuple[int, int] = (-2, -1)) -> Map:
    """Return the structural similarity around every pixel.

    Gaussian window of sigma 1.5 cut at 11 x 11 pixels, K1 = 0.01, K2 = 0.03, variances without Bessel's
    correction.

    Parameters
    ----------
    image, truth : ndarray
        Equal shapes; planes along `axes`, other axes stack them.
    data_range : float
        Range of intensities.
    axes : tuple of int
        The two axes that span a plane.

    Returns
    -------
    ndarray
        float64, same shape, values in [-1, 1]. Images are continued by reflection at their edges.

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli 2004, doi 10.1109/TIP.2003.819861.
    """
    luminance, contrast = _ssim_terms(image, truth, data_range, axes)
    return luminance * contrast


def _ssim_terms(image: Image, truth: Image, data_range: float, axes: tuple[int, int]) -> tuple[Map, Map]:
    """Return the two factors of SSIM around every pixel: luminance, and contrast with structure."""
    a, b = image.astype(np.float64), truth.astype(np.float64)

    def blur(values: Map) -> Map:
        smooth: Map = ndimage.gaussian_filter(values, 1.5, axes=axes, radius=SSIM_RADIUS)
        return smooth

    mean_a, mean_b = blur(a), blur(b)
    covariance = blur(a * b) - mean_a * mean_b
    variances = blur(a * a + b * b) - mean_a**2 - mean_b**2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def inside(length: int) -> slice:
    """Return the pixels along an axis whose SSIM window lies within it; all, when it is too short."""
    return slice(SSIM_RADIUS, length - SSIM_RADIUS) if length > 2 * SSIM_RADIUS else slice(0, length)


def ssim(image: Image, truth: Image, data_range: float) -> float:
    """Return the mean of `ssim_map` over the pixels whose window lies within the image.

    Returns
    -------
    float
        Without unit, at most 1: identical images.
    """
    rows, columns = (inside(n) for n in truth.shape)
    return float(ssim_map(image, truth, data_range)[rows, columns].mean())


def ms_ssim(image: Image, truth: Image, data_range: float) -> float:
    """Return the multi-scale structural similarity of two planes.

    The product, over scales, of the mean contrast and structure of SSIM to the power of `SCALE_WEIGHTS`,
    times luminance at the coarsest scale; from scale to scale planes are averaged over 2 x 2 pixels. Negative
    means count as 0. Planes below 176 pixels a side have fewer scales, whose weights are scaled to sum 1.

    Parameters
    ----------
    image, truth : ndarray
        Planes of equal shape.
    data_range : float
        Range of intensities.

    Returns
    -------
    float
        Without unit, in [0, 1]; 1 for identical images.

    References
    ----------
    Wang, Simoncelli and Bovik 2003, doi 10.1109/ACSSC.2003.1292216.
    """
    a, b = image.astype(np.float64), truth.astype(np.float64)
    window = 2 * SSIM_RADIUS + 1
    count = max(1, sum(min(a.shape) >> scale >= window for scale in range(len(SCALE_WEIGHTS))))
    factors = []
    for scale in range(count):
        luminance, contrast = _ssim_terms(a, b, data_range, (-2, -1))
        values = luminance * contrast if scale == count - 1 else contrast
        rows, columns = (inside(n) for n in a.shape)
        factors.append(max(float(values[rows, columns].mean()), 0.0))
        a, b = _halved(a), _halved(b)
    total = sum(SCALE_WEIGHTS[:count])
    return prod(value ** (weight / total) for value, weight in zip(factors, SCALE_WEIGHTS, strict=False))


def _halved(plane: Map) -> Map:
    """Average over squares of 2 x 2 pixels; an odd row or column at the end is left out."""
    rows, columns = (n // 2 for n in plane.shape)
    half: Map = plane[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(1, 3))
    return half
