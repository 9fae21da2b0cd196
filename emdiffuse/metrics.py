"""Image quality: how close an image is to the truth, each measure with its definition and source.

Conventions
-----------
* Images are planes (rows, columns) of any real dtype; arithmetic is in float64, phase congruency in float32.
* `data_range` is the range of intensities that a measure refers to, in the unit of the intensities: 255 for
  8-bit data, elsewhere the range that the data occupy. It is never guessed.
* The truth is the second argument; only NRMSE and the power ratio depend on which of the two it is.
* Functions that end in `_map` or `_pool` return what a streaming evaluation adds up piece by piece.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, log, log10, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Image = NDArray[Any]
Map = NDArray[np.float64]

SSIM_RADIUS = 5
"""Half width of SSIM's window (11 x 11 pixels), in pixels."""
HIGH_FREQUENCY = 0.25
"""Where high frequencies begin, in cycles a pixel: a quarter of the sampling frequency, half of Nyquist's."""

_SCALES, _ORIENTATIONS = 4, 4
_SHORTEST_WAVE, _OCTAVE, _BANDWIDTH = 6, 2, 0.55
_ANGULAR_SPREAD = pi / (_ORIENTATIONS * 1.2)
_NOISE_SIGMAS, _NOISE_RESCALING = 2.0, 1.7
_EPSILON = 1e-7


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
    a, b = image.astype(np.float64), truth.astype(np.float64)

    def blur(values: Map) -> Map:
        smooth: Map = ndimage.gaussian_filter(values, 1.5, axes=axes, radius=SSIM_RADIUS)
        return smooth

    mean_a, mean_b = blur(a), blur(b)
    covariance = blur(a * b) - mean_a * mean_b
    variances = blur(a * a + b * b) - mean_a**2 - mean_b**2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    ratio: Map = luminance * (2 * covariance + c2) / (variances + c2)
    return ratio


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


@lru_cache(maxsize=8)
def _log_gabor(shape: tuple[int, int]) -> tuple[NDArray[np.float32], Map, Map]:
    """Return the filters (orientations, scales, H, W) in Fourier space, and two constants an orientation.

    The constants are the energy of the filter of the smallest scale, and that of the even sum of all scales.
    """
    # Reference code: an odd axis is spread over n - 1, so that it reaches exactly plus and minus one half.
    fy, fx = (fft.fftfreq(n) * (n / (n - 1) if n % 2 and n > 1 else 1) for n in shape)
    radius, theta = np.hypot(fy[:, None], fx[None]), np.arctan2(-fy[:, None], fx[None])
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
    radius[0, 0] = 1
    waves = _SHORTEST_WAVE * float(_OCTAVE) ** np.arange(_SCALES)
    radial = low_pass * np.exp(-(np.log(radius * waves[:, None, None]) ** 2) / (2 * log(_BANDWIDTH) ** 2))
    radial[:, 0, 0] = 0
    angles = pi * np.arange(_ORIENTATIONS)[:, None, None] / _ORIENTATIONS
    distance = np.abs(np.angle(np.exp(1j * (theta - angles))))
    filters = np.exp(-(distance**2) / (2 * _ANGULAR_SPREAD**2))[:, None] * radial
    even = fft.ifft2(filters.sum(axis=1)).real * sqrt(shape[0] * shape[1])
    return filters.astype(np.float32), (filters[:, 0] ** 2).sum(axis=(1, 2)), (even**2).sum(axis=(1, 2))


def phase_congruency(image: Image) -> NDArray[np.float32]:
    """Return how well the phases of log-Gabor responses agree over scales: Kovesi's PC2, as FSIM has it.

    Parameters
    ----------
    image : ndarray
        One plane, intensities on a scale of 255.

    Returns
    -------
    ndarray
        float32, same shape, values in [0, 1].

    References
    ----------
    Kovesi 1999, Image features from phase congruency, Videre 1(3); parameters as of Zhang et al. (`fsim`).
    """
    filters, smallest, together = _log_gabor((image.shape[0], image.shape[1]))
    spectrum = fft.fft2(image.astype(np.float32))
    energy, amplitude = np.zeros((2, *image.shape), np.float32)
    for bank, power, total in zip(filters, smallest, together, strict=True):
        responses = fft.ifft2(spectrum * bank)
        amplitudes = np.abs(responses)
        amplitude += amplitudes.sum(axis=0)
        mean = responses.sum(axis=0)
        length = np.abs(mean)
        across = np.abs((responses * (np.conj(mean) / (length + _EPSILON))).imag).sum(axis=0)
        # Responses to noise follow a Rayleigh distribution; the median at the smallest scale gives its width.
        tau = sqrt(float(np.median(amplitudes[0] ** 2)) / log(2) / power * total)
        threshold = tau * (sqrt(pi / 2) + _NOISE_SIGMAS * sqrt(2 - pi / 2)) / _NOISE_RESCALING
        energy += np.maximum(length - across - threshold, 0)
    congruency: NDArray[np.float32] = (energy + _EPSILON) / (amplitude + _EPSILON)
    return congruency


Features = tuple[NDArray[np.float32], NDArray[np.float32]]


def fsim_features(image: Image, data_range: float) -> Features:
    """Return FSIM's two features of a plane: phase congruency, and gradient magnitude (Scharr)."""
    plane = image.astype(np.float32) * np.float32(255 / data_range)
    smooth, slope = np.array([3, 10, 3], np.float32) / 16, np.array([1, 0, -1], np.float32)
    padded = np.pad(plane, 1)
    along_x = ndimage.correlate1d(ndimage.correlate1d(padded, smooth, axis=0), slope, axis=1)
    along_y = ndimage.correlate1d(ndimage.correlate1d(padded, slope, axis=0), smooth, axis=1)
    return phase_congruency(plane), np.hypot(along_x, along_y)[1:-1, 1:-1]


def fsim_pool(image: Features, truth: Features) -> tuple[float, float]:
    """Return numerator and denominator of FSIM, which add up over the tiles of a plane."""
    (pc_a, gradient_a), (pc_b, gradient_b) = image, truth
    similarity = (2 * pc_a * pc_b + 0.85) / (pc_a**2 + pc_b**2 + 0.85)
    similarity *= (2 * gradient_a * gradient_b + 160) / (gradient_a**2 + gradient_b**2 + 160)
    weight = np.maximum(pc_a, pc_b)
    return float((similarity * weight).sum(dtype=np.float64)), float(weight.sum(dtype=np.float64))


def fsim(image: Image, truth: Image, data_range: float) -> float:
    """Return the feature similarity of two planes, from their phase congruency and gradients.

    Planes whose shorter side is above 384 pixels are first averaged over squares, down to about 256, as
    published.

    Parameters
    ----------
    image, truth : ndarray
        Planes of equal shape.
    data_range : float
        Range of intensities.

    Returns
    -------
    float
        Without unit, at most 1: identical images.

    References
    ----------
    Zhang, Zhang, Mou and Zhang 2011, doi 10.1109/TIP.2011.2109730.
    """
    step = max(1, round(min(truth.shape) / 256))
    rows, columns = (n // step for n in truth.shape)
    boxes = (rows, step, columns, step)
    a, b = (v[: rows * step, : columns * step].reshape(boxes).mean(axis=(1, 3)) for v in (image, truth))
    top, bottom = fsim_pool(fsim_features(a, data_range), fsim_features(b, data_range))
    return top / bottom


def high_frequency_power(image: Image) -> float:
    """Return the spectral power of one plane above `HIGH_FREQUENCY`, in squared intensities.

    The mean is removed and a Hann window applied, so that the jump between opposite edges does not count as
    detail; the window's mean square is divided out, so that white noise of variance v gives about 0.8 v.
    """
    window = np.hanning(image.shape[0] + 2)[1:-1, None] * np.hanning(image.shape[1] + 2)[None, 1:-1]
    plane = image.astype(np.float64)
    spectrum = np.abs(fft.fft2((plane - plane.mean()) * window)) ** 2
    high = np.hypot(fft.fftfreq(image.shape[0])[:, None], fft.fftfreq(image.shape[1])) > HIGH_FREQUENCY
    return float(spectrum[high].sum() / (image.size * (window**2).sum()))


def high_frequency_power_ratio(image: Image, truth: Image) -> float:
    """Return the spectral power above a quarter of the sampling frequency, divided by the truth's.

    Returns
    -------
    float
        Without unit: below 1 the image is smoother than the truth, above 1 it has more fine detail or noise.
        It says nothing about where the detail lies. Not a number when the truth has none.
    """
    power = high_frequency_power(truth)
    return high_frequency_power(image) / power if power > 0 else float("nan")
