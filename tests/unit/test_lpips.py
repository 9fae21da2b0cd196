"""LPIPS against torchmetrics, with a backbone of random weights; and the errors without one."""

from __future__ import annotations

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from test_evaluation import Case, tissue
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchvision.models import alexnet
from typer.testing import CliRunner

from emdiffuse.cli import app
from emdiffuse.config import validate
from emdiffuse.evaluation import blocks
from emdiffuse.evaluation.metrics.perceptual import Lpips
from emdiffuse.runtime.errors import ConfigError


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """AlexNet with random weights, in a user's file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    features = {f"features.{name}": values for name, values in alexnet().features.state_dict().items()}
    with torch.device("meta"):
        shapes = {name: values.shape for name, values in alexnet().state_dict().items()}
    weights = {name: features.get(name, torch.zeros(1).expand(shape)) for name, shape in shapes.items()}
    torch.save(weights, path)  # LPIPS does not use the classifier, and zeros of one number take no room
    return path


@pytest.fixture(scope="module")
def lpips(backbone):
    return Lpips(backbone)


@pytest.fixture(scope="module")
def reference(backbone):
    """Torchmetrics's network, with the same backbone."""
    network = _NoTrainLpips(net="alex", pnet_rand=True)
    weights = torch.load(backbone)
    stages = (getattr(network.net, f"slice{number}") for number in range(1, 6))
    for stage in stages:
        stage.load_state_dict({name: weights[f"features.{name}"] for name in stage.state_dict()})
    return network


def distance(lpips, image, truth, low=0.0, data_range=255.0):
    return lpips.distance(image, truth, low, data_range)


@pytest.mark.parametrize("shape", [(31, 31), (64, 48), (200, 130)])
def test_lpips_is_that_of_torchmetrics(lpips, reference, shape):
    image, truth = (np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed in (0, 1))
    pictures = [torch.tensor(plane / 127.5 - 1).float().expand(1, 3, *shape) for plane in (image, truth)]
    expected = float(reference(*pictures))
    assert expected > 1e-3
    assert distance(lpips, image, truth) == pytest.approx(expected, rel=1e-4)
    assert distance(lpips, truth, image) == pytest.approx(expected, rel=1e-4), "both ways"
    assert distance(lpips, image, image) == 0


def test_what_counts_are_shares_of_the_range(lpips):
    image, truth = (tissue((40, 50), seed) for seed in (0, 1))
    stretched = [plane * np.float32(12) + 300 for plane in (image, truth)]
    expected = pytest.approx(distance(lpips, image, truth), rel=1e-4)
    assert distance(lpips, *stretched, low=300, data_range=255 * 12) == expected


def test_small_planes_have_none(lpips):
    assert np.isnan(distance(lpips, *np.zeros((2, 30, 90), np.uint8)))


def test_an_evaluation_has_it_when_asked(tmp_path, backbone, lpips, monkeypatch):
    case = Case(tmp_path, tissue((9, 40, 70)))
    case.put("restored", case.linear())
    paths = [str(tmp_path / f"{name}.ome.zarr") for name in ("restored", "thin", "truth")]
    ran = CliRunner().invoke(app, ["evaluate", *paths, str(tmp_path / "a.json"), "--lpips", str(backbone)])
    assert ran.exit_code == 0, ran.output
    methods = json.loads((tmp_path / "a.json").read_text())["methods"]
    whole = [distance(lpips, case.linear()[z], case.truth[z]) for z in range(9) if z % 4]
    assert methods["linear"]["xy"]["lpips"]["mean"] == pytest.approx(np.mean(whole), rel=1e-5)
    assert methods["restored"]["xy"]["lpips"] == methods["linear"]["xy"]["lpips"]
    assert "lpips" not in methods["linear"]["xz"]
    monkeypatch.setattr(blocks, "TILE", 35)  # of two tiles side by side
    CliRunner().invoke(app, ["evaluate", *paths, str(tmp_path / "b.json"), "--lpips", str(backbone)])
    found = json.loads((tmp_path / "b.json").read_text())["methods"]["linear"]["xy"]["lpips"]["mean"]
    halves = [
        distance(lpips, case.linear()[z, y, x], case.truth[z, y, x])
        for z in range(9) if z % 4
        for y in (slice(0, 20), slice(20, 40)) for x in (slice(0, 35), slice(35, 70))
    ]  # fmt: skip
    assert all(np.isnan(halves)) and found is None, "tiles of 20 rows are too small for the backbone"
    case.run()
    assert "lpips" not in json.loads((tmp_path / "out.json").read_text())["methods"]["linear"]["xy"]


SMALL = {
    "datasets": {"a": {"source": "a.tif", "images": True, "voxel_size": {"z": 1, "y": 1, "x": 1}}},
    "models": {"m": {"task": "emdiffuse-n", "weights": "m.pth"}},
    "restorations": [{"dataset": "a", "model": "m"}],
}


def test_missing_weights_are_said_before_anything_runs(tmp_path, monkeypatch, backbone):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tif").touch()
    (tmp_path / "m.pth").touch()
    with pytest.raises(ConfigError) as error:
        validate({**SMALL, "lpips": "nowhere.pth"})
    said = str(error.value)
    assert "lpips: there is no file 'nowhere.pth'" in said
    assert re.search(r"download \S+/alexnet-owt-7be5be79.pth .* and give its path", said)
    assert validate({**SMALL, "lpips": str(backbone)})
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "emdiffuse.config.lpips.find_spec",
        lambda name: None if name == "torchmetrics" else find_spec(name),
    )
    with pytest.raises(ConfigError, match=r"LPIPS needs torchmetrics; run pip install 'emdiffuse\[lpips\]'"):
        validate({**SMALL, "lpips": str(backbone)})


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="not torchvision's AlexNet weights"):
        Lpips(path)
    path.write_bytes(b"torn")
    with pytest.raises(ConfigError, match="or truncated"):
        Lpips(path)
