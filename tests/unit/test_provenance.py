"""The chain of hashes: it depends on every setting that can change a voxel, and nothing else."""

import json

import numpy as np
import pytest
from helpers import raw_file, write_volume
from pydantic import ValidationError
from typer.testing import CliRunner

from emdiffuse.cli import app
from emdiffuse.config import Augmentation, Model, Network, Training
from emdiffuse.runtime.errors import StoreError
from emdiffuse.stores.provenance import (
    Link,
    SourceFile,
    forget,
    made_by,
    raw,
    read_link,
    reuse,
    write_and_keep,
)
from emdiffuse.stores.volume import open_volume
from emdiffuse.training.identity import training_link

OTHER = {
    Training: {
        "steps": 7, "minutes": 3.0, "patience": 2, "batch": 2, "accumulate": 2,
        "learning_rate": 2e-3, "warmup": 3, "weight_decay": 0.5, "ema": 0.5,
        "loss": "difficulty", "feed": "device",
        "mean_share": 0.25, "validate_every": 3, "checkpoint_minutes": 1.0, "precision": "float32", "seed": 9,
        "init_from": None, "blind_spot": (0, 1),
    },
    Augmentation: {
        "gain": 0.1, "inversion": 0.5, "transposition": False,
        "blur": 0.5, "noise": 0.1, "contrast": 0.1, "brightness_jump": 0.1,
    },
    Network: {
        "architecture": "unet", "channels": 16, "multipliers": (1, 2), "blocks": 1, "dropout": 0.5,
        "checkpointing": True,
    },
}  # fmt: skip
"""Another value of every key of a training."""
NO_WEIGHT = {"checkpoint_minutes", "init_from"}
"""The interval of saving changes no weight; a starting model is identified by its content."""
PATCHES = made_by("patches", "", {})
KEYS = [(section, key) for section in OTHER for key in section.model_fields]


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[f"{s.__name__}.{key}" for s, key in KEYS])
def test_a_training_is_another_by_every_key_that_can_change_a_weight(section, key):
    model = Model(task="vemdiffuse-i", datasets=("a",), factor=3)
    place = section.__name__.lower()
    assert key in OTHER[section], f"give `{place}.{key}` another value here"
    changed = getattr(model, place).model_copy(update={key: OTHER[section][key]})
    links = [training_link(m, "m", PATCHES) for m in (model, model.model_copy(update={place: changed}))]
    assert (links[0].hash != links[1].hash) == (key not in NO_WEIGHT)


def test_names_and_places_are_no_part_of_a_hash_but_content_and_order_are():
    one, two = (SourceFile.model_validate(raw_file(name)) for name in ("s/0", "s/1"))
    moved = [file.model_copy(update={"path": f"archive/{file.path}"}) for file in (one, two)]
    swapped = [a.model_copy(update={"sha256": b.sha256}) for a, b in ((one, two), (two, one))]
    assert raw([one, two]).hash == raw(moved).hash != raw(swapped).hash
    links = [
        made_by("acquire", name, {"size": size}, raw([one])) for name, size in (("a", 1), ("b", 1), ("a", 2))
    ]
    assert links[0].hash == links[1].hash != links[2].hash
    assert len({made_by("train", "", {}, link).hash for link in links}) == 2


def test_an_edited_chain_is_refused():
    content = made_by("acquire", "a", {"size": 1}).model_dump(mode="json")
    assert Link.model_validate(content).hash == content["hash"]
    with pytest.raises(ValidationError, match="was edited"):
        Link.model_validate({**content, "settings": {"size": 2}})


def test_what_stands_is_put_back_and_what_was_made_otherwise_is_not(tmp_path):
    made, other = (made_by("acquire", "a", {"size": size}) for size in (1, 2))
    assert not reuse(tmp_path, lambda: pytest.fail("nothing is there to be compared with"))
    metadata = {"node_type": "group", "attributes": {"emdiffuse": {"made": made.model_dump(mode="json")}}}
    write_and_keep(tmp_path / "zarr.json", metadata)
    (tmp_path / "zarr.json").unlink()  # as Snakemake does before a job
    assert not reuse(tmp_path, lambda: other) and not (tmp_path / "zarr.json").exists()
    assert reuse(tmp_path, lambda: made)
    assert json.loads((tmp_path / "zarr.json").read_text()) == metadata
    forget(tmp_path / "zarr.json")
    assert not reuse(tmp_path, lambda: made)


def test_the_chain_of_a_store_is_printed_and_what_has_none_is_refused(tmp_path):
    store = write_volume(tmp_path / "a.ome.zarr", np.zeros((2, 8, 8), np.uint8), (1, 1, 1))
    ran = CliRunner().invoke(app, ["provenance", str(store)])
    assert ran.exit_code == 0 and open_volume(store).made.hash[:12] in ran.output
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(StoreError, match=r"b\.json: its provenance is not recorded"):
        read_link(tmp_path / "b.json")
    with pytest.raises(StoreError, match=r"none: cannot be read"):
        read_link(tmp_path / "none")
