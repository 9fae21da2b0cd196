# ruff: noqa: E501  (a configuration, an entry a line)
"""`emdiffuse doctor` and `emdiffuse estimate`: their output is correct."""

import json
import sys

import pytest
import tifffile
import torch
import yaml
from helpers import ROOT

from emdiffuse.config import read_config
from emdiffuse.config.shipped import SHIPPED, SHIPPED_FOLDER
from emdiffuse.models.description import read_description
from emdiffuse.project import costs, doctor
from emdiffuse.project.doctor import Check, examine
from emdiffuse.project.estimate import estimate
from emdiffuse.project.speed import Speed, measure
from emdiffuse.restoration.plan import read_plan
from emdiffuse.runtime import machine
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.stores.volume import open_volume


def told(folder):
    """Return the findings by subject."""
    return {check.what: check for check in examine(folder)}


def test_this_machine_is_well_enough(tmp_path):
    checks = told(tmp_path)
    assert not any(check.wrong for check in checks.values())
    assert checks["PyTorch"].found.startswith(torch.__version__)
    assert f"{machine.cores()} cores" in checks["machine"].found
    assert "MB and" in checks["disk"].found and not list(tmp_path.iterdir())


def test_each_thing_that_is_less_than_it_could_be_has_an_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0, "final", 0))
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA A100"])
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/sinfo" if name == "sinfo" else None)
    answers = {
        "sinfo": "cpu*|2:00:00|(null)\n",
        "scontrol": "AccountingStorageType = (null)\nMinJobAge = 10 sec\n",
    }
    monkeypatch.setattr(machine, "ask", lambda command, *rest: answers.get(command))
    monkeypatch.setattr(doctor, "SLOW_BYTES", 1e15)
    monkeypatch.setitem(doctor.EXTRAS, "napari", ("no_such_module",))
    checks = list(examine(tmp_path))
    advice = {check.what: check.advice for check in checks if check.advice}
    assert [check.what for check in checks if check.wrong] == ["Python"]
    assert "has no CUDA support" in advice["GPU"] and "MinJobAge" in advice["accounting"]
    assert "tiling.block" in advice["disk"] and "ssh -L" in advice["browser"]
    assert any("pip install 'emdiffuse[napari]'" in check.advice for check in checks)
    text = doctor.text(checks)
    assert "!! Python" in text and text.count("\n") + 1 == len(checks) + sum(1 for c in checks if c.advice)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    assert "is not writable" in told(tmp_path / "nowhere")["disk"].found


def test_what_is_well_has_a_line_without_advice():
    assert doctor.text([Check("thing", "fine")]) == "ok thing       fine"


@pytest.fixture
def config(tmp_path, medulla, small_model, monkeypatch):
    """A restoration by an existing model, and a training."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("thick.tif", medulla[:25:6, :100, :84])
    tifffile.imwrite("cubes.tif", medulla[:40, :96, :96])
    values = {
        "datasets": {
            "thick": {"source": "thick.tif", "voxel_size": {"z": 60, "y": 10, "x": 10}},
            "cubes": {"source": "cubes.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        },
        "models": {
            "there": {"task": "vemdiffuse-i", "weights": str(small_model)},
            "learned": {"task": "vemdiffuse-i", "datasets": ["cubes"], "factor": 6, "training": {"steps": 50, "batch": 4}},
        },
        "restorations": [
            {"dataset": "thick", "model": name, "sampler": {"steps": 2, "samples": 3}, "tiling": {"tile": 64, "halo": 8, "blend": 8, "block": [1, 1, 1]}}
            for name in ("there", "learned")
        ],
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "config.yaml"


def test_what_is_counted_is_what_is_planned(config, dataset, small_model):
    from emdiffuse.restoration.planning import make_plan

    read = read_config(config)
    cost = estimate(read).restorations[0]
    make_plan(dataset, small_model, read.restorations[0], config.parent / "out/plan.json")
    written = json.loads((config.parent / "out/plan.json").read_text())
    plan = read_plan(config.parent / "out/plan.json")
    assert cost.grid.volume == plan.shape and len(cost.grid) == len(plan.grid) == written["blocks"]
    assert cost.tiles == 4 * 3 * 2 and cost.evaluations == cost.tiles * (2 * 3 + 1), "the mean, and 3 samples"
    assert cost.memory == written["memory_mb"] and cost.slices == 5
    assert cost.files == (len(plan.grid), 2), "a shard of each of the two images"
    assert open_volume(dataset).array.shape == cost.extent.shape


@pytest.mark.parametrize("name", ["vemdiffuse", "emdiffuse-n"])
def test_a_shipped_model_is_counted_by_its_name_as_by_its_folder(config, name):
    values = yaml.safe_load(config.read_text())
    values["models"] = {"there": {"task": SHIPPED[name]}}
    values["restorations"] = [{"dataset": "thick", "model": "there"}]
    counted = []
    for weights in (name, str(SHIPPED_FOLDER / name)):
        values["models"]["there"]["weights"] = weights
        config.write_text(yaml.safe_dump(values))
        counted.append(estimate(read_config(config)).restorations[0])
    assert counted[0].description == counted[1].description
    assert counted[0].evaluations == counted[1].evaluations == counted[0].tiles, (
        "one evaluation of a native network"
    )


def test_a_training_is_counted(config):
    (training,) = estimate(read_config(config)).trainings
    assert training.evaluations == 50 * 4 * 3 and training.pixels == training.evaluations * 64 * 64


def test_a_network_is_timed_and_its_operations_are_counted(small_model):
    """A network of twice the width does about four times the work: convolutions grow quadratically."""
    description = read_description(small_model)
    speed = measure(description, 5, "cpu")
    wide = description.model_copy(update={"network": description.network.model_copy(update={"channels": 16})})
    assert speed.seconds > 0 and speed.device == "cpu"
    assert 2.5 < measure(wide, 5, "cpu").operations / speed.operations < 4.5
    assert speed.on("H100") < speed.on("T4")


def test_the_estimate_in_words_adds_up(config):
    speed = Speed(1e-6, "cpu", 1e5)
    counted = estimate(read_config(config))
    text = costs.text(counted, lambda description, slices: speed, 2, ("A100",))
    pixels = sum(cost.pixels for cost in (*counted.restorations, *counted.trainings))
    assert f"total: here {pixels * 1e-6 / 2:.0f} s" in text
    assert "25 x 100 x 84 voxels, 24 tiles in" in text and "168 network evaluations" in text


def test_a_card_that_is_not_in_the_table_is_refused():
    with pytest.raises(ConfigError, match="--card: 'A1000' is not in the table; known: T4"):
        costs.checked_cards(["A1000"])


VOLUME, BRAIN = (61, 184, 184), (1, 256, 384)
DEMOS = {
    "config": (
        [VOLUME, VOLUME, BRAIN, BRAIN, VOLUME],
        2,
    ),  # tiles, one call each
    "demo-train": (
        [VOLUME, VOLUME, BRAIN, VOLUME, BRAIN],
        15 * (8 * 8 + 1),
    ),  # 15 tiles, the mean and 8 samples
}
"""For each demo, the shape of each restored volume, and the network evaluations of the third."""


@pytest.mark.parametrize("name", DEMOS)
def test_the_demo_can_be_counted(name, monkeypatch):
    """All four tasks, thinned and degraded datasets, images and volumes."""
    monkeypatch.chdir(ROOT)
    counted = estimate(read_config(ROOT / f"config/{name}.yaml"))
    shapes, evaluations = DEMOS[name]
    assert [cost.grid.volume for cost in counted.restorations] == shapes
    assert counted.restorations[2].evaluations == evaluations
