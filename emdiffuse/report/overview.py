"""The first screen of the report: a table of all restorations, one row each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from emdiffuse.config import Config, Restoration
from emdiffuse.config.tasks import TASKS
from emdiffuse.report.verdicts import gains, short_verdict

NOT_MEASURED = "Not measured: no ground truth"


def overview_row(
    config: Config, item: Restoration, number: int, evaluation: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the row of a restoration.

    Parameters
    ----------
    config : Config
        The configuration of the run.
    item : Restoration
        The restoration.
    number : int
        Its number in the report.
    evaluation : dict or None
        Result of `evaluation.evaluate`; None without ground truth.

    Returns
    -------
    dict
        number, name and model, done (what was done, in words), gains (`verdicts.Gain`), verdict, standing (of
        both metrics, if they agree) and trust (calibrated or not, in words).
    """
    found = gains(evaluation) if evaluation else []
    standings = {gain.standing for gain in found}
    return {
        "number": number,
        "name": item.dataset,
        "model": item.model,
        "done": _done(config, item),
        "gains": found,
        "verdict": short_verdict(found) if found else NOT_MEASURED,
        "standing": standings.pop() if len(standings) == 1 else "mixed" if found else "unmeasured",
        "trust": _trust(item, evaluation),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Return one sentence that compares the restorations with the best classical methods."""
    counts = Counter(own["standing"] for own in rows)
    said = {
        "better": "better than the best classical method",
        "worse": "worse",
        "unclear": "not clearly different",
        "mixed": "different from metric to metric",
        "equal": "equal to the ground truth",
        "unknown": "measured on too little data to tell",
        "unmeasured": "without ground truth",
    }
    parts = [f"{counts[kind]} {words}" for kind, words in said.items() if counts[kind]]
    total = f"{len(rows)} restoration{'' if len(rows) == 1 else 's'}"
    return f"{total}: {', '.join(parts)}."


def _done(config: Config, item: Restoration) -> str:
    task = TASKS[config.models[item.model].task]
    if task.volumetric:
        between = f" between slices denoised by {item.real_slices}" if item.real_slices else ""
        return f"gaps between slices filled{between}"
    return "images enlarged" if task.scale > 1 else "images denoised"


def _trust(item: Restoration, evaluation: dict[str, Any] | None) -> str:
    """Return whether intervals are calibrated, with their observed coverage if known."""
    if item.calibration is None:
        return "No" if item.sampler.samples > 1 else "No: one estimate, no uncertainty"
    promised = 1 - item.calibration.alpha
    coverage = ((evaluation or {}).get("trust") or {}).get("coverage")
    if not coverage:
        return f"Yes, to contain {100 * promised:.0f} % of true values"
    holds, high = 100 * coverage[0]["mean"], coverage[0]["high"]
    if high < promised:
        return f"Yes, but they contain {holds:.1f} % of true values, not {100 * promised:.0f} %"
    return f"Yes: they contain {holds:.1f} % of true values, {100 * promised:.0f} % promised"
