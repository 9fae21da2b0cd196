"""The settings of a small gap training, and its results."""

from emdiffuse.config import Model
from emdiffuse.models.inference import RestorationModel


def model_settings(**training):
    return Model.model_validate(
        {
            "task": "vemdiffuse-i",
            "datasets": ["a"],
            "factor": 3,
            "patches": {"size": 32, "overlap": 0.5, "validation": 0.25, "axes": ["z", "y", "x"]},
            "network": {"channels": 8, "multipliers": [1, 2], "blocks": 1},
            "training": {"steps": 6, "batch": 4, "warmup": 2, "validate_every": 3, "seed": 5, **training},
        }
    )


def weights(experiment):
    return RestorationModel.load(experiment / "best").network.state_dict()
