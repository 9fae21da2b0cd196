"""How far to trust a restoration: sentences, curves and a table for the report, as plain values.

Conventions
-----------
* `evaluation.trust` measures coverage and sparsification, the stage `pyramid` the scores; without ground
  truth only the scores are shown.
"""

from __future__ import annotations

from typing import Any

from emdiffuse.report.charts import plot
from emdiffuse.stores.facts import CalibrationFacts, Reliability

LISTED = 12
"""Maximum number of slices or images listed as not reliable."""
UNCALIBRATED = (
    "The intervals are not calibrated: the standard deviation of the samples guarantees nothing by itself. "
    "The diagram shows how many true values Gaussian intervals of that width would contain."
)


def trust_section(
    evaluation: dict[str, Any] | None,
    reliability: Reliability | None,
    unit: str,
    calibration: CalibrationFacts | None = None,
) -> dict[str, Any] | None:
    """Return the section on a restoration's uncertainty, or None if it has none.

    Parameters
    ----------
    evaluation : dict or None
        Result of `evaluation.evaluate`.
    reliability : Reliability or None
        The scores of the restored volume.
    unit : str
        Unit that is scored: "slice" or "image".
    calibration : CalibrationFacts, optional
        How the intervals were calibrated.
    """
    found = (evaluation or {}).get("trust")
    if reliability is None and found is None:
        return None
    sentences = [_scored(reliability, unit)] if reliability else []
    if not found:
        sentences += [_promised(calibration.as_json())] if calibration else []
        return {"sentences": sentences, "charts": [], "rows": []}
    sentences += _kept(found, evaluation or {}) if found["calibration"] else [UNCALIBRATED]
    sentences.append(
        f"Does the uncertainty indicate the errors? The area between the two curves (AUSE) is "
        f"{found['ause']:.3f}; it would be 0 if the uncertainty ranked voxels by their errors, and "
        f"{found['ause_random']:.3f} if it ranked them at random."
    )
    charts = [_diagram(found["diagram"]), _sparsification(found["sparsification"])]
    return {"sentences": sentences, "charts": charts, "rows": _rows(found)}


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _scored(reliability: Reliability, unit: str) -> str:
    """Return a sentence on how many slices or images are reliable, and which are not."""
    scores, threshold, slices = reliability.scores, reliability.threshold, reliability.slices
    first = 1 if unit == "image" else 0  # the viewer numbers images from 1
    doubtful = [f"{unit} {z + first}" for z, score in zip(slices, scores, strict=True) if score > threshold]
    said = (
        f"{reliability.reliable} of {len(slices)} {unit}s count as reliable: "
        "their score, the 99th percentile of the standard deviation as a fraction of the intensity range, is "
        "at "
        f"most {threshold:g}. The largest score is {max(scores):.3f}."
    )
    if not doubtful:
        return said
    more = f" and {len(doubtful) - LISTED} more" if len(doubtful) > LISTED else ""
    return f"{said} Not reliable: {', '.join(doubtful[:LISTED])}{more}."


def _promised(made: dict[str, Any]) -> str:
    """Return what the intervals promise, and what the promise is based on."""
    said = (
        f"Intervals of {made['scale']:.2f} standard deviations were calibrated on {made['dataset']}. They "
        f"promise, with {_percent(1 - made['delta'], 0)} confidence, that at least "
        f"{_percent(1 - made['alpha'], 0)} of the true values lie inside, on average over similar fields. "
        f"The promise is based on {made['units']} independent units, each one {made['unit']}."
    )
    if "noise" not in made:
        return said
    return (
        f"{said} There was no ground truth: a second noisy scan ({made['truth']}) stood in for it. Its "
        "noise, "
        f"with a standard deviation of {made['noise']:.3g}, was measured from the difference of the two "
        "scans. "
        "This assumes that the noise of the second scan has zero mean, is independent of the noise of the "
        "first and equally strong, and that small errors are more frequent than large ones."
    )


def _kept(found: dict[str, Any], evaluation: dict[str, Any]) -> list[str]:
    """Return the promised and the observed coverage, and the groups with less than promised."""
    made, everything = found["calibration"], found["coverage"][0]
    held = "; ".join(found["doubtful"])
    return [
        _promised(made),
        f"On these data, which were not used for calibration, {_percent(everything['mean'])} lie inside (95 "
        "% "
        f"interval {_percent(everything['low'])} to {_percent(everything['high'])}). The average interval is "
        f"{found['width']:.3g} wide, with an intensity range of {evaluation['data_range']:g}.",
        f"The promise is not kept for {held}. Do not trust the intervals there."
        if held
        else "In no group of voxels do they contain significantly less than promised.",
    ]


def _diagram(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return a chart of observed against nominal coverage, in per cent."""
    lines = {
        name: [(100 * row["nominal"], 100 * row[key]) for row in rows if key in row]
        for key, name in (("calibrated", "calibrated"), ("gaussian", "Gaussian"), ("nominal", "promised"))
    }
    return plot("True values inside (%), by promised share", lines, "{:.0f} % promised")


def _sparsification(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return a chart of the remaining error by the share of voxels removed, in per cent."""
    lines = {
        name: [(100 * row["share"], row[key]) for row in rows]
        for key, name in (("uncertainty", "uncertainty"), ("oracle", "oracle"))
    }
    return plot("Remaining relative error, most uncertain voxels removed", lines, "{:.0f} % removed")


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
