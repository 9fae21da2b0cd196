"""Resolution and fine detail, from the Fourier transforms of planes and boxes.

Conventions
-----------
* See `evaluation.metrics`. Frequencies are in cycles per voxel, resolutions in voxels: the inverse of a
  frequency, so that 2 (Nyquist) is the finest. Voxels are cubes.
* Before a transform the mean is removed and a Hann window is applied along every axis, so that the jump
  between opposite faces does not count as detail.
* A *ring* is a range of frequencies: a ring in planes, a shell in boxes. There are `RINGS` up to the Nyquist
  frequency, whatever the shape, so that rings can be summed over planes and boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy import fft
from numpy.typing import NDArray

from emdiffuse.evaluation.blocks import EvaluationBlock
from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, Vector, ratio

Image = NDArray[Any]
Map = NDArray[np.float64]
Spectrum = NDArray[Any]

HIGH_FREQUENCY = 0.25
"""Lower limit of high frequencies, in cycles per pixel: half the Nyquist frequency."""
RINGS = 64
THRESHOLD = 1 / 7
"""Correlation threshold of the resolution (Rosenthal and Henderson 2003, for two half data sets)."""
_CENTRES = (np.arange(RINGS) + 0.5) / (2 * RINGS)
_FALL = 1e-3


@lru_cache(maxsize=16)
def _window(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the Hann window of a plane or box; axes of one voxel are not windowed."""
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
    """Return how often each coefficient of a real transform occurs in the full one: once or twice."""
    weight = np.full(shape[-1] // 2 + 1, 2, np.float32)
    weight[0] = 1
    if shape[-1] % 2 == 0:
        weight[-1] = 1
    return weight


def spectrum(image: Image) -> Spectrum:
    """Return the real Fourier transform (half spectrum) of a plane or box, windowed, without its mean."""
    values = image.astype(np.float32)
    transform: Spectrum = fft.rfftn((values - values.mean(dtype=np.float64)) * _window(image.shape))
    return transform


def high_frequency_power(transform: Spectrum, shape: tuple[int, ...]) -> float:
    """Return the spectral power above `HIGH_FREQUENCY`, in squared intensities.

    Parameters
    ----------
    transform : ndarray
        Result of `spectrum`.
    shape : tuple of int
        Shape of the plane or box.

    Returns
    -------
    float
        Normalized by the window's mean square, so that white noise of variance v in a plane gives about 0.8
        v.
    """
    fine = transform.ravel()[_fine(shape)[0]]
    power = float(((fine.real**2 + fine.imag**2) * _fine(shape)[1]).sum(dtype=np.float64))
    return power / _fine(shape)[2]


@lru_cache(maxsize=16)
def _fine(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """Return the coefficients above `HIGH_FREQUENCY`, how often each occurs, and the normalization."""
    above = np.flatnonzero(_radius(shape) > HIGH_FREQUENCY)
    weight = np.broadcast_to(_weight(shape), _radius(shape).shape).ravel()[above]
    return above, weight, float(np.prod(shape) * (_window(shape).astype(np.float64) ** 2).sum())


def high_frequency_power_ratio(image: Image, truth: Image) -> float:
    """Return the spectral power above a quarter of the sampling frequency, divided by the truth's.

    Returns
    -------
    float
        Without unit: below 1 the image is smoother than the truth, above 1 it has more fine detail or noise.
        The ratio does not tell where the detail is. NaN if the truth has none.
    """
    power = high_frequency_power(spectrum(truth), truth.shape)
    return high_frequency_power(spectrum(image), image.shape) / power if power > 0 else float("nan")


def ring_sums(transform: Spectrum, truth: Spectrum, shape: tuple[int, ...]) -> Map:
    """Return the sums over rings from which resolutions are computed; they add up over planes or boxes.

    Parameters
    ----------
    transform, truth : ndarray
        Results of `spectrum` for the two.
    shape : tuple of int
        Shape of the planes or boxes.

    Returns
    -------
    ndarray
        (5, RINGS): for every ring the correlation of the two, the power of each, the sum of the amplitudes of
        the first, and the number of coefficients. The mean, and frequencies that the window mixes with it,
        are excluded.
    """
    cross, power, amplitude = _image_sums(transform, truth, shape)
    return np.stack([cross, power, _power_sums(truth, shape), amplitude, _counts(shape)])


@lru_cache(maxsize=16)
def _rings(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the coefficients (of the flat transform) in rings, their ring, and how often each occurs."""
    radius = _radius(shape)
    ring = (radius * (2 * RINGS)).astype(np.int64)
    inside = np.flatnonzero((ring < RINGS) & (radius >= 2 / max(shape)))
    weight = np.broadcast_to(_weight(shape), ring.shape)
    return inside, ring.ravel()[inside], weight.ravel()[inside]


def _sum(values: NDArray[np.float32], shape: tuple[int, ...]) -> Map:
    """Sum values of the coefficients in rings, ring by ring."""
    _, ring, weight = _rings(shape)
    return np.asarray(np.bincount(ring, values * weight, RINGS), np.float64)


@lru_cache(maxsize=16)
def _counts(shape: tuple[int, ...]) -> Map:
    return _sum(np.ones(1, np.float32), shape)


def _image_sums(transform: Spectrum, truth: Spectrum, shape: tuple[int, ...]) -> tuple[Map, Map, Map]:
    """Return the correlation of two transforms, and power and amplitudes of the first, ring by ring."""
    inside = _rings(shape)[0]
    ours, theirs = transform.ravel()[inside], truth.ravel()[inside]
    cross = ours.real * theirs.real + ours.imag * theirs.imag
    power = ours.real**2 + ours.imag**2
    return _sum(cross, shape), _sum(power, shape), _sum(np.sqrt(power), shape)


def _power_sums(transform: Spectrum, shape: tuple[int, ...]) -> Map:
    """Return the power of a transform, ring by ring."""
    return _sum(np.abs(transform.ravel()[_rings(shape)[0]]) ** 2, shape)


def correlation_resolution(sums: Map) -> float:
    """Return the resolution at which the Fourier ring (planes) or shell (boxes) correlation falls below 1/7.

    The image is correlated with the truth ring by ring; the crossing is interpolated linearly. An image that
    correlates up to the Nyquist frequency has a resolution of 2 voxels.

    Parameters
    ----------
    sums : ndarray
        Sum of the results of `ring_sums` over planes or boxes.

    Returns
    -------
    float
        In voxels; smaller is finer. NaN if one of the two is constant.

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
    """Return the resolution of an image, without reference, by decorrelation analysis.

    The image is correlated with its own phases within a growing circle; the correlation peaks where the
    circle contains the signal and little noise. High-pass filters move the peak outwards, to the highest
    frequency that is still above the noise.

    Parameters
    ----------
    sums : ndarray
        Sum of the results of `ring_sums` over planes or boxes.

    Returns
    -------
    float
        In voxels; smaller is finer. Needs no truth, so invented detail counts as real. NaN if there is no
        peak, as in white noise.

    References
    ----------
    Descloux, Grussmayer and Radenovic 2019, doi 10.1038/s41592-019-0515-7.
    """
    return float(_decorrelations(sums[None])[0])


def _decorrelations(sums: Map) -> Map:
    """Return `decorrelation_resolution` for many planes (planes, 5, RINGS)."""
    power, amplitude, count = (sums[:, None, row] for row in (1, 3, 4))
    widths = np.array([np.inf, *np.geomspace(32, 0.5, 24)])[:, None]
    passed = 1 - np.exp(-2 * (np.pi * widths * _CENTRES) ** 2)
    total = np.sqrt((power * passed**2).sum(axis=2, keepdims=True))
    within = np.sqrt(np.maximum(np.cumsum(count, axis=2), 1))
    curves = np.cumsum(amplitude * passed, axis=2)
    curves = np.divide(curves, total * within, out=np.zeros_like(curves), where=total > 0)
    peaks = _peaks(curves.reshape(-1, RINGS)).reshape(curves.shape[:2])
    best = np.where(peaks > 0, _CENTRES[peaks], 0).max(axis=1)
    return np.divide(1, best, out=np.full(len(best), np.nan), where=best > 0)


def _peaks(curves: Map) -> NDArray[np.int64]:
    """Return the highest local maximum of each curve, or 0 if there is none."""
    rows, places = np.arange(len(curves)), np.arange(curves.shape[1])
    peaks, end = np.zeros(len(curves), np.int64), np.full(len(curves), curves.shape[1])
    while len(rows):
        own, within = curves[rows], places < end[rows, None]
        at = np.where(within, own, -np.inf).argmax(axis=1)
        lowest = np.where(within & (places >= at[:, None]), own, np.inf).min(axis=1)
        falls = own[np.arange(len(rows)), at] - lowest >= _FALL
        peaks[rows[falls]] = at[falls]
        end[rows] = at
        rows = rows[~falls & (at > 1)]
    return peaks


class Resolution(Metric):
    """Fourier metrics: resolution of planes (rings) and blocks (shells), and fine detail."""

    measures = (
        Measure(
            "frc_resolution",
            "Ring correlation (nm)",
            "nm, where Fourier ring correlation with the truth falls below 1/7",
            1,
            -1,
        ),
        Measure(
            "fsc_resolution",
            "Shell correlation (nm)",
            "nm, where Fourier shell correlation with the truth falls below 1/7",
            1,
            -1,
        ),
        Measure(
            "decorrelation_resolution",
            "Decorrelation (nm)",
            "nm, by decorrelation analysis of the image itself",
            1,
            0,
        ),
        Measure(
            "high_frequency_ratio",
            "Fine detail (truth = 1)",
            "spectral power above a quarter of the sampling frequency, relative to the truth",
            2,
            0,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.per_plane("power", "true power")
        self.per_plane("rings", entries=(5, RINGS))
        if not setting.images:
            self.per_plane("shells", orientation="xyz", entries=(5, RINGS))

    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add the sums of each ring of every tile, and each shell of the block."""
        known = zip(truth.once(_spectra), truth.once(_ring_power), truth.once(_fine_power), strict=True)
        for here, plane, (spectrum_b, power_b, fine_b) in zip(
            block.places[0], ours.planes, known, strict=True
        ):
            mine = spectrum(plane)
            cross, power, amplitude = _image_sums(mine, spectrum_b, plane.shape)
            self.sums["rings"][here] += (cross, power, power_b, amplitude, _counts(plane.shape))
            self.sums["power"][here] += high_frequency_power(mine, plane.shape) * plane.size
            self.sums["true power"][here] += fine_b * plane.size
        if not self.setting.images:
            shape = ours.centred[block.own].shape
            self.sums["shells"][block.index] += ring_sums(_whole(ours), truth.once(_whole), shape)

    def score(self) -> Scores:
        """Return resolutions and fine detail in xy, and shell correlation of blocks."""
        voxel, rings = self.setting.voxel, self.sums["rings"]
        scores: Scores = {
            "xy": {
                "frc_resolution": voxel * _each(correlation_resolution, rings),
                "decorrelation_resolution": voxel * _decorrelations(rings),
                "high_frequency_ratio": ratio(self.sums["power"], self.sums["true power"]),
            }
        }
        if not self.setting.images:
            shells = voxel * _each(correlation_resolution, self.sums["shells"])
            scores["xyz"] = {"fsc_resolution": shells}
        return scores


def _spectra(piece: Piece) -> list[Spectrum]:
    return [spectrum(plane) for plane in piece.planes]


def _ring_power(piece: Piece) -> list[Map]:
    return [_power_sums(own, piece.planes[0].shape) for own in piece.once(_spectra)]


def _fine_power(piece: Piece) -> list[float]:
    return [high_frequency_power(own, piece.planes[0].shape) for own in piece.once(_spectra)]


def _whole(piece: Piece) -> Spectrum:
    return spectrum(piece.centred[piece.block.own])


def _each(resolution: Callable[[Vector], float], sums: Vector) -> Vector:
    """Return the resolution of every plane or block."""
    return np.array([resolution(own) for own in sums])
