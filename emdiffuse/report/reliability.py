"""How far to trust a restoration, in the report: sentences, curves and a table, as plain values.

Conventions
-----------
* What is said was measured by `evaluation.trust`, and scored by the stage `pyramid`; without a truth the
  scores alone are told.
"""

from __future__ import annotations

from typing import Any

from emdiffuse.report.text import plot
from emdiffuse.stores.facts import Reliability

LISTED = 12
"""Slices or images that are named as not reliable, at most."""
UNCALIBRATED = (
    "No intervals were calibrated: the standard deviation of the samples promises nothing by itself, and the "
    "diagram shows what Gaussian intervals made of it would hold."
)


def trust_section(
    evaluation: dict[str, Any] | None, reliability: Reliability | None, unit: str
) -> dict[str, Any] | None:
    """Return what is said of a restoration's uncertainty; None when it has none.

    Parameters
    ----------
    evaluation : dict or None
        What `evaluation.evaluate` wrote.
    reliability : Reliability or None
        The scores of the restored volume.
    unit : str
        What is scored: "slice" or "image".
    """
    found = (evaluation or {}).get("trust")
    if reliability is None and found is None:
        return None
    sentences = [_scored(reliability, unit)] if reliability else []
    if not found:
        return {"sentences": sentences, "charts": [], "rows": []}
    sentences += _kept(found, evaluation or {}) if found["calibration"] else [UNCALIBRATED]
    sentences.append(
        f"Does the uncertainty find the errors? The area between the curves, AUSE, is {found['ause']:.3f}: "
        f"of an oracle's order it would be 0, of a random one {found['ause_random']:.3f}."
    )
    charts = [_diagram(found["diagram"]), _sparsification(found["sparsification"])]
    return {"sentences": sentences, "charts": charts, "rows": _rows(found)}


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _scored(reliability: Reliability, unit: str) -> str:
    """Say how many slices or images are reliable, and which are not."""
    scores, threshold, slices = reliability.scores, reliability.threshold, reliability.slices
    first = 1 if unit == "image" else 0  # as the viewer counts them
    doubtful = [f"{unit} {z + first}" for z, score in zip(slices, scores, strict=True) if score > threshold]
    said = (
        f"{reliability.reliable} of {len(slices)} {unit}s count as reliable: "
        "their score, the 99th percentile of the standard deviation as a share of the intensity range, is at "
        f"most {threshold:g}. The largest score is {max(scores):.3f}."
    )
    if not doubtful:
        return said
    more = f" and {len(doubtful) - LISTED} more" if len(doubtful) > LISTED else ""
    return f"{said} Not reliable: {', '.join(doubtful[:LISTED])}{more}."


def _kept(found: dict[str, Any], evaluation: dict[str, Any]) -> list[str]:
    """Say what the intervals promise, what they hold, and where they hold less."""
    made, everything = found["calibration"], found["coverage"][0]
    held = "; ".join(found["doubtful"])
    return [
        f"Intervals of {made['scale']:.2f} standard deviations were calibrated on {made['dataset']}, so that "
        f"with a confidence of {_percent(1 - made['delta'], 0)} at least {_percent(1 - made['alpha'], 0)} of "
        f"the voxels' truths lie inside, on average over fields like those. What was counted there as "
        f"independent: {made['units']} units, each one {made['unit']}.",
        f"Here, where nothing was calibrated, {_percent(everything['mean'])} do (95 % interval "
        f"{_percent(everything['low'])} to {_percent(everything['high'])}). An interval is "
        f"{found['width']:.3g} wide on average, of an intensity range of {evaluation['data_range']:g}.",
        f"Do not trust the intervals here, where they hold less than promised: {held}."
        if held
        else "In no group of voxels do they hold significantly less than promised.",
    ]


def _diagram(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Draw nominal against observed coverage, in per cent."""
    lines = {
        name: [(100 * row["nominal"], 100 * row[key]) for row in rows if key in row]
        for key, name in (("calibrated", "calibrated"), ("gaussian", "Gaussian"), ("nominal", "promised"))
    }
    return plot("Truths inside (%), by what is promised", lines, "{:.0f} % promised")


def _sparsification(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Draw the error of what is left, by the share taken away, in per cent."""
    lines = {
        name: [(100 * row["share"], row[key]) for row in rows]
        for key, name in (("uncertainty", "uncertainty"), ("oracle", "oracle"))
    }
    return plot("Error of the rest, without the most uncertain", lines, "{:.0f} % taken away")


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table of coverage as text."""
    return [
        {
            "group": row["group"],
            "mean": _percent(row["mean"]),
            "interval": f"{_percent(row['low'])} to {_percent(row['high'])}",
            "doubtful": row["group"] in found["doubtful"],
        }
        for row in found.get("coverage", [])
    ]
