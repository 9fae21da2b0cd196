"""RAFT: its weights, its flow, and its training."""

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file, save_file
from torchvision.models.optical_flow import raft_large, raft_small

from emdiffuse.registration.flow_weights import SHIPPED
from emdiffuse.registration.raft import Flow, load
from emdiffuse.registration.raft_training import Micrographs, Recipe, read_sources, sample, train_raft
from emdiffuse.registration.warping import identity, normalised, warp
from emdiffuse.runtime.errors import ConfigError, DataError


@pytest.mark.parametrize("build", [raft_small, raft_large])
def test_weights_of_torchvisions_networks_are_read(build, tmp_path):
    own = build(weights=None).state_dict()
    save_file(own, tmp_path / "a.safetensors")
    torch.testing.assert_close(load(str(tmp_path / "a.safetensors")).state_dict(), own)


def test_shipped_weights_are_small_and_half_precision():
    weights = load_file(SHIPPED)
    assert SHIPPED.stat().st_size < 2_100_000
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert SHIPPED.with_suffix(".md").read_text().startswith("# raft_small_em")


def test_what_is_no_raft_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere\.pth: no such weights"):
        Flow(str(tmp_path / "nowhere.pth"))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "torn.pth").write_bytes(b"torn")
    for name in ("torn.safetensors", "torn.pth"):
        with pytest.raises(DataError, match="cannot be read"):
            Flow(str(tmp_path / name))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="not weights of RAFT"):
        Flow(str(tmp_path / "other.pth"))
    torch.save({"run": print}, tmp_path / "code.pth")  # would need code: weights_only refuses it
    with pytest.raises(DataError, match="cannot be read"):
        Flow(str(tmp_path / "code.pth"))

    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(DataError, match=r"'torchvision' cannot be downloaded.*use 'shipped'"):
        Flow("torchvision")


def test_the_shipped_network_finds_a_shift(medulla):
    image = medulla[0].astype(np.float32)
    flow = Flow()(image[8:168, 8:168], image[5:165, 12:172])  # moving lies 3 lower, 4 further left
    assert flow.shape == (2, 160, 160)
    y, x = np.median(flow[:, 16:-16, 16:-16], axis=(1, 2))
    assert (y, x) == pytest.approx((3, -4), abs=1)


def test_a_sample_obeys_its_flow():
    rng = np.random.default_rng(3)
    smooth = Micrographs((np.hypot(*np.meshgrid(np.arange(300), np.arange(300)))[None] * 4,))
    moving, fixed, flow = sample(rng, smooth, 128, 1.0)
    assert moving.shape == fixed.shape == (128, 128) and flow.shape == (2, 128, 128)
    found = warp(moving, identity((128, 128)) + flow)[24:-24, 24:-24]
    before, after = (
        np.abs(image - fixed[24:-24, 24:-24]).mean() for image in (moving[24:-24, 24:-24], found)
    )
    assert after < before


def test_training_goes_on_and_writes_what_is_loaded(medulla, tmp_path):
    out = tmp_path / "w.safetensors"
    tifffile.imwrite(tmp_path / "a.tif", medulla, photometric="minisblack")
    tifffile.imwrite(tmp_path / "n.tif", medulla[0])
    sources = read_sources([tmp_path / "a.tif"], [(tmp_path / "n.tif", tmp_path / "n.tif")])
    assert [part.images[0].shape for part in sources[0].split()] == [(61, 161, 184), (61, 23, 184)]
    train_raft(sources, out, Recipe(minutes=0.01, batch=1, updates=2))
    assert load(str(out)) is not None and not list(out.parent.glob(".*"))
    with pytest.raises(ConfigError, match="give --stack or --pair"):
        train_raft([], out, Recipe())
    tifffile.imwrite(tmp_path / "other.tif", medulla[0, :100])
    with pytest.raises(DataError, match="its size differs from that of"):
        read_sources([], [(tmp_path / "n.tif", tmp_path / "other.tif")])


def test_contrast_and_brightness_vanish():
    image = np.random.default_rng(0).normal(0, 1, (32, 32)).astype(np.float32)
    np.testing.assert_allclose(normalised(image), normalised(3 * image + 90), atol=1e-4)
