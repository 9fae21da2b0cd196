"""From measures of planes to tables: means, intervals, gains, and the table as CSV.

Conventions
-----------
* See `emdiffuse.evaluation.evaluate`.
"""

from __future__ import annotations

import csv
import io
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.comparison import Grid
from emdiffuse.evaluation.sums import Vector

MEASURES = {
    "psnr": "dB",
    "psnr_fitted": "dB, after a linear fit of the intensities to the truth's",
    "ssim": "no unit, at most 1",
    "ms_ssim": "no unit, at most 1",
    "fsim": "no unit, at most 1",
    "frc_resolution": "nm, where Fourier ring correlation with the truth falls below 1/7",
    "frc_ratio": "share of the frc_resolution of the plain input (of volumes: its nearest slice)",
    "fsc_resolution": "nm, where Fourier shell correlation with the truth falls below 1/7",
    "decorrelation_resolution": "nm, by decorrelation analysis of the image itself",
    "lpips": "no unit, 0: the same to AlexNet, which learned from photographs",
    "nrmse": "share of the truth's root mean square",
    "high_frequency_ratio": "share of the truth's spectral power above a quarter of the sampling frequency",
    "step_ratio": "mean absolute difference of neighbouring generated slices, share of the truth's",
    "real_step_ratio": "the same of a generated slice and the real one beside it, share of the truth's",
    "membranes_iou": "overlap over union of the segmented membranes and the truth's",
    "dark_iou": "overlap over union of the segmented dark regions (mitochondria, dark processes) and the "
    "truth's",
}
RUN = 16
RESAMPLES = 2000


def summary(values: Vector, groups: NDArray[np.int64]) -> dict[str, float | int | None]:
    """Return the mean of the finite values, and its 95 % bootstrap interval.

    Parameters
    ----------
    values : ndarray
        One value a plane; infinite ones are counted as ``identical``, those that are not a number left out.
    groups : ndarray
        Number of the group that each plane belongs to: groups are drawn again, not planes.

    Returns
    -------
    dict
        mean, low, high (null where there is nothing to average, the interval also with fewer than two
        groups), and identical: how many planes equal the truth, where there are any.
    """
    finite = np.isfinite(values)
    result: dict[str, float | int | None] = {"mean": None, "low": None, "high": None}
    if finite.any():
        result["mean"] = float(values[finite].mean())
        _, members = np.unique(groups[finite], return_inverse=True)
        sums, counts = np.bincount(members, values[finite]), np.bincount(members)
        if len(counts) > 1:
            draws = np.random.default_rng(0).multinomial(
                len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES
            )
            low, high = np.percentile(draws @ sums / (draws @ counts), (2.5, 97.5))
            result |= {"low": float(low), "high": float(high)}
    if np.isinf(values).any():
        result["identical"] = int(np.isinf(values).sum())
    return result


def table(scores: dict[str, dict[str, dict[str, Vector]]], grid: Grid, reference: str) -> dict[str, Any]:
    """Summarise the scores of all planes, and compare the restored volume with the method of reference."""
    gaps = np.array([int(z / grid.factor) for z in range(grid.length)])
    groups = {"xy": gaps}
    for name in scores[reference].keys() - {"xy"}:
        planes = np.arange(len(next(iter(scores[reference][name].values()))))
        groups[name] = planes if name == "xyz" else planes // RUN
    methods = {
        method: {
            name: {measure: summary(values, groups[name]) for measure, values in own.items()}
            for name, own in orientations.items()
        }
        for method, orientations in scores.items()
    }
    gain, beats = {}, {}
    for measure in ("psnr", "ssim"):
        ours, theirs = (scores[method]["xy"][measure] for method in ("restored", reference))
        with np.errstate(invalid="ignore"):
            gain[measure] = summary(np.where(np.isfinite(ours), ours - theirs, np.nan), gaps)
        means = [methods[method]["xy"][measure]["mean"] for method in ("restored", reference)]
        first, second = (inf if mean is None else mean for mean in means)
        beats[measure] = first > second
    return {"methods": methods, "reference": reference, "gain": gain, "beats": beats}


def as_csv(result: dict[str, Any]) -> str:
    """Return the table of an evaluation as CSV: a row for each orientation, measure and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["plane", "measure", "unit", "method", "mean", "low", "high", "identical"])
    for method, orientations in result["methods"].items():
        for name, measures in orientations.items():
            for measure, value in measures.items():
                numbers = [value["mean"], value["low"], value["high"], value.get("identical", 0)]
                writer.writerow([name, measure, MEASURES[measure], method, *numbers])
    return text.getvalue()
