"""How far a restoration's uncertainty can be trusted, measured against ground truth.

Conventions
-----------
* Everything is measured on data that were not used for calibration: the restoration's own ground truth,
  voxels of generated slices only. More than `UNITS` calibration units are sampled, more than `VOXELS` voxels
  thinned evenly.
* *Coverage* is the fraction of voxels whose true value is in the interval (`calibration.interval`). Its 95 %
  intervals are bootstrapped over calibration units; neighbours are merged if there are more than `GROUPS`.
* *Sparsification*: voxels are removed in order of uncertainty, most uncertain first, and the root mean
  squared error of the rest is compared with that of an oracle that removes the largest errors first. AUSE is
  the area between the two, as a fraction of the total error (Ilg et al. 2018, doi
  10.1007/978-3-030-01234-2_40).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.bootstrap import mean_interval
from emdiffuse.evaluation.calibration import LEVELS, units_of
from emdiffuse.evaluation.comparison import Comparison, read
from emdiffuse.restoration.intervals import floors, interval
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.facts import CalibrationFacts

VOXELS, UNITS = 2_000_000, 2048
GROUPS = 400
BLOCK = 64
"""Side of a unit in pixels, if intervals are not calibrated."""
BINS = 5
SHARES = np.linspace(0, 0.95, 20)
"""Fractions of voxels removed."""
EDGE_SIGMA = 1.5
"""Width in pixels of the Gaussian for gradients; the steepest fifth counts as edges."""


@dataclass(frozen=True)
class Sample:
    """Voxels of a comparison, one entry each.

    Attributes
    ----------
    restored, uncertainty, truth : ndarray
        Intensities, in their dtypes.
    floor : ndarray
        The smallest uncertainty that counts, in intensities.
    slope : ndarray
        Gradient magnitude of the truth.
    unit : ndarray
        Number of the unit that contains each voxel.
    """

    restored: NDArray[Any]
    uncertainty: NDArray[Any]
    truth: NDArray[Any]
    floor: NDArray[np.float32]
    slope: NDArray[Any]
    unit: NDArray[np.int64]

    @property
    def error(self) -> NDArray[np.float64]:
        """Absolute error of every voxel."""
        return np.abs(self.restored.astype(np.float64) - self.truth)


def assess(found: Comparison) -> dict[str, Any] | None:
    """Assess a restoration's uncertainty, and its intervals if calibrated.

    Returns
    -------
    dict or None
        ``diagram``: observed against nominal coverage, of Gaussian and of calibrated intervals;
        ``coverage``: overall and by group of voxels; ``sparsification`` and ``ause``; ``doubtful``: groups
        with less than the promised coverage; ``reliability``: from the metadata of the restored volume. None
        if the restoration has no uncertainty.
    """
    if "uncertainty" not in found.extras:
        return None
    facts = found.restored.restoration
    calibration, sample = facts.calibration, draw(found)
    result: dict[str, Any] = {
        "voxels": len(sample.truth),
        "reliability": facts.reliability and facts.reliability.model_dump(mode="json"),
        "calibration": calibration and calibration.as_json(),
        "diagram": diagram(sample, calibration),
        **sparsification(sample.error, sample.uncertainty),
    }
    if calibration:
        bounds = interval(sample.restored, sample.uncertainty, calibration.scale, sample.floor)
        inside = (sample.truth >= bounds[0]) & (sample.truth <= bounds[1])
        result["width"] = float(np.mean(bounds[1].astype(np.float64) - bounds[0]))
        result["coverage"] = coverage(sample, inside)
        promised = 1 - calibration.alpha
        result["doubtful"] = [row["group"] for row in result["coverage"] if row["high"] < promised]
    return result


def draw(found: Comparison) -> Sample:
    """Read voxels, evenly thinned if there are many."""
    from scipy.ndimage import gaussian_gradient_magnitude

    boxes = list(units_of(found, BLOCK, UNITS))
    total = sum(int(np.prod([part.stop - part.start for part in box])) for box in boxes)
    step, together = ceil(total / VOXELS), ceil(len(boxes) / GROUPS)
    names = ("restored", "uncertainty", "truth", "floor", "slope")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    units = []
    for number, box in enumerate(progress(boxes, len(boxes), "assess", "unit")):
        truth = read(found.truth, box)
        slopes = [gaussian_gradient_magnitude(plane.astype(np.float32), EDGE_SIGMA) for plane in truth]
        floor = floors(found.restored.intensity.at(range(box[0].start, box[0].stop)))
        values = (
            read(found.restored, box),
            read(found.extras["uncertainty"], box),
            truth,
            np.broadcast_to(floor, truth.shape),
            np.stack(slopes),
        )
        for name, own in zip(names, values, strict=True):
            parts[name].append(own.ravel()[::step])
        units.append(np.full(len(parts["truth"][-1]), number // together))
    joined = {name: np.concatenate(own) for name, own in parts.items()}
    return Sample(**joined, unit=np.concatenate(units))


def diagram(sample: Sample, calibration: CalibrationFacts | None) -> list[dict[str, float]]:
    """Return nominal and observed coverage of Gaussian and, if any, calibrated intervals."""
    scales = {row.alpha: row.scale for row in calibration.levels} if calibration else {}
    rows = []
    for alpha in LEVELS:
        row = {"nominal": 1 - alpha}
        for name, scale in (
            ("gaussian", NormalDist().inv_cdf(1 - alpha / 2)),
            ("calibrated", scales.get(alpha)),
        ):
            if scale is not None:
                low, high = interval(sample.restored, sample.uncertainty, scale, sample.floor)
                row[name] = float(np.mean((sample.truth >= low) & (sample.truth <= high)))
        rows.append(row)
    return rows


def coverage(sample: Sample, inside: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return the coverage of all voxels, and by restored intensity, edge, and uncertainty.

    Returns
    -------
    list of dict
        group (in words), voxels, mean, low and high.
    """
    groups = {"all voxels": np.ones(len(inside), bool)}
    steep = sample.slope > np.quantile(sample.slope, 0.8)
    groups |= {"at structure edges": steep, "away from edges": ~steep}
    for what, values in (("intensity", sample.restored), ("uncertainty", sample.uncertainty)):
        limits = np.unique(np.quantile(values.astype(np.float64), np.linspace(0, 1, BINS + 1)))
        bins = np.clip(np.searchsorted(limits, values, side="right") - 1, 0, max(len(limits) - 2, 0))
        for number in range(len(limits) - 1):
            members = bins == number
            if members.any():
                groups[f"{what} {limits[number]:.4g} to {limits[number + 1]:.4g}"] = members
    return [
        {"group": name, "voxels": int(members.sum()), **_share(inside[members], sample.unit[members])}
        for name, members in groups.items()
    ]


def _share(inside: NDArray[np.bool_], unit: NDArray[np.int64]) -> dict[str, float]:
    """Return a fraction, and its 95 % bootstrap interval over units."""
    counts = np.bincount(unit)
    hits = np.bincount(unit, inside)[counts > 0]
    counts = counts[counts > 0]
    low, high = mean_interval(hits, counts)
    return {"mean": float(hits.sum() / counts.sum()), "low": low, "high": high}


def sparsification(error: NDArray[Any], uncertainty: NDArray[Any]) -> dict[str, Any]:
    """Return the sparsification curves by uncertainty and by an oracle, and AUSE.

    Parameters
    ----------
    error, uncertainty : ndarray
        Absolute error and uncertainty of every voxel, one-dimensional.

    Returns
    -------
    dict
        ``sparsification``: rows of share (fraction removed), uncertainty and oracle (remaining error relative
        to the total); ``ause``: 0 if uncertainty ranks voxels exactly as error does; ``ause_random``: AUSE of
        a random order.
    """
    squares = error.astype(np.float64) ** 2
    total = np.sqrt(squares.mean())
    curves = {}
    for name, order in (
        ("uncertainty", np.argsort(uncertainty, kind="stable")),
        ("oracle", np.argsort(error)),
    ):
        sums = np.cumsum(squares[order])
        kept = np.maximum(np.rint(len(squares) * (1 - SHARES)).astype(int), 1)
        curves[name] = np.sqrt(sums[kept - 1] / kept) / (total or 1)
    rows = [
        {"share": float(share), "uncertainty": float(ours), "oracle": float(best)}
        for share, ours, best in zip(SHARES, curves["uncertainty"], curves["oracle"], strict=True)
    ]
    area, random = (
        float(np.trapezoid(curve - curves["oracle"], SHARES)) for curve in (curves["uncertainty"], 1.0)
    )
    return {"sparsification": rows, "ause": area, "ause_random": random}
