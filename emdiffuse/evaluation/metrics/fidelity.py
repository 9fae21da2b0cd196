"""Fidelity: voxel-wise differences in intensity from the truth.

Conventions
-----------
* See `emdiffuse.evaluation.metrics`.
"""

from __future__ import annotations

from math import inf, log10, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.blocks import PLANES, EvaluationBlock
from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, Vector

Image = NDArray[Any]


def psnr_of(mean_squared_error: float, data_range: float) -> float:
    """Return the peak signal-to-noise ratio of a mean squared error, in dB; infinite for zero error."""
    return 10 * log10(data_range**2 / mean_squared_error) if mean_squared_error > 0 else inf


def psnr(image: Image, truth: Image, data_range: float) -> float:
    """Return the peak signal-to-noise ratio: 10 log10(data_range**2 / mean squared error).

    Parameters
    ----------
    image, truth : ndarray
        Equal shapes, any dimension.
    data_range : float
        Intensity range.

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
        Without unit: 0 for identical images, infinite if only the truth is all zeros.
    """
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    power = float(np.mean(truth.astype(np.float64) ** 2))
    return sqrt(error / power) if power > 0 else (0.0 if error == 0 else inf)


class Fidelity(Metric):
    """PSNR of planes in all orientations, and NRMSE; for images also PSNR after a linear fit."""

    measures = (
        Measure("psnr", "PSNR (dB)", "dB", 2, 1),
        Measure(
            "psnr_fitted",
            "PSNR after linear fit (dB)",
            "dB, after a linear fit of the intensities to the truth",
            2,
            1,
        ),
        Measure("nrmse", "NRMSE", "fraction of the root mean square of the truth", 3, -1),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.orientations = [name for name in PLANES if name in setting.lengths]
        for name in self.orientations:
            self.per_plane(f"error {name}", f"voxels {name}", orientation=name)
        self.per_plane("energy")
        if setting.images:
            self.per_plane("moments", entries=(5,))

    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add squared errors, summed over every plane."""
        squares = np.square(ours.planes - truth.planes)
        over_x = squares.sum(axis=2, dtype=np.float64)
        sums = {"xy": over_x.sum(axis=1), "xz": over_x.sum(axis=0)}
        if not self.setting.images:
            sums["yz"] = squares.sum(axis=(0, 1), dtype=np.float64)
        for name in self.orientations:
            here = block.places[PLANES[name]]
            self.sums[f"error {name}"][here] += sums[name]
            self.sums[f"voxels {name}"][here] += squares.size / len(here)
        self.sums["energy"][block.places[0]] += truth.once(_energy)
        if self.setting.images:
            for here, a, b in zip(block.places[0], ours.planes, truth.planes, strict=True):
                a, b = (plane.ravel().astype(np.float64) for plane in (a, b))
                self.sums["moments"][here] += a.sum(), b.sum(), a @ a, b @ b, a @ b

    def score(self) -> Scores:
        """Return PSNR for all orientations, and the other metrics in xy."""
        scores: Scores = {}
        for name in self.orientations:
            mean = _mean(self.sums[f"error {name}"], self.sums[f"voxels {name}"])
            scores[name] = {"psnr": self._psnr(mean)}
        with np.errstate(divide="ignore", invalid="ignore"):
            scores["xy"]["nrmse"] = np.sqrt(self.sums["error xy"] / self.sums["energy"])
        if self.setting.images:
            scores["xy"]["psnr_fitted"] = self._psnr(self._fitted())
        return scores

    def _psnr(self, error: Vector) -> Vector:
        with np.errstate(divide="ignore"):
            values: Vector = 10 * np.log10(self.setting.data_range**2 / error)
        return values

    def _fitted(self) -> Vector:
        """Return the mean squared error of every image after the best linear fit to its truth."""
        moments = _mean(self.sums["moments"].T, self.sums["voxels xy"])
        mean, true_mean = moments[:2]
        variance, true_variance = moments[2] - mean**2, moments[3] - true_mean**2
        covariance = moments[4] - mean * true_mean
        explained = np.divide(covariance**2, variance, out=np.zeros_like(mean), where=variance > 0)
        return np.maximum(true_variance - explained, 0)


def _mean(sums: Vector, counts: Vector) -> Vector:
    with np.errstate(invalid="ignore"):
        mean: Vector = sums / counts
    return mean


def _energy(truth: Piece) -> Vector:
    values = truth.planes.astype(np.float64) + truth.setting.centre
    energy: Vector = np.square(values).sum(axis=(1, 2))
    return energy
