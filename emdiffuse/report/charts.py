"""Line charts of the report, as plain values for the template."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def chart(title: str, history: list[dict[str, Any]], keys: dict[str, str]) -> dict[str, Any] | None:
    """Return a line chart over training steps, or None without points."""
    lines = {}
    for key, label in keys.items():
        points = [(e["step"], e[key]) for e in history if isinstance(e.get(key), int | float)]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if points:
            lines[label] = points
    return plot(title, lines, "{} steps") if lines else None


def plot(title: str, lines: dict[str, list[tuple[float, float]]], end: str) -> dict[str, Any]:
    """Return a line chart from x = 0, in units of a 300 x 150 plot; empty lines are omitted.

    Parameters
    ----------
    title : str
        What is drawn.
    lines : dict
        Points (x, y) of each line, by name.
    end : str
        Format string that labels the last x.
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
