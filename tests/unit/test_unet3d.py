"""The joint 3-D U-Net: trained like the published one, it restores all slices of a gap together."""

import json

import pytest
import torch
from helpers import write_volume
from restoring import content, run

from emdiffuse.config import Model, Sampler
from emdiffuse.config.settings import parse
from emdiffuse.evaluation.evaluate import evaluate
from emdiffuse.models.draws import Draws
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.processes import Batch, JointProcess
from emdiffuse.patches.cut import cut_patches
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.stores.volume import open_volume
from emdiffuse.training.train import train

NETWORK = {"architecture": "unet3d", "channels": 16, "multipliers": [1, 2], "blocks": 1}
FACTOR = 3


def settings(**changes):
    values = {
        "task": "vemdiffuse-i",
        "datasets": ["a"],
        "factor": FACTOR,
        "patches": {"size": 32, "validation": 0.25},
        "network": NETWORK,
        "training": {"steps": 2, "batch": 2, "warmup": 1, "validate_every": 2},
    }
    return parse(Model, {**values, **changes})


@pytest.fixture(scope="module")
def trained(medulla, tmp_path_factory):
    """Models of both volume tasks, each trained for two steps."""
    folder = tmp_path_factory.mktemp("unet3d")
    volumes = {
        "vemdiffuse-i": write_volume(folder / "a", medulla[:40, 100:164, :64], (10, 10, 10)),
        "vemdiffuse-a": write_volume(folder / "thin" / "a", medulla[::FACTOR, 100:164, :64], (30, 10, 10)),
    }
    for task, volume in volumes.items():
        model = settings(task=task)
        cut_patches([volume], model, folder / f"{task}.zarr")
        train(folder / f"{task}.zarr", model, "joint", folder / task, "cpu")
    return {task: folder / task / "best" for task in volumes}


def gaps(depth=FACTOR - 1, size=16):
    generator = torch.Generator().manual_seed(0)
    condition, target = torch.rand(2, 4, size, size), torch.rand(2, depth, size, size)
    condition, target = (torch.rand(x.shape, generator=generator) * 2 - 1 for x in (condition, target))
    positions = torch.arange(1, depth + 1) / (depth + 1)
    return Batch.of_gaps(condition, positions, float(depth + 1)), target


@pytest.mark.parametrize("task", ["vemdiffuse-i", "vemdiffuse-a"])
def test_it_is_trained_for_both_tasks_of_volumes(trained, task):
    description = json.loads((trained[task] / "model.json").read_text())
    assert description["network"]["architecture"] == "unet3d" and description["factors"] == [FACTOR]
    history = json.loads((trained[task] / "metrics.json").read_text())["history"]
    assert history[-1]["step"] == 2 and 0 < history[-1]["loss"] < 10


def test_slices_of_a_gap_are_restored_together(trained):
    """Changing only the last slice's noise changes the first restored slice."""
    model = RestorationModel.load(trained["vemdiffuse-i"])
    with torch.no_grad():
        for parameter in model.network.out[-1].parameters():  # zero at first: it has hardly learned anything
            parameter.add_(0.05)
    batch, _ = gaps(depth=5)
    noise = torch.randn((*batch.shape,), generator=torch.Generator().manual_seed(1))
    other = noise.clone()
    other[:, -1] += 1
    results = [
        model.restore(batch, Sampler(name="ddim", steps=2), lambda sample, step, white=white: white)[0]
        for white in (noise, other)
    ]
    assert results[0].shape == batch.shape
    assert not torch.allclose(results[0][:, 0], results[1][:, 0])


@pytest.mark.parametrize("difficult", [False, True])
def test_an_absent_slice_adds_nothing_to_the_loss(difficult):
    batch, target = gaps()
    process = JointProcess(difficult)
    (x, gamma), wanted = process.example(batch, target, Draws(0, 2))
    assert x.shape == (2, 4, 2, 16, 16) and gamma.shape == (2,) and wanted.shape == (2, 1, 2, 16, 16)
    output = torch.rand(2, 2 if difficult else 1, 2, 16, 16)
    absent = wanted.clone()
    absent[:, :, 1] = float("nan")
    expected = process.loss(output[:, :, :1], wanted[:, :, :1])
    torch.testing.assert_close(process.loss(output, absent), expected)


def test_channels_are_the_slices_after_and_before_a_gap_and_the_positions():
    batch, target = gaps()
    (x, _), _ = JointProcess().example(batch, target, Draws(0, 2))
    for depth in range(2):
        assert torch.equal(x[:, 0, depth], batch.condition[:, 2])
        assert torch.equal(x[:, 1, depth], batch.condition[:, 1])
    assert x[0, 2, :, 0, 0].tolist() == pytest.approx([-1 / 3, 1 / 3])


def test_a_volume_is_restored_whatever_the_workers_and_measured_beside_the_others(trained, medulla, tmp_path):
    dataset = write_volume(tmp_path / "a.ome.zarr", medulla[:13:FACTOR, :64, :64], (30, 10, 10))
    truth = write_volume(tmp_path / "truth.ome.zarr", medulla[:13, :64, :64], (10, 10, 10))
    one, three = (
        run(dataset, trained["vemdiffuse-i"], tmp_path / str(workers), workers=workers, block=(1, 1, 1))
        for workers in (1, 3)
    )
    assert content(one.restored) == content(three.restored)
    assert open_volume(one.restored).array.shape == (13, 64, 64)
    found = evaluate(one.restored, dataset, truth, tmp_path / "numbers.json")
    assert {"linear", "restored"} <= set(found["methods"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "emdiffuse-n", "factor": None}, "is for volumes; emdiffuse-n needs unet"),
        ({"factor": [3, 6]}, "is trained for one `factor`"),
        ({"network": {**NETWORK, "channels": 24}}, "unet3d must be a multiple of 16"),
    ],
)
def test_what_it_cannot_do_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)
