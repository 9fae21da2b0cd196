"""Resolution and fine detail, from the Fourier transforms of planes and boxes.

Conventions
-----------
* See `evaluation.metrics`. Frequencies are in cycles a voxel, resolutions in voxels: the inverse of a
  frequency, so that 2 (Nyquist's) is the finest there is. Voxels are cubes.
* Before a transform the mean is removed and a Hann window applied along every axis, so that the jump between
  opposite faces does not count as detail.
* A *ring* is a range of frequencies: rings in planes, shells in boxes, `RINGS` of them up to Nyquist's
  frequency, whatever the shape, so that what lies in them adds up over planes and boxes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Image = NDArray[Any]
Map = NDArray[np.float64]
Spectrum = NDArray[np.complex64]

HIGH_FREQUENCY = 0.25
"""Where high frequencies begin, in cycles a pixel: a quarter of the sampling frequency, half of Nyquist's."""
RINGS = 64
THRESHOLD = 1 / 7
"""Correlation that the resolution is read off at (Rosenthal and Henderson 2003, for two half data sets)."""
_CENTRES = (np.arange(RINGS) + 0.5) / (2 * RINGS)
_FALL = 1e-3


@lru_cache(maxsize=16)
def _window(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the Hann window of a plane or box; an axis of one voxel has none."""
    window = np.ones(shape, np.float32)
    for axis, n in enumerate(shape):
        window *= np.hanning(n + 2)[1:-1].reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return window


@lru_cache(maxsize=16)
def _radius(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the frequency of every Fourier coefficient of a real transform."""
    axes = [fft.fftfreq(n) for n in shape[:-1]] + [fft.rfftfreq(shape[-1])]
    return np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True))).astype(np.float32)


@lru_cache(maxsize=16)
def _weight(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return how often every coefficient of a real transform stands in the full one: once or twice."""
    weight = np.full(shape[-1] // 2 + 1, 2, np.float32)
    weight[0] = 1
    if shape[-1] % 2 == 0:
        weight[-1] = 1
    return weight


def spectrum(image: Image) -> Spectrum:
    """Return the Fourier transform (of real data: half) of a plane or box, windowed, without its mean."""
    values = image.astype(np.float32)
    transform: Spectrum = fft.rfftn((values - values.mean(dtype=np.float64)) * _window(image.shape))
    return transform


def high_frequency_power(transform: Spectrum, shape: tuple[int, ...]) -> float:
    """Return the spectral power above `HIGH_FREQUENCY`, in squared intensities.

    Parameters
    ----------
    transform : ndarray
        What `spectrum` returned.
    shape : tuple of int
        Shape of the plane or box that it is of.

    Returns
    -------
    float
        The window's mean square is divided out, so that white noise of variance v gives, in planes, about
        0.8 v.
    """
    power = (np.abs(transform) ** 2 * _weight(shape))[_radius(shape) > HIGH_FREQUENCY].sum(dtype=np.float64)
    return float(power / (np.prod(shape) * (_window(shape).astype(np.float64) ** 2).sum()))


def high_frequency_power_ratio(image: Image, truth: Image) -> float:
    """Return the spectral power above a quarter of the sampling frequency, divided by the truth's.

    Returns
    -------
    float
        Without unit: below 1 the image is smoother than the truth, above 1 it has more fine detail or noise.
        It says nothing about where the detail lies. Not a number when the truth has none.
    """
    power = high_frequency_power(spectrum(truth), truth.shape)
    return high_frequency_power(spectrum(image), image.shape) / power if power > 0 else float("nan")


def ring_sums(transform: Spectrum, truth: Spectrum, shape: tuple[int, ...]) -> Map:
    """Return what resolutions are computed from, which adds up over planes or boxes.

    Parameters
    ----------
    transform, truth : ndarray
        What `spectrum` returned of the two.
    shape : tuple of int
        Shape of the planes or boxes that they are of.

    Returns
    -------
    ndarray
        (5, RINGS): in every ring the correlation of the two, the power of each, the sum of the amplitudes of
        the first, and the number of coefficients. The mean, and what the window mixes with it, is left out.
    """
    ring = (_radius(shape) * (2 * RINGS)).astype(np.int64)
    weight = np.broadcast_to(_weight(shape), ring.shape)
    inside = (ring < RINGS) & (_radius(shape) >= 2 / max(shape))
    amplitude = np.abs(transform)
    rows = ((transform * truth.conj()).real, amplitude**2, np.abs(truth) ** 2, amplitude, np.float32(1))
    return np.stack([np.bincount(ring[inside], (row * weight)[inside], RINGS) for row in rows])


def correlation_resolution(sums: Map) -> float:
    """Return the resolution at which the Fourier ring (planes) or shell (boxes) correlation falls below 1/7.

    Correlation of an image with the truth, ring by ring; the crossing is interpolated linearly. An image that
    correlates up to Nyquist's frequency has a resolution of 2 voxels.

    Parameters
    ----------
    sums : ndarray
        What `ring_sums` returned, added up over planes or boxes.

    Returns
    -------
    float
        In voxels; smaller is finer. Not a number when one of the two is constant.

    References
    ----------
    Saxton and Baumeister 1982, doi 10.1111/j.1365-2818.1982.tb00405.x (rings); Harauz and van Heel 1986,
    Optik 73, 146 (shells); Rosenthal and Henderson 2003, doi 10.1016/j.jmb.2003.07.013 (1/7).
    """
    cross, power, true_power, _, count = sums
    found = count > 0
    product = np.sqrt(power[found] * true_power[found])
    if not product.any():
        return float("nan")
    curve = np.divide(cross[found], product, out=np.zeros_like(product), where=product > 0)
    curve, at = np.concatenate([[1.0], curve]), np.concatenate([[0.0], _CENTRES[found]])
    below = np.flatnonzero(curve < THRESHOLD)
    if not len(below):
        return 2.0
    i = below[0]
    share = (curve[i - 1] - THRESHOLD) / (curve[i - 1] - curve[i])
    return float(1 / (at[i - 1] + share * (at[i] - at[i - 1])))


def decorrelation_resolution(sums: Map) -> float:
    """Return the resolution of an image by itself, by decorrelation analysis.

    The image is correlated with its own phases within a growing circle; the correlation peaks where the
    circle holds the signal and little noise. High-pass filters move the peak out, to the highest frequency
    that still stands above the noise.

    Parameters
    ----------
    sums : ndarray
        What `ring_sums` returned, added up over planes or boxes.

    Returns
    -------
    float
        In voxels; smaller is finer. Needs no truth, so it takes made-up detail for real. Not a number when
        there is no peak, as in white noise.

    References
    ----------
    Descloux, Grussmayer and Radenovic 2019, doi 10.1038/s41592-019-0515-7.
    """
    _, power, _, amplitude, count = sums
    within = np.sqrt(np.maximum(np.cumsum(count), 1))
    best = 0.0
    for width in (np.inf, *np.geomspace(32, 0.5, 24)):
        passed = 1 - np.exp(-2 * (np.pi * width * _CENTRES) ** 2)
        total = np.sqrt((power * passed**2).sum())
        if not total:
            continue
        peak = _peak(np.cumsum(amplitude * passed) / (total * within))
        best = max(best, _CENTRES[peak] if peak else 0.0)
    return 1 / best if best else float("nan")


def _peak(curve: Map) -> int:
    """Return where a curve is highest among the points that it falls from; 0 when there is none."""
    end = len(curve)
    while end > 1:
        at = int(np.argmax(curve[:end]))
        if curve[at] - curve[at:end].min() >= _FALL:
            return at
        end = at
    return 0
