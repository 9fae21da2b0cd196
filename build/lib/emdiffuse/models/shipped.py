"""The shipped models: what there is, and whether its files are whole.

Conventions
-----------
* Each is a folder in ``weights``: ``model.safetensors``, ``model.json`` and its card, ``README.md``.
* ``weights/SHA256SUMS`` holds the checksums of all these files, as `sha256sum` writes them. Nothing is ever
  downloaded.
* `emdiffuse.config.shipped.model_folder` finds a model by its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from emdiffuse.config.shipped import SHIPPED, SHIPPED_FOLDER, model_folder
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import WEIGHTS_FILE, read_description
from emdiffuse.runtime.errors import ModelError

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class ShippedModel:
    """A shipped model: its name, what it does, its folder, and the size of its weights in bytes."""

    name: str
    title: str
    folder: Path
    size: int


def shipped_models() -> list[ShippedModel]:
    """Return the shipped models, in the order of the tasks."""
    found = []
    for name in SHIPPED:
        folder = model_folder(name)
        task = TASKS[read_description(folder).task]
        found.append(ShippedModel(name, task.title, folder, (folder / WEIGHTS_FILE).stat().st_size))
    return found


def verify_shipped(folder: Path = SHIPPED_FOLDER) -> int:
    """Compare the files of the shipped models with their checksums; return how many there are.

    Raises
    ------
    ModelError
        If a file is missing or differs, or the list of checksums cannot be read.
    """
    lines = _read(folder / SUMS).decode(errors="replace").splitlines()
    for line in lines:
        expected, _, name = line.partition("  ")
        if hashlib.sha256(_read(folder / name)).hexdigest() != expected:
            path = folder / name
            raise ModelError(f"{path} differs from the file that was shipped; install emdiffuse again", path)
    return len(lines)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; install emdiffuse again", path) from error
