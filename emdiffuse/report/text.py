"""The words and numbers of the report: its verdict, tables and curves, as plain values for the template."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

COLUMNS = (
    ("xy", "psnr", "PSNR (dB)", 2),
    ("xy", "ssim", "SSIM", 3),
    ("xy", "fsim", "FSIM", 3),
    ("xy", "high_frequency_ratio", "Fine detail (truth = 1)", 2),
    ("xz", "psnr", "PSNR (dB)", 2),
    ("xz", "ssim", "SSIM", 3),
    ("yz", "psnr", "PSNR (dB)", 2),
    ("yz", "ssim", "SSIM", 3),
)
"""Orientation, measure, heading and decimals of the columns of the table."""
UNRANKED = ("high_frequency_ratio",)
OTHERS = {"linear": "linear interpolation", "input": "its input", "cubic": "cubic interpolation"}
"""What a restoration is compared with, in words."""


def verdict(evaluation: dict[str, Any]) -> str:
    """Say in one sentence whether what was restored beats its reference, in xy."""
    beats, parts, other = evaluation["beats"], [], OTHERS[evaluation["reference"]]
    for measure, name, unit, digits in (("psnr", "PSNR", " dB", 2), ("ssim", "SSIM", "", 3)):
        gain = evaluation["gain"][measure]
        if gain["mean"] is None:
            parts.append(f"{name} (the restored volume equals the truth)")
            continue
        interval = ""
        if gain["low"] is not None:
            interval = f"; 95 % interval {gain['low']:+.{digits}f} to {gain['high']:+.{digits}f}"
        parts.append(f"{name} ({gain['mean']:+.{digits}f}{unit}{interval})")
    if all(beats.values()):
        return f"The restored volume beats {other} in both {parts[0]} and {parts[1]}."
    if not any(beats.values()):
        return f"The restored volume beats {other} neither in {parts[0]} nor in {parts[1]}."
    better, worse = (parts[0], parts[1]) if beats["psnr"] else (parts[1], parts[0])
    return f"The restored volume does not beat {other} in both: better in {better}, not in {worse}."


def table(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the table of measures as text: rows are methods, and the best of a column is marked."""
    rows: list[dict[str, Any]] = [{"name": name, "cells": []} for name in evaluation["methods"]]
    columns = [column for column in COLUMNS if column[0] in evaluation["methods"]["restored"]]
    for plane, measure, _, digits in columns:
        values = [evaluation["methods"][row["name"]][plane][measure] for row in rows]
        ranks = [_rank(value) for value in values]
        for row, value, rank in zip(rows, values, ranks, strict=True):
            cell = {"mean": "identical" if rank == math.inf else "n/a", "interval": "", "best": False}
            if value["mean"] is not None:
                cell["mean"] = f"{value['mean']:.{digits}f}"
                cell["best"] = measure not in UNRANKED and rank == max(ranks)
            if value["low"] is not None:
                cell["interval"] = f"{value['low']:.{digits}f} to {value['high']:.{digits}f}"
            row["cells"].append(cell)
    planes = {plane: sum(column[0] == plane for column in columns) for plane, *_ in columns}
    return {"columns": columns, "planes": planes, "rows": rows}


def _rank(value: dict[str, Any]) -> float:
    """Return what a value is ordered by: equality with the truth above every number."""
    if value["mean"] is None:
        return math.inf if value.get("identical") else -math.inf
    return float(value["mean"])


def chart(title: str, history: list[dict[str, Any]], keys: dict[str, str]) -> dict[str, Any] | None:
    """Return a line chart over training steps, in units of a 300 x 150 plot; None without points."""
    lines = {}
    for key, label in keys.items():
        points = [(e["step"], e[key]) for e in history if isinstance(e.get(key), int | float)]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if points:
            lines[label] = points
    if not lines:
        return None
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    last = max(max(xs), 1)
    low, high = min(ys), max(ys)
    step = 10.0 ** math.floor(math.log10(max(high - low, abs(high) * 1e-3, 1e-9)))
    step *= next((s for s in (1, 2, 5) if (high - low) / (s * step) <= 4), 10)
    bottom, top = math.floor(low / step) * step, (math.floor(high / step) + 1) * step
    digits = max(0, -math.floor(math.log10(step)))

    def place(x: float, y: float) -> tuple[float, float]:
        return round(300 * x / last, 1), round(150 * (top - y) / (top - bottom), 1)

    lines_at = {label: [place(*point) for point in points] for label, points in lines.items()}
    places: dict[str, float] = {}
    for label, drawn in sorted(lines_at.items(), key=lambda line: line[1][-1][1]):
        places[label] = max([drawn[-1][1], *(y + 12 for y in places.values())])
    return {
        "title": title,
        "last": last,
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
