"""Models that were trained elsewhere: published checkpoints, and folders of models.

Conventions
-----------
* Weights are checked against the network as they are read, and nothing that is read is executed (see
  `emdiffuse.models.networks.weights`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from emdiffuse.models.card import CARD_FILE, write_card
from emdiffuse.models.description import read_description
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.networks.weights import import_published, save_model
from emdiffuse.runtime.errors import ModelError


def import_model(source: Path, task: str, out: Path) -> None:
    """Read a model into a folder: ``model.safetensors``, ``model.json`` and its card.

    Parameters
    ----------
    source : Path
        A published checkpoint (``.pth``), or the folder of a model.
    task : str
        A key of `tasks.TASKS`; a folder's own task must be the same.
    out : Path
        Folder to write.

    Raises
    ------
    ModelError
        If the source cannot be read, or does not hold the weights of such a network.
    """
    if not source.is_dir():
        save_model(out, *import_published(source, task))
        write_card(out)
        return
    description = read_description(source)
    if description.task != task:
        raise ModelError(f"{source}: its task is {description.task}, not {task}; say so (`task`)", source)
    save_model(out, load_network(source), description)
    if (source / CARD_FILE).exists():
        shutil.copyfile(source / CARD_FILE, out / CARD_FILE)
    else:
        write_card(out)
