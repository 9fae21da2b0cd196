"""Import of models trained elsewhere: published checkpoints, and model folders.

Conventions
-----------
* Weights are checked against the network when read, and nothing is executed (see
  `emdiffuse.models.networks.weights`).
"""

from __future__ import annotations

from pathlib import Path

from emdiffuse.models.card import CARD_FILE, write_card
from emdiffuse.models.description import read_description
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.networks.weights import import_published, require_place, save_model
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.errors import ModelError
from emdiffuse.stores.provenance import made_by, raw


def import_model(source: Path, task: str, out: Path, overwrite: bool = False) -> None:
    """Import a model into a folder: ``model.safetensors``, ``model.json`` and its card.

    Parameters
    ----------
    source : Path
        A published checkpoint (``.pth``), or a model folder.
    task : str
        A key of `tasks.TASKS`, which must match that of a model folder.
    out : Path
        Folder to write.
    overwrite : bool
        Whether to replace files that emdiffuse did not write.

    Raises
    ------
    OutputError
        If such files exist.
    ModelError
        If the source cannot be read, or does not contain the weights of such a network.
    """
    if not source.is_dir():
        published, description = import_published(source, task)
        require_place(out, [source], overwrite)
        made = made_by("import", description.name or task, {"task": task}, raw(description.sources))
        save_model(out, published, description.model_copy(update={"made": made}))
        write_card(out)
        return
    description = read_description(source)
    if description.task != task:
        raise ModelError(f"{source}: its task is {description.task}, not {task}; correct `task`", source)
    network = load_network(source)
    require_place(out, [source, *source.iterdir()], overwrite)
    save_model(out, network, description)
    if (source / CARD_FILE).exists():
        write_atomically(out / CARD_FILE, (source / CARD_FILE).read_text())
    else:
        write_card(out)
