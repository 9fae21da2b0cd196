"""Tables from the scores of planes: means, intervals, gains, and the table as CSV.

Conventions
-----------
* See `emdiffuse.evaluation.evaluate`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.bootstrap import mean_interval
from emdiffuse.evaluation.metrics import MEASURES, RELATIVE, Scores, Vector
from emdiffuse.runtime.outputs import HEADINGS

COMPARED = ("psnr", "ssim")
"""Metrics by which a restoration is compared, in xy."""
Summary = dict[str, float | int | None]


def summary(values: Vector, groups: NDArray[np.int64]) -> Summary:
    """Return the mean of the finite values, and its 95 % bootstrap interval.

    Parameters
    ----------
    values : ndarray
        One value per plane; infinite values are counted as ``identical``, NaN is ignored.
    groups : ndarray
        Number of the group that each plane belongs to: groups are resampled, not planes.

    Returns
    -------
    dict
        mean, low, high (null if there is nothing to average; the interval also with fewer than two groups),
        and identical: the number of planes that equal the truth, if any.
    """
    finite = np.isfinite(values)
    result: Summary = {"mean": None, "low": None, "high": None}
    if finite.any():
        result["mean"] = float(values[finite].mean())
        _, members = np.unique(groups[finite], return_inverse=True)
        sums, counts = np.bincount(members, values[finite]), np.bincount(members)
        if len(counts) > 1:
            result["low"], result["high"] = mean_interval(sums, counts)
    if np.isinf(values).any():
        result["identical"] = int(np.isinf(values).sum())
    return result


def table(
    scores: Mapping[str, Scores],
    groups: Mapping[str, NDArray[np.int64]],
    baselines: Sequence[str],
    reference: str,
) -> dict[str, Any]:
    """Summarize the scores of all planes, and compare the restored volume with classical methods.

    Parameters
    ----------
    scores : mapping
        Values of all planes, by method, orientation and metric.
    groups : mapping
        Bootstrap group of every plane, by orientation.
    baselines : sequence of str
        Classical methods, the plain input first.
    reference : str
        The standard one of these.

    Returns
    -------
    dict
        ``methods[method][orientation][metric]``; the ``reference``, the paired ``gain`` over it, and whether
        the mean ``beats`` its mean; and, by metric, the ``best`` classical method with the gain over it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = scores[baselines[0]]["xy"]["frc_resolution"]
        for own in scores.values():
            own["xy"][RELATIVE.name] = own["xy"]["frc_resolution"] / plain
    methods = {
        method: {
            name: {measure: summary(values, groups[name]) for measure, values in own.items()}
            for name, own in orientations.items()
        }
        for method, orientations in scores.items()
    }

    def mean(method: str, measure: str) -> float:
        value = methods[method]["xy"][measure]["mean"]
        return inf if value is None else float(value)

    def gain(method: str, measure: str) -> Summary:
        ours, theirs = (scores[own]["xy"][measure] for own in ("restored", method))
        with np.errstate(invalid="ignore"):
            return summary(np.where(np.isfinite(ours), ours - theirs, np.nan), groups["xy"])

    best = {measure: max(baselines, key=lambda name: mean(name, measure)) for measure in COMPARED}
    return {
        "methods": methods,
        "reference": reference,
        "gain": {measure: gain(reference, measure) for measure in COMPARED},
        "beats": {measure: mean("restored", measure) > mean(reference, measure) for measure in COMPARED},
        "best": {measure: {"method": best[measure], **gain(best[measure], measure)} for measure in COMPARED},
    }


def as_csv(result: dict[str, Any]) -> str:
    """Return the table of an evaluation as CSV: one row per orientation, metric and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADINGS[0].split(","))
    for method, orientations in result["methods"].items():
        for name, measures in orientations.items():
            for measure, value in measures.items():
                numbers = [value["mean"], value["low"], value["high"], value.get("identical", 0)]
                writer.writerow([name, measure, MEASURES[measure].unit, method, *numbers])
    return text.getvalue()
