"""Feature similarity (FSIM): agreement of visible edges and lines with the truth.

Conventions
-----------
* See `emdiffuse.evaluation.metrics`. Arithmetic is in float32.
"""

from __future__ import annotations

from functools import lru_cache
from math import log, pi, sqrt
from typing import Any

import cv2
import numpy as np
from numpy import fft
from numpy.typing import NDArray

from emdiffuse.evaluation.blocks import EvaluationBlock
from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, ratio

Image = NDArray[Any]
Map = NDArray[np.float64]

_SCALES, _ORIENTATIONS = 4, 4
_SHORTEST_WAVE, _OCTAVE, _BANDWIDTH = 6, 2, 0.55
_ANGULAR_SPREAD = pi / (_ORIENTATIONS * 1.2)
_NOISE_SIGMAS, _NOISE_RESCALING = 2.0, 1.7
_EPSILON = 1e-7


@lru_cache(maxsize=8)
def _log_gabor(shape: tuple[int, int]) -> tuple[NDArray[np.float32], Map, Map]:
    """Return the filters (orientations, scales, H, W, 2) in Fourier space, and two constants per orientation.

    Filters are repeated along the last axis, for real and imaginary parts. The constants are the energy of
    the filter of the smallest scale, and that of the even sum of all scales.
    """
    # as in the reference code, an odd axis is spread over n - 1 to reach exactly +-1/2
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
    pairs = np.repeat(filters[..., None], 2, axis=-1).astype(np.float32)
    return pairs, (filters[:, 0] ** 2).sum(axis=(1, 2)), (even**2).sum(axis=(1, 2))


def phase_congruency(image: Image) -> NDArray[np.float32]:
    """Return the phase congruency of log-Gabor responses over scales: Kovesi's PC2, as in FSIM.

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
    height, width = image.shape
    filters, smallest, together = _log_gabor((height, width))
    plane = np.ascontiguousarray(image, np.float32)
    spectrum = cv2.dft(plane, flags=cv2.DFT_COMPLEX_OUTPUT)
    energy, amplitude = np.zeros((2, height, width), np.float32)
    for bank, power, total in zip(filters, smallest, together, strict=True):
        responses = [_response(spectrum * passed) for passed in bank]
        amplitudes = [_length(*response) for response in responses]
        for own in amplitudes:
            amplitude += own
        real, imaginary = (sum(parts[1:], parts[0]) for parts in zip(*responses, strict=True))
        length = _length(real, imaginary)
        shrink = np.reciprocal(length + np.float32(_EPSILON))
        real, imaginary = real * shrink, imaginary * shrink
        # Responses to noise follow a Rayleigh distribution; the median at the smallest scale gives its width.
        # Every second pixel suffices: the filter passes little above a quarter of the sampling frequency.
        median = float(np.median(amplitudes[0][::2, ::2]))
        tau = sqrt(median**2 / log(2) / power * total)
        length -= np.float32(tau * (sqrt(pi / 2) + _NOISE_SIGMAS * sqrt(2 - pi / 2)) / _NOISE_RESCALING)
        for even, odd in responses:
            across = odd * real
            across -= even * imaginary
            length -= np.abs(across, out=across)
        energy += np.maximum(length, 0, out=length)
    congruency: NDArray[np.float32] = (energy + _EPSILON) / (amplitude + _EPSILON)
    return congruency


def _length(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float32]:
    """Return the length of vectors; cv2.magnitude is faster, but not reproducible to the last digit."""
    squares = x * x
    squares += y * y
    return np.sqrt(squares, out=squares)


def _response(spectrum: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the real and imaginary part of the image of a spectrum (H, W, 2)."""
    image = cv2.dft(spectrum, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE | cv2.DFT_COMPLEX_OUTPUT)
    real, imaginary = cv2.split(image)
    return real, imaginary


Features = tuple[NDArray[np.float32], NDArray[np.float32]]


def fsim_features(image: Image, data_range: float) -> Features:
    """Return FSIM's two features of a plane: phase congruency, and gradient magnitude (Scharr)."""
    plane = image.astype(np.float32) * np.float32(255 / data_range)
    smooth, slope = np.array([3, 10, 3], np.float32) / 16, np.array([1, 0, -1], np.float32)
    # as in the reference code, a plane is black beyond its edges
    along_x = cv2.sepFilter2D(plane, cv2.CV_32F, slope, smooth, borderType=cv2.BORDER_CONSTANT)
    along_y = cv2.sepFilter2D(plane, cv2.CV_32F, smooth, slope, borderType=cv2.BORDER_CONSTANT)
    return phase_congruency(plane), _length(along_x, along_y)


def fsim_pool(image: Features, truth: Features) -> tuple[float, float]:
    """Return numerator and denominator of FSIM, to be summed over the tiles of a plane."""
    (pc_a, gradient_a), (pc_b, gradient_b) = image, truth
    similarity = (2 * pc_a * pc_b + 0.85) / (pc_a**2 + pc_b**2 + 0.85)
    similarity *= (2 * gradient_a * gradient_b + 160) / (gradient_a**2 + gradient_b**2 + 160)
    weight = np.maximum(pc_a, pc_b)
    return float((similarity * weight).sum(dtype=np.float64)), float(weight.sum(dtype=np.float64))


def fsim(image: Image, truth: Image, data_range: float) -> float:
    """Return the feature similarity of two planes, from their phase congruency and gradients.

    Planes whose shorter side is above 384 pixels are first binned to about 256, as
    published.

    Parameters
    ----------
    image, truth : ndarray
        Planes of equal shape.
    data_range : float
        Intensity range.

    Returns
    -------
    float
        Without unit; at most 1, for identical images.

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


class FeatureSimilarity(Metric):
    """FSIM of tiles in xy, pooled over each plane; a costly metric."""

    measures = (Measure("fsim", "FSIM", "no unit, at most 1", 3, 1),)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.per_plane("similarity", "weight")

    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add the weighted similarity of features."""
        for row, mine, theirs in zip(block.costly, _features(ours), truth.once(_features), strict=True):
            similarity, weight = fsim_pool(mine, theirs)
            self.sums["similarity"][block.places[0][row]] += similarity
            self.sums["weight"][block.places[0][row]] += weight

    def score(self) -> Scores:
        """Return FSIM in xy."""
        return {"xy": {"fsim": ratio(self.sums["similarity"], self.sums["weight"])}}


def _features(piece: Piece) -> list[Features]:
    return [fsim_features(piece.plane(row), piece.setting.data_range) for row in piece.block.costly]
