"""The shipped models, which can be given by name wherever a model folder is expected."""

from __future__ import annotations

from pathlib import Path

SHIPPED = {"emdiffuse-n": "emdiffuse-n", "emdiffuse-r": "emdiffuse-r", "vemdiffuse": "vemdiffuse-i"}
"""Tasks of the shipped models, by name."""

SHIPPED_FOLDER = Path(__file__).parents[1] / "models" / "weights"


def model_folder(name: Path | str) -> Path:
    """Return the folder of a shipped model given its name, and any other path unchanged.

    Write ``./vemdiffuse`` for your own folder if it has the name of a shipped model.
    """
    return SHIPPED_FOLDER / name if str(name) in SHIPPED else Path(name)
