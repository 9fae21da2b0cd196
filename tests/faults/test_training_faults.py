"""A training that is killed, has a damaged state or a NaN loss ends as if undisturbed."""

import json
import multiprocessing
import signal

import numpy as np
import pytest
import torch
from dying import train_and_die
from learning import model_settings, weights

from emdiffuse.config import Augmentation
from emdiffuse.patches.cut import ORIGIN_COLUMNS, PatchStore
from emdiffuse.runtime.errors import EmdiffuseError
from emdiffuse.training import feed
from emdiffuse.training.train import train

EVERYTHING = Augmentation(blur=0.5, noise=0.2, contrast=0.2, brightness_jump=0.2)


def test_a_training_that_is_killed_again_and_again_ends_in_the_same_weights(store, tmp_path):
    model = model_settings(steps=24, validate_every=5, checkpoint_minutes=1e-6)
    model = model.model_copy(update={"augmentation": EVERYTHING})
    torch.set_num_threads(1)
    train(store, model, "m", tmp_path / "whole", "cpu")
    kills = np.sort(np.random.default_rng(6).choice(np.arange(1, 24), 4, replace=False)).tolist()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emdiffuse.training.train"])
    for number, step in enumerate(kills):
        process = context.Process(
            target=train_and_die, args=(store, tmp_path / "killed", model, step, number % 2 == 1)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train(store, model, "m", tmp_path / "killed", "cpu")
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    found = [
        json.loads((tmp_path / n / "best/metrics.json").read_text())["history"] for n in ("whole", "killed")
    ]
    assert [{**entry, "seconds": 0} for entry in found[0]] == [{**entry, "seconds": 0} for entry in found[1]]


@pytest.mark.parametrize("damage", ["cut", "zeros", "foreign"])
def test_a_state_that_cannot_be_used_is_named_and_the_training_begins_again(store, tmp_path, caplog, damage):
    caplog.set_level("INFO", "emdiffuse")
    state, model = tmp_path / "run/state.pt", model_settings(checkpoint_minutes=1e-6)
    train(store, model, "m", tmp_path, "cpu")
    whole, content = weights(tmp_path), state.read_bytes()
    half = len(content) // 2
    if damage == "foreign":
        torch.save({"identity": "another"}, state)
    else:
        state.write_bytes(content[:half] + (bytes(half) if damage == "zeros" else b""))
    caplog.clear()
    train(store, model, "m", tmp_path, "cpu")
    reason = "was made with other settings or data" if damage == "foreign" else "is damaged"
    assert f"{state} {reason}" in caplog.text and "resumes" not in caplog.text
    again = weights(tmp_path)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_loss_that_is_not_a_number_stops(store, tmp_path, monkeypatch):
    model = model_settings(validate_every=2)
    draw, rows = feed.draw_batch, feed.batch_rows(PatchStore(store), model.training, 4)

    def broken(patches, model, step, places):
        batch, target = draw(patches, model, step, places)
        return (batch._replace(condition=batch.condition * float("nan")) if step == 4 else batch), target

    monkeypatch.setattr(feed, "draw_batch", broken)
    with pytest.raises(EmdiffuseError, match=r"the loss is nan at step 4.*failed_batch\.json"):
        train(store, model, "m", tmp_path, "cpu")
    assert not (tmp_path / "best").exists()
    failed = json.loads((tmp_path / "run/failed_batch.json").read_text())
    origins = PatchStore(store).origins[rows]
    assert [p["z"] for p in failed["patches"]] == origins[:, ORIGIN_COLUMNS.index("z")].tolist()
    assert failed["patches"][0]["dataset"] == "a"
    saved = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert saved["step"] == 4 and all(value.isfinite().all() for value in saved["network"].values())
    monkeypatch.undo()
    train(store, model, "m", tmp_path, "cpu")
    train(store, model, "m", tmp_path / "fresh", "cpu")
    again, fresh = weights(tmp_path), weights(tmp_path / "fresh")
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)
