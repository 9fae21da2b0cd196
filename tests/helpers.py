"""Helpers of several test files, besides fixtures."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emdiffuse.stores.array import create_image_array
from emdiffuse.stores.facts import PairField, PairsFacts, RestoredFacts, VolumeFacts
from emdiffuse.stores.pairs import finish_pairs
from emdiffuse.stores.provenance import made_by
from emdiffuse.stores.volume import write_image

if TYPE_CHECKING:  # benchmarks use this file where there is no pytest
    import pytest

ROOT = Path(__file__).parents[1]
INTENSITY = {"minimum": 0.0, "maximum": 255.0, "low": 20.0, "high": 230.0}


def raw_file(name: str) -> dict[str, str]:
    """A raw file, as recorded in a store or model."""
    return {"path": f"{name}.tif", "sha256": hashlib.sha256(name.encode()).hexdigest()}


RESTORED = {"model", "task", "estimator", "sampler", "weights", "calibration", "training_sources"}
RESTORED |= {"real_slices", "reliability"}


def volume_facts(values: np.ndarray, voxel_size: Sequence[float], **facts: object) -> VolumeFacts:
    """What a volume says of itself; that it is restored, where a fact of those is given."""
    content = hashlib.sha256(values.tobytes()).hexdigest()
    made = made_by("test", "", {"content": content, "voxel_size": list(voxel_size), "facts": repr(facts)})
    if RESTORED & facts.keys():
        return RestoredFacts.model_validate({"made": made, **facts, "stage": "restored"})
    return VolumeFacts.model_validate({"stage": "register", "made": made, **facts})


def write_volume(
    path: Path, values: np.ndarray, voxel_size: tuple[float, float, float], **facts: object
) -> Path:
    """Write a registered volume like the pipeline, replacing any existing one."""
    shutil.rmtree(path, ignore_errors=True)
    array = create_image_array(path / "0", values.shape, values.dtype)
    for box in array.boxes():
        array[box] = values[box]
    known = {"dataset": path.name.split(".")[0], "intensity": INTENSITY, **facts}
    write_image(path, path.name, voxel_size, volume_facts(values, voxel_size, **known))
    return path


def write_pairs(
    path: Path, pairs: list[tuple[np.ndarray, np.ndarray]], scale: int = 1, **facts: object
) -> Path:
    """Write a store of registered image pairs (moving, fixed), one per field, like the pipeline."""
    fields = []
    made = made_by("test", "", {"content": hashlib.sha256(repr(pairs).encode()).hexdigest()})
    for number, pair in enumerate(pairs):
        group = f"{number:04d}"
        for name, image, side in zip(("moving", "fixed"), pair, (5.0 * scale, 5.0), strict=True):
            write_volume(path / group / name, image[None], (side, side, side))
        fields.append(PairField(group=group, name=f"cell_1/noise_level_1/image{number}"))
    name = path.name.split(".")[0]
    known = {"stage": "register", "dataset": name, "made": made, "scale": scale, "fields": tuple(fields)}
    finish_pairs(path, PairsFacts.model_validate({**known, **facts}))
    return path


def without_bm3d(patch: "pytest.MonkeyPatch") -> None:
    """Hide BM3D's library, which takes seconds per image."""
    patch.setattr("emdiffuse.evaluation.methods.find_spec", lambda name: None)
