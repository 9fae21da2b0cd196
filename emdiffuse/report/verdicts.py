"""The verdict on a restoration: what the comparison with classical methods supports.

Conventions
-----------
* A restoration is compared with the *best classical method* in each metric, on the same planes, by the 95 %
  interval of its mean gain in xy. It is better if the whole interval is above 0, and worse if it is below 0;
  otherwise there is no clear difference. Without an interval there is no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from emdiffuse.evaluation.methods import label, words

Standing = Literal["better", "worse", "unclear", "unknown", "equal"]
MEASURES = (("psnr", "PSNR", " dB", 2), ("ssim", "SSIM", "", 3))


@dataclass(frozen=True)
class Gain:
    """The gain over the best classical method, in one metric.

    Attributes
    ----------
    measure : str
        PSNR or SSIM.
    standing : str
        The verdict that its interval supports.
    mean, interval : str
        As text, with sign and unit; the interval may be empty.
    method : str
        The best classical method, in words.
    """

    measure: str
    standing: Standing
    mean: str
    interval: str
    method: str


def gains(evaluation: dict[str, Any]) -> list[Gain]:
    """Return the gains in PSNR and SSIM."""
    found = []
    for key, name, unit, digits in MEASURES:
        best = evaluation["best"][key]
        if best["mean"] is None:
            found.append(Gain(name, "equal", "", "", words(best["method"])))
            continue
        interval = ""
        if best["low"] is not None:
            interval = f"{best['low']:+.{digits}f} to {best['high']:+.{digits}f}"
        mean = f"{best['mean']:+.{digits}f}{unit}"
        found.append(Gain(name, _standing(best), mean, interval, words(best["method"])))
    return found


def _standing(best: dict[str, Any]) -> Standing:
    if best["low"] is None:
        return "unknown"
    return "better" if best["low"] > 0 else "worse" if best["high"] < 0 else "unclear"


def short_verdict(found: list[Gain]) -> str:
    """Return the verdict in a few words."""
    standings = {gain.standing for gain in found}
    if standings == {"equal"}:
        return "Equals the ground truth"
    if "unknown" in standings:
        return "Too little data to tell"
    said = {"better": "Better", "worse": "Worse", "unclear": "No clear difference", "equal": "Perfect"}
    if len(standings) == 1:
        return said[found[0].standing]
    parts = [f"{said[gain.standing]} in {gain.measure}" for gain in found]
    return ", ".join([parts[0], *(part[0].lower() + part[1:] for part in parts[1:])])


def verdict(evaluation: dict[str, Any]) -> str:
    """Return the full verdict from the comparison with the best classical methods."""
    found = gains(evaluation)
    return " ".join([_conclusion(found), *(_told(gain) for gain in found)])


def _conclusion(found: list[Gain]) -> str:
    standings = [gain.standing for gain in found]
    by = {kind: " and ".join(gain.measure for gain in found if gain.standing == kind) for kind in standings}
    if "unknown" in by:
        return "There are too few gaps or images for an interval, so there is no verdict."
    said = {
        "better": "better than the best classical method in {}",
        "worse": "worse than the best classical method in {}",
        "unclear": "not clearly better or worse than the best classical method in {}",
        "equal": "equal to the ground truth in {}",
    }
    parts = [said[kind].format(names) for kind, names in by.items()]
    return f"The restoration is {', and '.join(parts)}."


def _told(gain: Gain) -> str:
    if gain.standing == "equal":
        return f"{gain.measure}: equal to the ground truth."
    interval = f" (95 % interval {gain.interval})" if gain.interval else ""
    return f"{gain.measure}: {gain.mean}{interval} against {gain.method}."


def surpassing(evaluation: dict[str, Any]) -> str:
    """Return the methods with a higher printed mean in xy than the restoration, and in which metric."""
    methods, found = evaluation["methods"], []
    for method in methods:
        better = []
        for measure, name, _, digits in MEASURES:
            ours, theirs = (methods[m]["xy"][measure]["mean"] for m in ("restored", method))
            if ours is not None and (theirs is None or round(theirs, digits) > round(ours, digits)):
                better.append(name)
        if better:
            found.append(f"{label(method)} ({' and '.join(better)})")
    return f"Higher on average than the restoration: {', '.join(found)}." if found else ""
