"""Shared models: a package runs in another program, a graph equals its network, a card is correct."""

import json

import pytest
import torch
from bioimageio.core import test_model as run_package
from bioimageio.spec import load_description as open_package

from emdiffuse.config import Sampler
from emdiffuse.models import sharing
from emdiffuse.models.card import write_card
from emdiffuse.models.description import Description, NativeSpec, UnetSpec
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.networks.build import build_network
from emdiffuse.models.networks.weights import save_model
from emdiffuse.models.processes import Batch
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.stores.resampling import enlarge

NATIVE = {"architecture": "native", "channels": 8, "multipliers": [1, 2], "residual_scale": 0.3}
SPECS = {"vemdiffuse-i": NATIVE, "emdiffuse-n": {**NATIVE, "conditions": 1}}
SPECS["emdiffuse-r"] = SPECS["emdiffuse-n"]


@pytest.fixture(params=SPECS)
def model(request, tmp_path):
    return make_model(tmp_path / "model", request.param)


def make_model(folder, task, factors=(4, 6)):
    torch.manual_seed(0)
    network = build_network(NativeSpec(**SPECS[task]))
    for parameter in network.parameters():  # a fresh network answers 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    description = {
        "name": "small",
        "task": task,
        "factors": list(factors) if task == "vemdiffuse-i" else [1],
        "network": SPECS[task],
        "objective": {"prediction": "flow"},
        "sampler": {"name": "dpm++", "steps": 8},
        "sources": [{"path": "raw/a.tif", "sha256": "0123456789abcdef" * 4}],
    }
    save_model(folder, network, Description.model_validate(description))
    return folder


def options(model):
    return {"factor": 4} if "vemdiffuse" in json.loads((model / "model.json").read_text())["task"] else {}


def test_the_one_call_mean_is_what_the_package_restores(model):
    mean = sharing.load_mean(model, **options(model))
    condition = sharing.example(mean)
    large = condition
    if mean.scale > 1:
        large = torch.from_numpy(enlarge(condition.numpy(), mean.scale))
    gaps = mean.factor > 1
    batch = Batch.of_gaps(large, torch.arange(1, 4) / 4, 4.0) if gaps else Batch.of_images(large)
    opened = RestorationModel.load(model)
    sampler = opened.description.sampler

    expected, _ = opened.restore(
        batch, Sampler(name=sampler.name, steps=1), lambda sample, step: torch.zeros(())
    )
    with torch.no_grad():
        torch.testing.assert_close(mean(condition), expected, rtol=1e-5, atol=1e-5)
    assert (expected - large[:, :1]).abs().max() > 0.01


def test_the_zoo_accepts_a_package_and_gets_its_test_output_from_it(model, tmp_path):
    out = tmp_path / "package.zip"
    sharing.export_bioimageio(model, out, **options(model), license_id="CC-BY-4.0")
    assert open_package(out).validation_summary.status in ("passed", "valid-format")
    summary = run_package(out)
    assert summary.status == "passed", summary.format()
    assert [path.name for path in tmp_path.iterdir() if path.name != "model"] == ["package.zip"]


def test_a_graph_gives_what_the_network_gives(model, tmp_path):
    out = tmp_path / "graph.pt2"
    sharing.export_torch(model, out, **options(model), side=48)
    mean = sharing.load_mean(model, **options(model))
    graph = torch.export.load(out).module()
    condition = torch.rand(sharing.example(mean, 48).shape) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(graph(condition), mean(condition), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
    gap, denoise = (make_model(tmp_path / task, task) for task in ("vemdiffuse-i", "emdiffuse-n"))
    for folder, factor, side, said in [
        (gap, None, 256, r"--factor: .* trained for \[4, 6\]; choose the one"),
        (gap, 9, 256, r"--factor: .* trained for \[4, 6\], not 9"),
        (gap, 0, 256, r"--factor: .* trained for \[4, 6\], not 0"),
        (gap, 6, 50, "--side: 50 is not a multiple of 4"),
        (denoise, 6, 256, "--factor: .* restores images; omit it"),
    ]:
        with pytest.raises(ConfigError, match=said):
            sharing.export_torch(folder, tmp_path / "out.pt2", factor, side)
    published = UnetSpec(in_channels=2, base_channels=16, multipliers=(1, 2))
    network = build_network(published)
    save_model(tmp_path / "unet", network, Description(task="emdiffuse-n", network=published))
    with pytest.raises(ConfigError, match="unet: only native models"):
        sharing.export_bioimageio(tmp_path / "unet", tmp_path / "out.zip")
    with pytest.raises(ConfigError, match="--license: 'no such licence' is not an SPDX identifier"):
        sharing.export_bioimageio(denoise, tmp_path / "out.zip", license_id="no such licence")
    assert not list(tmp_path.glob("*out*"))


def test_a_card_states_data_figures_and_their_baseline(tmp_path):
    folder = make_model(tmp_path / "model", "vemdiffuse-i")
    write_card(folder)
    assert "Not measured here" in (folder / "README.md").read_text()
    history = [
        {"step": 1, "validation_psnr": 20.0, "validation_ssim": 0.5, "plain_psnr": 25.0, "plain_ssim": 0.6},
        {"step": 2, "validation_psnr": 27.39, "validation_ssim": 0.7, "plain_psnr": 25.78, "plain_ssim": 0.6},
    ]
    metrics = {"steps": 2, "seconds": 90, "device": "cpu", "history": history}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_card(folder)
    card = (folder / "README.md").read_text()
    for part in ("raw/a.tif", "0123456789abcdef…", "| this model | 27.39 | 0.700 |", "factors from 4 to 6"):
        assert part in card
    assert "| linear interpolation | 25.78 | 0.600 |" in card
