"""Patches and training: what is cut is where it says, and an interrupted training ends as if it was not."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from helpers import INTENSITY, write_pairs, write_volume

import emdiffuse.training as training_module
from emdiffuse.augmentation import augment
from emdiffuse.config import Model, Network, Sampler
from emdiffuse.errors import DataError, EmdiffuseError
from emdiffuse.inference import RestorationModel
from emdiffuse.patches import ORIGIN_COLUMNS, TRAINING, VALIDATION, PatchStore, cut_patches
from emdiffuse.processes import Batch, NativeProcess
from emdiffuse.training import train
from emdiffuse.volume import Array


def model_settings(**training):
    return Model.model_validate(
        {
            "task": "vemdiffuse-i",
            "datasets": ["a"],
            "factor": 3,
            "patches": {"size": 32, "overlap": 0.5, "validation": 0.25},
            "network": {"channels": 8, "multipliers": [1, 2], "blocks": 1},
            "training": {"steps": 6, "batch": 4, "warmup": 2, "validate_every": 3, "seed": 5, **training},
        }
    )


@pytest.fixture(scope="module")
def store(medulla, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    volume = write_volume(
        folder / "a.ome.zarr", medulla[:48, :64, :64], (10, 10, 10), sources=[{"sha256": "x"}]
    )
    cut_patches([volume], model_settings(), folder / "p.zarr")
    return folder / "p.zarr"


def test_patches_are_the_slices_at_their_origin(store, medulla):
    patches = PatchStore(store)
    table = Array(store / "origin")[:, :]
    assert len(patches.training) + len(patches.validation) == len(table) == patches.condition.shape[0]
    assert set(table[:, ORIGIN_COLUMNS.index("axis")]) == {0, 1, 2}
    unit = (medulla.astype(np.float32) - INTENSITY["low"]) / (INTENSITY["high"] - INTENSITY["low"]) * 2 - 1
    for row in (0, len(table) // 2, len(table) - 1):
        _, axis, *start, factor, _ = (int(v) for v in table[row])
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


def weights(experiment):
    return RestorationModel.load(experiment / "best").network.state_dict()


def test_training_learns_and_describes_itself(store, tmp_path):
    train(
        store, model_settings(steps=60, learning_rate=3e-3, ema=0.9, validate_every=20), "m", tmp_path, "cpu"
    )
    facts = json.loads((tmp_path / "best" / "metrics.json").read_text())
    history = facts["history"]
    assert [entry["step"] for entry in history] == [20, 40, 60]
    assert max(e["validation_psnr"] for e in history) > history[0]["plain_psnr"]
    description = json.loads((tmp_path / "best" / "model.json").read_text())
    assert description["factors"] == [3] and description["sources"] == [{"sha256": "x"}]


def _train(store, experiment, model):
    torch.set_num_threads(1)
    train(store, model, "m", experiment, "cpu")


def test_a_killed_training_ends_in_the_same_weights(store, tmp_path):
    model = model_settings(steps=40, checkpoint_minutes=1e-6)
    torch.set_num_threads(1)
    train(store, model, "m", tmp_path / "whole", "cpu")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_train, args=(store, tmp_path / "killed", model))
    process.start()
    state = tmp_path / "killed" / "run" / "state.pt"
    while not state.exists():
        assert process.is_alive()
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 0 < torch.load(state, weights_only=True)["step"] < 40
    train(store, model, "m", tmp_path / "killed", "cpu")
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


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


def test_a_state_of_other_settings_or_a_torn_one_is_not_resumed(store, tmp_path):
    train(store, model_settings(learning_rate=5e-3), "m", tmp_path / "a", "cpu")
    train(store, model_settings(), "m", tmp_path / "a", "cpu")
    state = tmp_path / "a" / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    train(store, model_settings(), "m", tmp_path / "a", "cpu")
    train(store, model_settings(), "m", tmp_path / "fresh", "cpu")
    resumed, fresh = weights(tmp_path / "a"), weights(tmp_path / "fresh")
    assert all(torch.equal(resumed[name], fresh[name]) for name in fresh)


def test_minutes_end_a_training(store, tmp_path):
    train(store, model_settings(steps=10**6, minutes=0.03), "m", tmp_path, "cpu")
    facts = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert 0 < facts["steps"] < 10**6 and len(facts["history"]) >= 1


def test_a_loss_that_is_not_a_number_stops(store, tmp_path, monkeypatch):
    monkeypatch.setattr(
        training_module, "augment", lambda b, t, g: (b._replace(condition=b.condition * float("nan")), t)
    )
    with pytest.raises(EmdiffuseError, match="the loss is nan at step 0"):
        train(store, model_settings(), "m", tmp_path, "cpu")
    assert not (tmp_path / "best").exists()


def test_augmentation_keeps_gaps_whole():
    """A flip of z swaps the real slices too: linear interpolation still meets the target of a linear ramp."""
    ramp = torch.arange(10.0)[:, None, None] + torch.rand(1, 8, 8)
    condition, target = ramp[::3].expand(64, 4, 8, 8), ramp[4:6].expand(64, 2, 8, 8)
    batch = Batch(condition, torch.tensor([[1 / 3, 2 / 3]]).expand(64, 2), torch.full((64,), 3.0))
    (condition, *_), target = augment(batch, target, torch.Generator().manual_seed(0))
    t = torch.tensor([1, 2])[:, None, None] / 3
    torch.testing.assert_close(target, condition[:, 1:2] + t * (condition[:, 2:3] - condition[:, 1:2]))
    assert len({tuple(c[1].flatten().tolist()) for c in condition}) > 8


def test_pure_noise_shows_nothing_and_asks_for_the_mean():
    condition, target = torch.rand(4, 4, 8, 8), torch.rand(4, 2, 8, 8)
    batch = Batch(condition, torch.tensor([[1 / 3, 2 / 3]]).expand(4, 2), torch.full((4,), 3.0))
    (x, gamma, *_), wanted = NativeProcess(0.5).example(batch, target, torch.Generator().manual_seed(0))
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
    train(noisy_store, image_model(steps=1, learning_rate=1e-9, init_from=begun), "m", tmp_path / "b", "cpu")
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    wider = image_model(init_from=begun).model_copy(
        update={"network": image_model().network.model_copy(update={"channels": 16})}
    )
    with pytest.raises(EmdiffuseError, match="does not hold the weights of this network"):
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


@pytest.mark.parametrize("loss", ["mse", "difficulty"])
def test_the_published_network_trains_by_its_own_process(store, noisy_store, tmp_path, loss):
    network = {"architecture": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1}
    training = {"steps": 2, "batch": 2, "warmup": 1, "validate_every": 2, "loss": loss}
    shared = {"datasets": ["a"], "network": network, "training": training}
    for task, data, more in (("vemdiffuse-i", store, {"factor": 3}), ("emdiffuse-n", noisy_store, {})):
        model = Model.model_validate({"task": task, **shared, **more})
        train(data, model, "m", tmp_path / task, "cpu")
        loaded = RestorationModel.load(tmp_path / task / "best")
        assert loaded.description["objective"] == {"prediction": "epsilon"}
        batch = Batch.of_images(torch.rand(1, 1, 32, 32))
        if task == "vemdiffuse-i":
            batch = Batch(torch.rand(1, 4, 32, 32), torch.tensor([[1 / 3, 2 / 3]]), torch.tensor([3.0]))
        noise = torch.randn((2, 2, *batch.shape), generator=torch.Generator().manual_seed(0))
        mean, deviation = loaded.restore(batch, Sampler(steps=2, samples=2), lambda s, k, n=noise: n[s, k])
        if loss == "difficulty":
            phi = loaded.process.difficulty(loaded.network, batch, mean, 0.5, noise[0, 0])
            assert phi.shape == batch.shape and phi.min() > 0
        assert mean.shape == batch.shape and mean.abs().max() <= 1 and deviation.max() > 0
