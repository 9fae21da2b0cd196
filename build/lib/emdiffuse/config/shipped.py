"""The models that come with the package, known by name wherever a model's folder is expected."""

from __future__ import annotations

from pathlib import Path

SHIPPED = {"emdiffuse-n": "emdiffuse-n", "emdiffuse-r": "emdiffuse-r", "vemdiffuse": "vemdiffuse-i"}
"""Tasks of the shipped models, by name."""

SHIPPED_FOLDER = Path(__file__).parents[1] / "models" / "weights"


def model_folder(name: Path | str) -> Path:
    """Return the folder of a shipped model from its name, and any other path as it is.

    A folder of yours that has the name of a shipped model is written ``./vemdiffuse``.
    """
    return SHIPPED_FOLDER / name if str(name) in SHIPPED else Path(name)
