"""The published settings: each file is a config that plans a whole run, and trains for a step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from helpers import ROOT, write_pairs, write_volume

from emdiffuse.config import Config
from emdiffuse.config.tasks import TASKS
from emdiffuse.patches.cut import cut_patches
from emdiffuse.training import validation
from emdiffuse.training.train import train

FILES = sorted((ROOT / "config/published").glob("*.yaml"))
SMALL = {"size": 64, "validation": 0.4}
"""Patches that take a second on one core; everything else, including the networks, is as published."""


@pytest.fixture
def folder(tmp_path, medulla) -> Path:
    """A folder with raw data of every kind named in the files."""
    pairs = tmp_path / "raw/pairs/cell_1/noise_level_1"
    pairs.mkdir(parents=True)
    for name, values in {
        pairs / "wf_image1.tif": medulla[0],
        pairs / "gt_image1.tif": medulla[0],
        tmp_path / "raw/scans.tif": medulla[0],
        tmp_path / "raw/isotropic.tif": medulla,
        tmp_path / "raw/anisotropic.tif": medulla[::6],
    }.items():
        tifffile.imwrite(name, values)
    return tmp_path


def test_there_is_one_for_each_task():
    assert [path.stem for path in FILES] == sorted(TASKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_published_config_plans_a_whole_run(path, folder, commands):
    command = ["snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--dry-run"]
    options = ["--configfile", str(path), "--profile", str(ROOT / "profiles/local"), "--directory", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rule train" in done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_published_training_takes_a_step(path, tmp_path, medulla, monkeypatch):
    monkeypatch.setattr(validation, "PATCHES", 8)  # network calls at a validation: of one patch
    model = Config.model_validate(yaml.safe_load(path.read_text())).models["published"]
    known = model.training
    assert (known.batch, known.learning_rate, known.ema, model.patches.size) == (16, 5e-5, 0.9999, 256)
    model = model.model_copy(
        update={
            "patches": model.patches.model_copy(update=SMALL),
            "training": known.model_copy(update={"steps": 1, "batch": 1}),
        }
    )
    if not TASKS[model.task].volumetric:
        clean = medulla[0, :176, :176]
        coarse = clean.reshape(88, 2, 88, 2).mean((1, 3)).astype(np.uint8)
        noise = np.random.default_rng(0).normal(0, 12, clean.shape)
        noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
        scale = TASKS[model.task].scale
        store = write_pairs(tmp_path / "a", [(coarse if scale == 2 else noisy, clean)], scale)
    elif model.task == "vemdiffuse-a":
        store = write_volume(tmp_path / "a", medulla[::6, :, :64], (48, 8, 8))
    else:
        store = write_volume(tmp_path / "a", medulla[:46, :64, :64], (8, 8, 8))
    cut_patches([store], model, tmp_path / "p.zarr")
    train(tmp_path / "p.zarr", model, "published", tmp_path / "e", "cpu")
    found = json.loads((tmp_path / "e/best/metrics.json").read_text())
    assert found["steps"] == 1 and np.isfinite(found["history"][0]["loss"])
    description = json.loads((tmp_path / "e/best/model.json").read_text())
    assert description["objective"]["prediction"] == "epsilon"
    assert description["network"]["base_channels"] == 32
