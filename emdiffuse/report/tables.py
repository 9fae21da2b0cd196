"""The tables of the report, on the page and as files: every metric of every method.

Conventions
-----------
* An evaluation is the result of `evaluation.evaluate`: ``methods[method][orientation][metric]`` with mean,
  low and high (null if unknown), and the ``units`` of the metrics.
* The best of a column is marked if higher, or lower, is better by definition; other metrics are not
  ranked. Values that print alike share the mark.
"""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from emdiffuse.evaluation.methods import beside
from emdiffuse.evaluation.metrics import MEASURES
from emdiffuse.runtime.outputs import HEADINGS

FIRST = ("psnr", "ssim", "fsim", "frc_resolution", "membranes_iou", "high_frequency_ratio", "step_ratio")
"""Metrics of the short table, in this order; the long table has all."""
Cell = dict[str, Any]


def with_others(evaluation: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Add other restorations, measured on the same voxels, to the table of an evaluation.

    Parameters
    ----------
    evaluation : dict
        Result of `evaluation.evaluate` for a restoration.
    others : list of dict
        The same for other restorations.

    Returns
    -------
    dict
        The evaluation, with one more method for each of them, and ``beside``: the estimator of each.
    """
    methods = dict(evaluation["methods"])
    restored = methods.pop("restored")
    estimators = {}
    for other in others:
        if evaluation.get("ground") and other.get("ground") == evaluation["ground"]:
            name = beside(other["model"])
            methods[name], estimators[name] = other["methods"]["restored"], other["estimator"]
    return {**evaluation, "methods": {**methods, "restored": restored}, "beside": estimators}


def short_table(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the table of the main metrics, one row per method.

    Returns
    -------
    dict
        columns (orientation, heading), planes (columns of each orientation), rows (name, cells).
    """
    keys = [key for key in _keys(evaluation) if key[1] in FIRST]
    columns = {key: _column(evaluation, *key) for key in keys}
    planes: dict[str, int] = {}
    for plane, _ in keys:
        planes[plane] = planes.get(plane, 0) + 1
    rows = [{"name": name, "cells": [columns[key][name] for key in keys]} for name in evaluation["methods"]]
    return {
        "columns": [(plane, heading(measure)) for plane, measure in keys],
        "planes": planes,
        "rows": rows,
    }


def long_table(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the table of all metrics, one column per method.

    Returns
    -------
    dict
        names (of the methods), rows (orientation, heading, unit, cells).
    """
    names = list(evaluation["methods"])
    rows = []
    for plane, measure in _keys(evaluation):
        column = _column(evaluation, plane, measure)
        rows.append(
            {
                "plane": plane,
                "heading": heading(measure),
                "unit": evaluation.get("units", {}).get(measure, ""),
                "cells": [column[name] for name in names],
            }
        )
    return {"names": names, "rows": rows}


def heading(measure: str) -> str:
    """Return the display name of a metric."""
    return MEASURES[measure].heading if measure in MEASURES else measure.replace("_", " ")


def _keys(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Return every (orientation, metric) that any method has, the main metrics first."""
    found = dict.fromkeys(
        (plane, measure)
        for method in evaluation["methods"].values()
        for plane, measures in method.items()
        for measure in measures
    )
    planes = list(dict.fromkeys(plane for plane, _ in found))
    rank = {measure: place for place, measure in enumerate(FIRST)}
    return sorted(found, key=lambda key: (planes.index(key[0]), rank.get(key[1], len(rank))))


def _column(evaluation: dict[str, Any], plane: str, measure: str) -> dict[str, Cell]:
    """Return a metric of every method as text, with the best marked."""
    known = MEASURES.get(measure)
    digits, direction = (known.digits, known.better) if known else (3, 0)
    cells: dict[str, Cell] = {}
    ranks: dict[str, float] = {}
    for name, method in evaluation["methods"].items():
        value = method.get(plane, {}).get(measure, {})
        cell = cells[name] = {"mean": "\u2013", "interval": "", "best": False}
        mean = value.get("mean")
        if mean is None and value.get("identical"):
            cell["mean"], ranks[name] = "identical", math.inf
        elif mean is not None:
            cell["mean"], ranks[name] = f"{mean:.{digits}f}", direction * float(f"{mean:.{digits}f}")
        if value.get("low") is not None:
            cell["interval"] = f"{value['low']:.{digits}f} to {value['high']:.{digits}f}"
    for name, rank in ranks.items():
        cells[name]["best"] = bool(direction) and len(ranks) > 1 and rank == max(ranks.values())
    return cells


def as_csv(evaluations: list[dict[str, Any]]) -> str:
    """Return the tables of all restorations as CSV: one row per method, orientation and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = HEADINGS[1].split(",")
    writer.writerow(head)
    for evaluation in evaluations:
        where = [evaluation.get(key) for key in head[:3]]
        for method, orientations in evaluation["methods"].items():
            for plane, measures in orientations.items():
                for measure, value in measures.items():
                    unit = evaluation.get("units", {}).get(measure, "")
                    numbers = [value.get(key) for key in ("mean", "low", "high")]
                    writer.writerow(
                        [*where, plane, measure, unit, method, *numbers, value.get("identical", 0)]
                    )
        for row in evaluation.get("trust", {}).get("coverage", []):
            numbers = [row[key] for key in ("mean", "low", "high")]
            writer.writerow(
                [*where, "", "coverage", "share of true values inside", row["group"], *numbers, 0]
            )
        if "trust" in evaluation:
            ause = evaluation["trust"]["ause"]
            writer.writerow([*where, "", "ause", "share of the error", "restored", ause, None, None, 0])
    return text.getvalue()


def field_rows(fields: list[dict[str, Any]]) -> list[list[str]]:
    """Return a row of text for each registered pair: its measurements, or why it is excluded."""
    rows = []
    for field in fields:
        quality = field.get("quality", {})
        ncc, moved = quality.get("ncc", {}), quality.get("displacement", {})
        numbers = [
            *(ncc.get(key) for key in ("before", "homography", "after")),
            *(moved.get(key) for key in ("median", "percentile_95")),
            quality.get("forward_backward"),
        ]
        status = "warped" if quality.get("changed") else "left as it is"
        rejected = f"{quality['rejected']:.1%}" if quality else ""
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
        rows.append([field["name"], *cells, rejected, field.get("excluded", status)])
    return rows
