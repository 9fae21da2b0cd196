"""The shipped models: complete, small, known by name, and ready to run."""

import shutil

import numpy as np
import pytest
import tifffile
import torch
import yaml
from typer.testing import CliRunner

from emdiffuse.cli import app
from emdiffuse.config import validate
from emdiffuse.config.shipped import SHIPPED, SHIPPED_FOLDER, model_folder
from emdiffuse.models.card import CARD_FILE
from emdiffuse.models.description import read_description
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.shipped import shipped_models, verify_shipped
from emdiffuse.runtime.errors import ModelError


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_and_says_what_it_is(name):
    folder = model_folder(name)
    description = read_description(folder)
    assert description.task == SHIPPED[name] and description.name == name and description.sources
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12 * 2**20
    network = load_network(folder)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    card = (folder / CARD_FILE).read_text()
    for heading in ("Learned from", "Licen", "How well it does", "Limits"):
        assert heading in card, f"the card of {name} has no '{heading}'"
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit" and front["training_data"]
    for data in front["training_data"]:
        assert all(data[key] for key in ("name", "source", "license")), data


def test_a_name_is_that_of_a_shipped_model_and_a_path_is_a_path():
    assert model_folder("vemdiffuse") == SHIPPED_FOLDER / "vemdiffuse"
    assert str(model_folder("./vemdiffuse")) == "vemdiffuse"
    assert str(model_folder("experiments/a/best")) == "experiments/a/best"


def test_changed_files_are_found(tmp_path):
    assert verify_shipped() == 3 * len(SHIPPED)
    shutil.copytree(SHIPPED_FOLDER, tmp_path / "weights")
    with (tmp_path / "weights" / "vemdiffuse" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ModelError, match=r"model\.safetensors differs from the file that was shipped"):
        verify_shipped(tmp_path / "weights")
    (tmp_path / "weights" / "emdiffuse-n" / CARD_FILE).unlink()
    with pytest.raises(ModelError, match=r"README\.md cannot be read"):
        verify_shipped(tmp_path / "weights")


def test_the_command_lists_and_verifies_them():
    listed = CliRunner().invoke(app, ["models"])
    assert listed.exit_code == 0
    lines = [line for line in listed.output.splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in lines] == [m.name for m in shipped_models()]
    assert listed.output.count("licence mit; training data: ") == len(lines)
    assert "are intact" in CliRunner().invoke(app, ["models", "verify"]).output


def test_an_image_is_denoised_with_no_further_option(tmp_path):
    """The shipped denoiser improves on its input for noise like its training data's."""
    y, x = np.mgrid[:64, :64]
    clean = 128 + 60 * np.sign(np.sin(x / 9) * np.sin(y / 7))
    noisy = clean + 25 * np.random.default_rng(0).standard_normal(clean.shape)
    tifffile.imwrite(tmp_path / "scan.tif", np.clip(noisy, 0, 255).astype(np.uint8))
    done = CliRunner().invoke(app, ["enhance", str(tmp_path / "scan.tif"), str(tmp_path / "clean.tif")])
    assert done.exit_code == 0, done.output
    errors = [np.abs(tifffile.imread(tmp_path / f"{name}.tif") - clean).mean() for name in ("scan", "clean")]
    assert errors[1] < 0.6 * errors[0]


def test_a_configuration_names_them(tmp_path):
    values = {
        "datasets": {"a": {"source": str(tmp_path / "a.tif"), "voxel_size": {"z": 60, "y": 10, "x": 10}}},
        "models": {
            "given": {"task": "vemdiffuse-i", "weights": "vemdiffuse"},
            "tuned": {
                "task": "vemdiffuse-a",
                "datasets": ["a"],
                "factor": 6,
                "training": {"init_from": "vemdiffuse"},
            },
        },
        "restorations": [{"dataset": "a", "model": "given"}],
    }
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 64, 64), np.uint8), photometric="minisblack")
    config = validate(yaml.safe_load(yaml.safe_dump(values)), "my.yaml")
    assert config.models["given"].weights == "vemdiffuse"
