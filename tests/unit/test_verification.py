"""Lost parts of a store give errors wherever they are read, are found, and are recomputed by the next run."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import write_pairs, write_volume
from restoring import cut, flip

from emdiffuse.acquisition.acquire import keep_every
from emdiffuse.acquisition.degradation import degrade
from emdiffuse.config import Alignment, Degrade, Model
from emdiffuse.evaluation.comparison import read
from emdiffuse.patches.cut import PatchStore, cut_patches
from emdiffuse.registration.register import register
from emdiffuse.runtime.errors import DamagedError, StoreError
from emdiffuse.stores.array import Array, create_array
from emdiffuse.stores.links import link
from emdiffuse.stores.verification import losses, verify_store
from emdiffuse.stores.volume import open_volume

MODEL = {
    "task": "vemdiffuse-i",
    "datasets": ["a"],
    "factor": 2,
    "patches": {"size": 16, "validation": 0.2},
}


def acquired(folder, medulla, name="a", **facts):
    """Write an acquired volume of two shards along z."""
    path = folder / f"results/acquired/{name}.ome.zarr"
    return write_volume(path, np.concatenate([medulla, medulla])[:70, :48, :48], (10, 10, 10),
                        **{"stage": "acquire", "kind": "volume", **facts})  # fmt: skip


def registered(folder, name="a"):
    """Register it, as the workflow would."""
    out = folder / f"results/registered/{name}.ome.zarr"
    side = [out.parent / f"{name}.quality.{kind}" for kind in ("json", "png")]
    register(folder / f"results/acquired/{name}.ome.zarr", Alignment(), out, *side)
    return out


def patches(folder, store):
    path = folder / "results/patches/m.zarr"
    cut_patches([store], Model.model_validate(MODEL), path)
    return path


def degraded(settings, images):
    chosen = Degrade.model_validate({"dataset": "a", **settings})
    return lambda store, folder: degrade(store, chosen, folder / "d.zarr", "d", images=images)


def measured(store, folder):
    volume = open_volume(store)
    read(volume, tuple(slice(0, n) for n in volume.array.shape))


READERS = {
    "keep-every": lambda store, folder: keep_every(store, 2, folder / "thin.zarr", "thin"),
    "degrade to images": degraded({}, True),
    "degrade to pairs": degraded({"every": 8}, False),
    "register": lambda store, folder: registered(folder),
    "patches": lambda store, folder: patches(folder, store),
    "evaluate": measured,
}
CASES = [(stage, damage) for stage in READERS for damage in (Path.unlink, flip)]
# an aligned volume is passed on as links, and later stages read its chunks
CASES.remove(("register", flip))


@pytest.mark.parametrize(("stage", "damage"), CASES)
def test_a_stage_refuses_a_store_of_which_a_shard_is_lost(medulla, tmp_path, stage, damage):
    store = acquired(tmp_path, medulla)
    shard = Array(store / "0").chunk_path((1, 0, 0))
    damage(shard)
    with pytest.raises(DamagedError, match=f"^{shard}: .*verify {store} --repair. and start again"):
        READERS[stage](store, tmp_path)
    assert not list(tmp_path.glob("*.zarr")) and not list(tmp_path.glob("results/patches/*"))


@pytest.mark.parametrize("array", ["condition", "target"])
def test_a_lost_shard_of_patches_is_refused_in_training(medulla, tmp_path, array):
    path = patches(tmp_path, acquired(tmp_path, medulla))
    store = PatchStore(path)
    store.read(np.array([0]))
    Array(path / array).chunk_path((0, 0, 0, 0)).unlink()
    with pytest.raises(DamagedError, match=f"{array}.*missing; run `emdiffuse verify {path} --repair`"):
        store.read(np.array([0]))


def test_an_inner_chunk_that_is_absent_from_a_shard_is_lost(tmp_path):
    array = create_array(tmp_path / "a", (8, 8), np.uint8, chunk=(4, 4), shard=(8, 8))
    array[0:4, 0:4] = np.ones((4, 4), np.uint8)
    assert array[0:4, 0:4].all()
    with pytest.raises(DamagedError, match="is damaged"):
        array[:, :]


def test_what_is_linked_is_whole(medulla, tmp_path):
    store = acquired(tmp_path, medulla)
    Array(store / "0").chunk_path((0, 0, 0)).unlink()
    with pytest.raises(DamagedError, match="missing"):
        link(store / "0", tmp_path / "0")
    assert not (tmp_path / "0").exists()


@pytest.fixture(scope="module")
def made(medulla, tmp_path_factory):
    """One store of each stage."""
    folder = tmp_path_factory.mktemp("made")
    acquired(folder, medulla)
    patches(folder, registered(folder))
    pair = (medulla[0, :40, :40], medulla[0, :40, :40])
    write_pairs(folder / "results/acquired/p.ome.zarr", [pair, pair])
    return folder


KEPT = {
    "acquired": "results/acquired/a.ome.zarr",
    "registered": "results/registered/a.ome.zarr",
    "pairs": "results/acquired/p.ome.zarr",
    "patches": "results/patches/m.zarr",
}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_every_file_of_a_store_that_is_lost_is_found(made, tmp_path, kind, damage, caplog):
    """Both chunks and metadata, one at a time."""
    folder = shutil.copytree(made, tmp_path / "copy")
    store = folder / KEPT[kind]
    with caplog.at_level(logging.INFO):
        verify_store(store)
    assert "are intact" in caplog.text
    # hidden files record the provenance; the store is readable without them
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name[0] != "."]
    assert len(files) > 3
    for file in files:
        content = file.read_bytes()
        # JSON with a flipped bit may still be valid
        (cut if damage is flip and file.name == "zarr.json" else damage)(file)
        assert [loss.file for loss in losses(store)[0]] == [file]
        file.write_bytes(content)
    assert losses(store)[0] == []


@pytest.mark.parametrize("kind", KEPT)
def test_a_repaired_store_counts_as_unfinished(made, tmp_path, kind):
    folder = shutil.copytree(made, tmp_path / "copy")
    store = folder / KEPT[kind]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    chunk = next(path for path in sorted(store.rglob("*")) if path.name.isdigit() and path.is_file())
    chunk.unlink()
    before.pop(chunk)
    with pytest.raises(StoreError, match=f"^{chunk}: missing of the .*--repair`"):
        verify_store(store)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verify_store(store, repair=True)
    gone = before.keys() - {path for path in folder.rglob("*") if path.is_file()}
    assert gone == {store / "zarr.json", store / ".zarr.json.kept"}


@pytest.mark.parametrize("damaged", ["acquired", "registered"])
def test_a_store_that_shares_a_damaged_chunk_is_made_again_too(medulla, tmp_path, damaged):
    """Hard links share one file: linking a registered volume to the same damage again would not help."""
    acquired(tmp_path, medulla)
    registered(tmp_path)
    flip(Array(tmp_path / KEPT[damaged] / "0").chunk_path((1, 0, 0)))
    verify_store(tmp_path / KEPT[damaged], repair=True)
    assert not any((tmp_path / KEPT[kind] / "zarr.json").exists() for kind in ("acquired", "registered"))


def test_a_lost_mask_of_a_registered_pair_is_missed(made, tmp_path):
    store = shutil.copytree(made / KEPT["pairs"], tmp_path / "p.ome.zarr")
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["emdiffuse"]["fields"][0]["quality"] = {"changed": True}
    (store / "zarr.json").write_text(json.dumps(metadata))
    assert [loss.file for loss in losses(store)[0]] == [store / "0000/mask/zarr.json"]


def test_what_is_no_store_of_the_workflow_is_left_alone(medulla, tmp_path):
    foreign = write_volume(tmp_path / "raw.zarr", medulla[:2, :32, :32], (1, 1, 1), stage="restored")
    Array(foreign / "0").chunk_path((0, 0, 0)).unlink()
    for path, said in ((foreign, "not a store of the workflow"), (tmp_path / "no", "there is no store")):
        with pytest.raises(StoreError, match=said):
            verify_store(path, repair=True)
    assert open_volume(foreign)
