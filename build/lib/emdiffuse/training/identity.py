"""What a training's result follows from: one link, asked by whoever resumes it or follows its job."""

from __future__ import annotations

from emdiffuse.config import Model
from emdiffuse.config.shipped import model_folder
from emdiffuse.models.description import model_link
from emdiffuse.stores.provenance import Link, made_by


def training_link(model: Model, name: str, patches: Link) -> Link:
    """Return how a model is trained.

    Parameters
    ----------
    model : Model
        Its settings. How often a state is saved changes no weight; datasets and the model that it is begun
        from are known by their content.
    name : str
        Of the model.
    patches : Link
        How its patch store was made.

    Raises
    ------
    ModelError
        If the model that it is begun from cannot be read.
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
