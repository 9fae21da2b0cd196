"""The configuration: pydantic models, the single source of truth for every key.

Conventions
-----------
* Lengths are in voxels unless a key states otherwise; voxel sizes have a unit and are stored in
  nanometers.
* ``emdiffuse schema`` prints their JSON schema, for editors that complete and check keys.
"""

from __future__ import annotations

from emdiffuse.config.datasets import (
    MAXIMUM_FACTOR,
    MINIMUM_FACTOR,
    Alignment,
    Dataset,
    Degrade,
    Factor,
    KeepEvery,
    Name,
    Noise,
    Pairs,
    VoxelSize,
    anisotropy_factor,
)
from emdiffuse.config.models import Augmentation, Model, Network, Patches, Training
from emdiffuse.config.restorations import Calibration, Restoration, Sampler, Tiling
from emdiffuse.config.whole import Config, json_schema, read_config, validate

__all__ = [
    "MAXIMUM_FACTOR",
    "MINIMUM_FACTOR",
    "Alignment",
    "Augmentation",
    "Calibration",
    "Config",
    "Dataset",
    "Degrade",
    "Factor",
    "KeepEvery",
    "Model",
    "Name",
    "Network",
    "Noise",
    "Pairs",
    "Patches",
    "Restoration",
    "Sampler",
    "Tiling",
    "Training",
    "VoxelSize",
    "anisotropy_factor",
    "json_schema",
    "read_config",
    "validate",
]
