"""Provenance of a training, used to resume it and to follow its job."""

from __future__ import annotations

from emdiffuse.config import Model
from emdiffuse.config.shipped import model_folder
from emdiffuse.models.description import model_link
from emdiffuse.stores.provenance import Link, made_by


def training_link(model: Model, name: str, patches: Link) -> Link:
    """Return the provenance of a model.

    Parameters
    ----------
    model : Model
        Settings of the model. The interval of checkpoints is excluded, as it changes no weight; datasets and
        the starting model are identified by their content.
    name : str
        Name of the model.
    patches : Link
        Provenance of the patch store.

    Raises
    ------
    ModelError
        If the starting model cannot be read.
    """
    begun = model.training.init_from
    settings = {
        "task": model.task,
        "factors": list(model.factors),
        "network": model.network.model_dump(mode="json"),
        "augmentation": model.augmentation.model_dump(mode="json"),
        "training": model.training.model_dump(mode="json", exclude={"init_from", "checkpoint_minutes"}),
    }
    return made_by(
        "train", name, settings, patches, *([] if begun is None else [model_link(model_folder(begun))])
    )
