"""How far to trust a restoration, in the report: sentences, curves and a table, as plain values.

Conventions
-----------
* What is said was measured by `emdiffuse.trust`, and scored by the stage `pyramid`; without a truth the
  scores alone are told.
"""

from __future__ import annotations

from typing import Any

from emdiffuse.report.text import plot

LISTED = 12
"""Slices or images that are named as not reliable, at most."""
UNCALIBRATED = (
    "No intervals were calibrated: the standard deviation of the samples promises nothing by itself, and the "
    "diagram shows what Gaussian intervals made of it would hold."
)


def trust_section(
    evaluation: dict[str, Any] | None, reliability: dict[str, Any] | None, where: list[str]
) -> dict[str, Any] | None:
    """Return what is said of a restoration's uncertainty; None when it has none.

    Parameters
    ----------
    evaluation : dict or None
        What `evaluation.evaluate` wrote.
    reliability : dict or None
        The scores of the restored volume, see `stitching.reliability`.
    where : list of str
        What each scored slice or image is called.
    """
    found = (evaluation or {}).get("trust")
    if reliability is None and found is None:
        return None
    sentences = [_scored(reliability, where)] if reliability else []
    if not found:
        return {"sentences": sentences, "charts": [], "rows": []}
    sentences += _kept(found, evaluation or {}) if found["calibration"] else [UNCALIBRATED]
    sentences.append(
        f"Does the uncertainty find the errors? The area between the curves, AUSE, is {found['ause']:.3f}; "
        "0 would be an oracle's order."
    )
    charts = [_diagram(found["diagram"]), _sparsification(found["sparsification"])]
    return {"sentences": sentences, "charts": charts, "rows": _rows(found)}


def _scored(reliability: dict[str, Any], where: list[str]) -> str:
    """Say how many slices or images are reliable, and which are not."""
    scores, threshold = reliability["scores"], reliability["threshold"]
    doubtful = [name for name, score in zip(where, scores, strict=True) if score > threshold]
    said = (
        f"{reliability['reliable']} of {reliability['slices']} {where[0].split()[0]}s count as reliable: "
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
        f"with a confidence of {1 - made['delta']:.0%} at least {1 - made['alpha']:.0%} of the voxels' "
        f"truths lie inside, on average over fields like those. What was counted there as independent: "
        f"{made['units']} units, each one {made['unit']}.",
        f"Here, where nothing was calibrated, {everything['mean']:.1%} do (95 % interval "
        f"{everything['low']:.1%} to {everything['high']:.1%}). An interval is {found['width']:.3g} wide on "
        f"average, of an intensity range of {evaluation['data_range']:g}.",
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
            "mean": f"{row['mean']:.1%}",
            "interval": f"{row['low']:.1%} to {row['high']:.1%}",
            "doubtful": row["group"] in found["doubtful"],
        }
        for row in found.get("coverage", [])
    ]
