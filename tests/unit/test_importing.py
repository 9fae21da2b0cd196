"""Existing models, in the published format or this one, become models of a project."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from emdiffuse.cli import app
from emdiffuse.models.importing import import_model
from emdiffuse.models.networks.build import UNet, load_network
from emdiffuse.runtime.errors import EmdiffuseError


def test_the_folder_of_a_model_is_taken_as_it_is(small_model, tmp_path):
    out = tmp_path / "best"
    ran = CliRunner().invoke(
        app, ["import-weights", str(small_model), "--task", "vemdiffuse-i", "--out", str(out)]
    )
    assert ran.exit_code == 0, ran.output
    assert json.loads((out / "model.json").read_text()) == json.loads(
        (small_model / "model.json").read_text()
    )
    before, after = (load_network(folder).state_dict() for folder in (small_model, out))
    assert all(torch.equal(after[name], values) for name, values in before.items())
    assert "Task `vemdiffuse-i`" in (out / "README.md").read_text()


def test_a_card_goes_with_its_model(small_model, tmp_path):
    shutil.copytree(small_model, tmp_path / "theirs")
    (tmp_path / "theirs/README.md").write_text("What they say of it.")
    import_model(tmp_path / "theirs", "vemdiffuse-i", tmp_path / "best")
    assert (tmp_path / "best/README.md").read_text() == "What they say of it."


def test_a_published_checkpoint_becomes_a_model(tmp_path):
    torch.save(UNet(3, slice_index=True).state_dict(), tmp_path / "vem.pth")
    import_model(tmp_path / "vem.pth", "vemdiffuse-i", tmp_path / "best")
    assert load_network(tmp_path / "best")
    assert "vem.pth" in (tmp_path / "best/README.md").read_text()


def test_what_is_no_such_model_is_refused(small_model, tmp_path):
    with pytest.raises(EmdiffuseError, match="its task is vemdiffuse-i, not emdiffuse-n"):
        import_model(small_model, "emdiffuse-n", tmp_path / "best")
    with pytest.raises(EmdiffuseError, match="cannot be read"):
        import_model(tmp_path, "emdiffuse-n", tmp_path / "best")
    with pytest.raises(EmdiffuseError, match="cannot be read"):
        import_model(tmp_path / "nothing.pth", "emdiffuse-n", tmp_path / "best")
    assert not (tmp_path / "best").exists()
