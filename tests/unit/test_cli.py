"""The command line: a user's mistake gives one line and exit code 1; published weights can be imported."""

import json
import subprocess
from typing import Annotated

import pytest
import torch
import typer
from plain_unet import PlainUNet, random_weights
from typer.testing import CliRunner

from emdiffuse.cli.options import with_options
from emdiffuse.models.networks.build import UNet, load_network


@pytest.fixture
def emdiffuse(commands):
    """Run the command line in a separate process, like a rule."""

    def run(*arguments):
        command = ["emdiffuse", *map(str, arguments)]
        return subprocess.run(command, env=commands, capture_output=True, text=True)

    return run


MISTAKES = {
    "no such file": (
        ("acquire", "a", "out", "--settings", "{source: no.tif, voxel_size: {z: 1, y: 1, x: 1}}"),
        "no.tif",
    ),
    "unknown key": (
        ("acquire", "a", "out", "--settings", "{sauce: no.tif}"),
        "error: datasets.a: sauce: unknown key",
    ),
    "no plan": (("restore", "nowhere/plan.json"), "there is no plan"),
    "odd batch": (
        ("restore", "plan.json", "--batch", "many"),
        "--batch: 'many' is neither auto nor a number",
    ),
    "odd worker": (("stitch", "plan.json", "--worker", "3-of-2"), "--worker: '3-of-2'"),
    "no model": (
        ("plan", "a", "b", "plan.json", "--settings", "{dataset: a, model: b}"),
        "a: there is no finished Zarr",
    ),
    "not a checkpoint": (("import-weights", __file__, "--task", "emdiffuse-n", "--out", "m"), "test_cli.py"),
    "a file for a folder": (
        ("--log", f"{__file__}/a.log", "schema"),
        "test_cli.py: cannot be written: File exists; move the existing file",
    ),
    "unknown task": (("import-weights", __file__, "--task", "emdiffuse-z", "--out", "m"), "emdiffuse-z"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, tmp_path, monkeypatch, emdiffuse):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[name]
    done = emdiffuse(*arguments)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_published_weights_are_imported_and_run(tmp_path, emdiffuse):
    shapes = {name: list(value.shape) for name, value in UNet(in_channels=2).state_dict().items()}
    weights = random_weights(shapes, seed=0)
    state = {f"denoise_fn.{name}": value for name, value in weights.items()}
    torch.save({**state, "gammas": torch.ones(2000)}, tmp_path / "published.pth")
    out = tmp_path / "experiments" / "published" / "best"
    done = emdiffuse("import-weights", tmp_path / "published.pth", "--task", "emdiffuse-n", "--out", out)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "model.json").read_text())["task"] == "emdiffuse-n"
    x, gamma = torch.randn(1, 2, 64, 64), torch.tensor([0.3])
    with torch.inference_mode():
        ours, theirs = load_network(out)(x, gamma), PlainUNet(weights)(x, gamma)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_group_of_options_is_defined_once_and_reaches_a_command_as_one_record():
    def size(height: Annotated[int, typer.Option(min=1)] = 2, width: int = 3) -> str:
        return f"{height} x {width}"

    @with_options(size=size)
    def picture(size: str, name: str = "it") -> str:
        return f"{name}: {size}"

    app, heard = typer.Typer(), []
    app.command()(with_options(text=picture)(lambda text, loud=False: heard.append((text, loud))))
    assert CliRunner().invoke(app, ["--height", "4", "--name", "a", "--loud"]).exit_code == 0
    assert heard == [("a: 4 x 3", True)]
    assert CliRunner().invoke(app, ["--height", "0"]).exit_code == 2
