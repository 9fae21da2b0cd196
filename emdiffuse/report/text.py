"""The words and curves of the report: its verdict, charts and settings, as plain values for the template."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from emdiffuse.evaluation.methods import label as label_of
from emdiffuse.evaluation.methods import words


def verdict(evaluation: dict[str, Any]) -> str:
    """Say in one sentence whether what was restored beats its reference, in xy."""
    beats, parts = evaluation["beats"], []
    other = words(evaluation["reference"])
    for measure, name, unit, digits in (("psnr", "PSNR", " dB", 2), ("ssim", "SSIM", "", 3)):
        gain = evaluation["gain"][measure]
        if gain["mean"] is None:
            parts.append(f"{name} (what was restored equals the truth)")
            continue
        interval = ""
        if gain["low"] is not None:
            interval = f"; 95 % interval {gain['low']:+.{digits}f} to {gain['high']:+.{digits}f}"
        parts.append(f"{name} ({gain['mean']:+.{digits}f}{unit}{interval})")
    if all(beats.values()):
        return f"The restoration beats {other} in both {parts[0]} and {parts[1]}."
    if not any(beats.values()):
        return f"The restoration beats {other} neither in {parts[0]} nor in {parts[1]}."
    better, worse = (parts[0], parts[1]) if beats["psnr"] else (parts[1], parts[0])
    return f"The restoration does not beat {other} in both: better in {better}, not in {worse}."


def surpassing(evaluation: dict[str, Any]) -> str:
    """Name the other methods that do better than what was restored, in xy as printed, and in what."""
    methods, found = evaluation["methods"], []
    for method in methods:
        better = []
        for measure, name, digits in (("psnr", "PSNR", 2), ("ssim", "SSIM", 3)):
            ours, theirs = (methods[m]["xy"][measure]["mean"] for m in ("restored", method))
            if ours is not None and (theirs is None or round(theirs, digits) > round(ours, digits)):
                better.append(name)
        if better:
            found.append(f"{label_of(method)} ({' and '.join(better)})")
    return f"Better than the restoration: {', '.join(found)}." if found else ""


def chart(title: str, history: list[dict[str, Any]], keys: dict[str, str]) -> dict[str, Any] | None:
    """Return a line chart over training steps; None without points."""
    lines = {}
    for key, label in keys.items():
        points = [(e["step"], e[key]) for e in history if isinstance(e.get(key), int | float)]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if points:
            lines[label] = points
    return plot(title, lines, "{} steps") if lines else None


def plot(title: str, lines: dict[str, list[tuple[float, float]]], end: str) -> dict[str, Any]:
    """Return a line chart from x = 0, in units of a 300 x 150 plot; empty lines are left out.

    Parameters
    ----------
    title : str
        What is drawn.
    lines : dict
        Points of every line.
    end : str
        What the last x is, a format.
    """
    lines = {label: points for label, points in lines.items() if points}
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    last = max(max(xs), 1)
    low, high = min(ys), max(ys)
    step = 10.0 ** math.floor(math.log10(max(high - low, abs(high) * 1e-3, 1e-9)))
    step *= next((s for s in (1, 2, 5) if (high - low) / (s * step) <= 4), 10)
    bottom = math.floor(low / step) * step
    top = max(math.ceil(high / step - 1e-9) * step, bottom + step)
    digits = max(0, -math.floor(math.log10(step)))

    def place(x: float, y: float) -> tuple[float, float]:
        return round(300 * x / last, 1), round(150 * (top - y) / (top - bottom), 1)

    lines_at = {label: [place(*point) for point in points] for label, points in lines.items()}
    places: dict[str, float] = {}
    for label, drawn in sorted(lines_at.items(), key=lambda line: line[1][-1][1]):
        places[label] = max([drawn[-1][1], *(y + 12 for y in places.values())])
    return {
        "title": title,
        "end": end.format(last),
        "ticks": [
            {"y": place(0, y)[1], "text": f"{y:.{digits}f}"}
            for y in np.arange(bottom, top + step / 2, step).tolist()
        ],
        "lines": lines_at,
        "places": places,
        "ends": {label: f"{points[-1][1]:.4g}" for label, points in lines.items()},
    }


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings or facts as one level of dotted keys and text; long lists are left out."""
    if isinstance(values, dict):
        parts = (flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items())
        return {key: text for part in parts for key, text in part.items()}
    if isinstance(values, list):
        return {prefix: ", ".join(map(str, values))} if len(values) <= 8 and not _nested(values) else {}
    if isinstance(values, bool):
        return {prefix: "yes" if values else "no"}
    return {} if values is None else {prefix: f"{values:.4g}" if isinstance(values, float) else str(values)}


def _nested(values: list[Any]) -> bool:
    return any(isinstance(value, dict | list) for value in values)
