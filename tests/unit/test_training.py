"""Patches and training: patches are at their stated positions, and training follows its settings."""

import json

import numpy as np
import pytest
import torch
from cv2 import IMREAD_UNCHANGED, imread
from helpers import INTENSITY, raw_file, write_pairs, write_volume
from learning import model_settings, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from emdiffuse.config import Augmentation, Model, Network, Sampler
from emdiffuse.models.draws import Draws
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.processes import Batch, NativeProcess
from emdiffuse.patches.cut import ORIGIN_COLUMNS, TRAINING, VALIDATION, PatchStore, cut_patches
from emdiffuse.runtime.errors import DataError, EmdiffuseError
from emdiffuse.stores.array import Array
from emdiffuse.training.feed import ResidentPatches, draw_batch
from emdiffuse.training.train import train


def test_patches_are_the_slices_at_their_origin(store, medulla):
    patches = PatchStore(store)
    table = Array(store / "origin")[:, :]
    assert len(patches.training) + len(patches.validation) == len(table) == patches.condition.shape[0]
    assert set(table[:, ORIGIN_COLUMNS.index("axis")]) == {0, 1, 2}
    unit = (medulla.astype(np.float32) - INTENSITY["low"]) / (INTENSITY["high"] - INTENSITY["low"]) * 2 - 1
    for row in (0, len(table) // 2, len(table) - 1):
        _, axis, *start, factor = (int(v) for v in table[row][:6])
        assert factor == 3
        box = tuple(slice(s, s + (10 if i == axis else 32)) for i, s in enumerate(start))
        stack = np.moveaxis(unit[box], axis, 0)
        condition, target = patches.read(np.array([row]))
        np.testing.assert_allclose(condition[0], stack[[0, 3, 6, 9]], atol=2e-3)
        np.testing.assert_allclose(target[0], stack[[4, 5]], atol=2e-3)


def test_training_and_validation_never_share_a_voxel(store):
    table = Array(store / "origin")[:, :]
    axis, z, split = (table[:, ORIGIN_COLUMNS.index(name)] for name in ("axis", "z", "split"))
    last = z + np.where(axis == 0, 10, 32)
    assert last[split == TRAINING].max() + 3 <= z[split == VALIDATION].min()


def test_blank_patches_are_left_out(medulla, tmp_path):
    values = medulla[:48, :64, :64].copy()
    values[:, :, 40:] = 90
    volume = write_volume(tmp_path / "a.ome.zarr", values, (10, 10, 10))
    cut_patches([volume], model_settings(), tmp_path / "p.zarr")
    patches = PatchStore(tmp_path / "p.zarr")
    stacks = np.concatenate(patches.read(np.arange(patches.condition.shape[0])), axis=1)
    assert stacks.std((1, 2, 3)).min() >= 0.02


@pytest.mark.parametrize(
    ("shape", "voxel", "message"),
    [
        ((48, 64, 64), (60, 10, 10), "isotropic"),
        ((48, 20, 64), (10, 10, 10), "too few"),
        ((12, 64, 64), (10, 10, 10), "too few"),
    ],
)
def test_unsuitable_volumes_are_refused(medulla, tmp_path, shape, voxel, message):
    values = medulla[: shape[0], : shape[1], : shape[2]]
    volume = write_volume(tmp_path / "a.ome.zarr", values, voxel)
    with pytest.raises(DataError, match=message):
        cut_patches([volume], model_settings(), tmp_path / "p.zarr")
    assert not (tmp_path / "p.zarr").exists()


def test_training_learns_and_describes_itself(store, tmp_path):
    train(
        store, model_settings(steps=60, learning_rate=3e-3, ema=0.9, validate_every=20), "m", tmp_path, "cpu"
    )
    facts = json.loads((tmp_path / "best" / "metrics.json").read_text())
    history = facts["history"]
    assert [entry["step"] for entry in history] == [20, 40, 60]
    assert max(e["validation_psnr"] for e in history) > history[0]["plain_psnr"]
    description = json.loads((tmp_path / "best" / "model.json").read_text())
    assert description["factors"] == [3] and description["sources"] == [raw_file("x")]


def test_dropout_follows_from_the_step(noisy_store, tmp_path):
    network = {"architecture": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "dropout": 0.5}
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)  # what came before must not matter
        model = image_model(steps=2, validate_every=2, checkpoint_minutes=1e-6)
        train(
            noisy_store, model.model_copy(update={"network": Network(**network)}), "m", tmp_path / name, "cpu"
        )
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_minutes_end_a_training(store, tmp_path):
    train(store, model_settings(steps=10**6, minutes=0.03), "m", tmp_path, "cpu")
    facts = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert 0 < facts["steps"] < 10**6 and len(facts["history"]) >= 1


def test_a_training_that_no_longer_improves_ends(store, tmp_path):
    """At this rate the moving average hardly moves, and is never better than at the first validation."""
    model = model_settings(steps=1000, validate_every=1, learning_rate=10.0, patience=3)
    train(store, model, "m", tmp_path, "cpu")
    history = json.loads((tmp_path / "best" / "metrics.json").read_text())["history"]
    scores = [entry["validation_psnr"] for entry in history]
    assert len(scores) - 1 - int(np.argmax(scores)) == 3 and len(scores) < 1000
    train(store, model, "m", tmp_path, "cpu")  # and stays ended
    assert len(json.loads((tmp_path / "best" / "metrics.json").read_text())["history"]) == len(scores)


def test_what_was_found_on_the_way_is_kept(store, tmp_path):
    train(store, model_settings(), "m", tmp_path, "cpu")
    lines = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "best/metrics.json").read_text())["history"] and len(lines) == 2
    board = EventAccumulator(str(tmp_path / "run/tensorboard"), {"images": 0, "scalars": 0}).Reload()
    assert [entry.step for entry in board.Scalars("validation_psnr")] == [3, 6]
    (tag,) = board.Tags()["images"]
    assert [entry.step for entry in board.Images(tag)] == [3, 6]
    picture = imread(str(tmp_path / "best/batch.png"), IMREAD_UNCHANGED)
    assert picture.shape == (4 * 36, 5 * 36) and picture.std() > 20  # 4 examples: 4 real slices and a target


def test_pure_noise_shows_nothing_and_asks_for_the_mean():
    condition, target = torch.rand(4, 4, 8, 8), torch.rand(4, 2, 8, 8)
    batch = Batch.of_gaps(condition, torch.tensor([1 / 3, 2 / 3]), 3.0)
    (x, gamma, *_), wanted = NativeProcess(0.5).example(batch, target, Draws(0, 4))
    assert (gamma[:2] == 0).all() and ((gamma[2:] > 0) & (gamma[2:] < 1)).all()
    assert (x[:2] == 0).all() and (x[2:] != 0).any()
    t = batch.positions[0][:, None, None]
    residual = (target - condition[:, 1:2] - t * (condition[:, 2:3] - condition[:, 1:2])) / 0.5
    torch.testing.assert_close(wanted[:2], -residual[:2])


def image_model(**training):
    return Model.model_validate(
        {
            "task": "emdiffuse-n",
            "datasets": ["a"],
            "patches": {"size": 32, "validation": 0.25},
            "network": {"channels": 8, "multipliers": [1, 2], "blocks": 1},
            "training": {"steps": 6, "batch": 4, "warmup": 2, "validate_every": 6, **training},
        }
    )


@pytest.fixture(scope="module")
def noisy_store(medulla, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    clean = medulla[:2, :96, :96]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    pairs = write_pairs(folder / "a.ome.zarr", list(zip(noisy, clean, strict=True)))
    cut_patches([pairs], image_model(), folder / "p.zarr")
    return folder / "p.zarr"


def test_a_denoiser_learns(noisy_store, tmp_path):
    model = image_model(steps=80, learning_rate=3e-3, ema=0.9, validate_every=80)
    train(noisy_store, model, "m", tmp_path, "cpu")
    entry = json.loads((tmp_path / "best" / "metrics.json").read_text())["history"][-1]
    assert entry["validation_psnr"] > entry["plain_psnr"] + 2


def test_a_model_is_begun_from_another(noisy_store, tmp_path):
    train(noisy_store, image_model(steps=20), "m", tmp_path / "a", "cpu")
    begun = str(tmp_path / "a" / "best")
    known = json.loads((tmp_path / "a/best/model.json").read_text())
    (tmp_path / "a/best/model.json").write_text(json.dumps({**known, "sources": [raw_file("y")]}))
    train(noisy_store, image_model(steps=1, learning_rate=1e-9, init_from=begun), "m", tmp_path / "b", "cpu")
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    description = json.loads((tmp_path / "b/best/model.json").read_text())
    assert description["sources"] == [
        *known["sources"],
        raw_file("y"),
    ]  # what the first one learned from, too
    wider = image_model(init_from=begun).model_copy(
        update={"network": image_model().network.model_copy(update={"channels": 16})}
    )
    with pytest.raises(EmdiffuseError, match="does not contain the weights of this network"):
        train(noisy_store, wider, "m", tmp_path / "c", "cpu")


def test_an_accumulated_batch_is_the_batch(noisy_store, tmp_path):
    train(noisy_store, image_model(steps=3), "m", tmp_path / "one", "cpu")
    train(noisy_store, image_model(steps=3, accumulate=4), "m", tmp_path / "four", "cpu")
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    assert all(torch.allclose(one[name], four[name], atol=1e-4) for name in one)


def test_the_memory_saving_backward_pass_is_the_same(noisy_store, tmp_path):
    train(noisy_store, image_model(steps=3), "m", tmp_path / "one", "cpu")
    model = image_model(steps=3)
    saving = model.model_copy(update={"network": model.network.model_copy(update={"checkpointing": True})})
    train(noisy_store, saving, "m", tmp_path / "two", "cpu")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("change", [{"factor": 4}, {"factor": (3, 4)}, {"thickness": (0.0, 1.0)}])
def test_a_model_says_of_itself_only_what_its_patches_hold(store, tmp_path, change):
    """Otherwise it would claim to know thick slices or factors that it has not learned from."""
    model = model_settings(steps=1).model_copy(update=change)
    with pytest.raises(DataError, match=r"cut for (factors|thicknesses) .*cut them again"):
        train(store, model, "m", tmp_path / "one", "cpu")
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("loss", ["mse", "difficulty"])
def test_the_published_network_trains_by_its_own_process(store, noisy_store, tmp_path, loss):
    network = {"architecture": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1}
    training = {"steps": 2, "batch": 2, "warmup": 1, "validate_every": 2, "loss": loss}
    shared = {"datasets": ["a"], "network": network, "training": training}
    for task, data, more in (("vemdiffuse-i", store, {"factor": 3}), ("emdiffuse-n", noisy_store, {})):
        model = Model.model_validate({"task": task, **shared, **more})
        train(data, model, "m", tmp_path / task, "cpu")
        loaded = RestorationModel.load(tmp_path / task / "best")
        assert loaded.description.objective.prediction == "epsilon"
        batch = Batch.of_images(torch.rand(1, 1, 32, 32))
        if task == "vemdiffuse-i":
            batch = Batch.of_gaps(torch.rand(1, 4, 32, 32), torch.tensor([1 / 3, 2 / 3]), 3.0)
        noise = torch.randn((2, 2, *batch.shape), generator=torch.Generator().manual_seed(0))
        mean, deviation = loaded.restore(batch, Sampler(steps=2, samples=2), lambda s, k, n=noise: n[s, k])
        if loss == "difficulty":
            phi = loaded.process.difficulty(loaded.network, batch, mean, 0.5, noise[0, 0])
            assert phi.shape == batch.shape and phi.min() > 0
        assert mean.shape == batch.shape and mean.abs().max() <= 1 and deviation.max() > 0


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_patches_kept_on_a_device_give_the_examples_that_threads_give(store, noise):
    model = model_settings(batch=4).model_copy(update={"augmentation": Augmentation(noise=noise, blur=0.3)})
    patches, places = PatchStore(store), np.array([1, 3])
    kept = ResidentPatches(patches, torch.device("cpu"))
    for step in (0, 5):
        drawn = draw_batch(patches, model, step, places, kept)
        expected = draw_batch(patches, model, step, places)
        for one, other in zip((*drawn[0], drawn[1]), (*expected[0], expected[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    whole = draw_batch(patches, model, 5, np.arange(4))
    torch.testing.assert_close(whole[0].condition[places], expected[0].condition, rtol=0, atol=0)


def test_a_model_is_trained_again_where_only_its_card_and_picture_are_left(store, tmp_path):
    """Snakemake removes a rule's outputs before rerunning it, but not the card beside the model."""
    train(store, model_settings(steps=1), "m", tmp_path, "cpu")
    for name in ("model.json", "model.safetensors", "metrics.json"):
        (tmp_path / "best" / name).unlink()
    train(store, model_settings(steps=2), "m", tmp_path, "cpu")
    assert (tmp_path / "best" / "model.json").exists()
    (tmp_path / "best" / "README.md").write_text("My notes.\n")
    (tmp_path / "best" / "model.json").unlink()
    with pytest.raises(EmdiffuseError, match=r"README\.md: this file was not written by emdiffuse"):
        train(store, model_settings(steps=3), "m", tmp_path, "cpu")
