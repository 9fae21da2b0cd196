"""The alignment of datasets and the training of models, for the report."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from emdiffuse.report.charts import chart
from emdiffuse.report.files import read_json
from emdiffuse.report.settings import flatten
from emdiffuse.report.tables import field_rows


def alignment(results: Path, name: str) -> dict[str, Any] | None:
    """Return the quality of a dataset's alignment: conclusion, numbers and figure."""
    quality = read_json(results / "registered" / f"{name}.quality.json")
    if quality is None:
        return None
    figure = results / "registered" / f"{name}.quality.png"
    image = base64.b64encode(figure.read_bytes()).decode() if figure.exists() else None
    skipped = ("dataset", "conclusion", "reason")
    numbers = {key: value for key, value in flatten(quality).items() if value and key not in skipped}
    found = {"name": name, "conclusion": quality.get("conclusion"), "numbers": numbers, "image": image}
    return {**found, "fields": field_rows(quality.get("fields", []))}


def training(experiment: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return how a model was trained: a line of facts, curves, and an image of a batch."""
    facts = [f"{found['steps']} steps"] if "steps" in found else []
    facts += [f"{found['seconds'] / 60:.1f} minutes"] if "seconds" in found else []
    facts += [f"on {found['device']}"] if "device" in found else []
    facts += [found["learned"]] if "learned" in found else []
    history = [entry for entry in found.get("history", []) if "step" in entry]
    charts = [
        chart("Training loss", history, {"loss": "training"}),
        chart("Validation PSNR (dB)", history, {"validation_psnr": "model", "plain_psnr": "input or linear"}),
        chart(
            "Validation error to noisy pixels (range 2, noise included)",
            history,
            {"validation_loss": "model", "plain_loss": "pixels around"},
        ),
        chart("Validation SSIM", history, {"validation_ssim": "model", "plain_ssim": "input or linear"}),
    ]
    return {
        "name": name,
        "facts": ", ".join(facts),
        "outlook": found.get("outlook", {}).get("sentences", []),
        "charts": [drawn for drawn in charts if drawn],
        "batch": _embedded(experiment / "best" / "batch.png"),
    }


def _embedded(path: Path) -> str | None:
    """Return a PNG as a data URI, or None if it does not exist."""
    if not path.exists():
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
