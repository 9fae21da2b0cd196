"""The shipped models, and verification of their files.

Conventions
-----------
* Each is a folder in ``weights``: ``model.safetensors``, ``model.json`` and the card, ``README.md``.
* ``weights/SHA256SUMS`` contains the checksums of all these files, in the format of `sha256sum`. Nothing is
  ever downloaded.
* `emdiffuse.config.shipped.model_folder` finds a model by its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emdiffuse.config.shipped import SHIPPED, SHIPPED_FOLDER, model_folder
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.card import CARD_FILE
from emdiffuse.models.description import WEIGHTS_FILE, read_description
from emdiffuse.runtime.errors import ModelError

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class ShippedModel:
    """A shipped model.

    Attributes
    ----------
    name, title : str
        Name, and purpose.
    folder : Path
        Folder of the model.
    size : int
        Size of the weights in bytes.
    license : str
        Licence of the weights.
    data_licenses : tuple of str
        Licences of the training data, each once.
    """

    name: str
    title: str
    folder: Path
    size: int
    license: str
    data_licenses: tuple[str, ...]


def shipped_models() -> list[ShippedModel]:
    """Return the shipped models, in the order of the tasks."""
    found = []
    for name in SHIPPED:
        folder = model_folder(name)
        task = TASKS[read_description(folder).task]
        card = front_matter(folder)
        data = tuple(sorted({str(one["license"]) for one in card.get("training_data", [])}))
        size = (folder / WEIGHTS_FILE).stat().st_size
        found.append(
            ShippedModel(name, task.title, folder, size, str(card.get("license", "not stated")), data)
        )
    return found


def front_matter(folder: Path) -> dict[str, Any]:
    """Return the front matter of a model card, including licences; empty without a card."""
    card = folder / CARD_FILE
    parts = card.read_text().split("---\n", 2) if card.is_file() else []
    found: dict[str, Any] = yaml.safe_load(parts[1]) if len(parts) == 3 else {}
    return found


def verify_shipped(folder: Path = SHIPPED_FOLDER) -> int:
    """Compare the files of the shipped models with their checksums; return their number.

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
