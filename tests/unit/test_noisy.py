"""Learning to denoise from noisy data alone: hidden pixels, training, and invalid settings."""

import json

import numpy as np
import pytest
import tifffile
import torch
from helpers import raw_file, write_pairs, write_volume
from scipy.signal import lfilter

from emdiffuse.acquisition.layouts import find_pairs
from emdiffuse.config import Model, Sampler
from emdiffuse.models.description import Description, NativeSpec, read_description
from emdiffuse.models.draws import Draws
from emdiffuse.models.surroundings import cross, surroundings
from emdiffuse.patches.correlation import noise_correlation, reach
from emdiffuse.patches.cut import PatchStore, cut_patches
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.training.blind_spot import blind_spot_of, hide
from emdiffuse.training.feed import draw_batch
from emdiffuse.training.train import train


def settings(datasets=("a",), patches=None, **training):
    return Model.model_validate(
        {
            "task": "emdiffuse-n",
            "datasets": datasets,
            "patches": {"size": 32, "overlap": 0.5, "validation": 0.25, **(patches or {})},
            "network": {"channels": 8, "multipliers": [1, 2], "blocks": 1},
            "training": {"steps": 40, "batch": 8, "warmup": 2, "validate_every": 20, "ema": 0.9, **training},
        }
    )


def noisy(images, deviation=25.0, correlation=0.0, seed=0):
    """Add noise, correlated along x, and return uint8."""
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    noise = lfilter([1], [1, -correlation], noise * np.sqrt(1 - correlation**2), axis=-1)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(medulla):
    """Four noisy images with noise correlated along x."""
    return noisy(medulla[:40:10, :96, :96], correlation=0.5)


def cut(folder, stores, model):
    cut_patches(stores, model, folder / "p.zarr")
    return PatchStore(folder / "p.zarr")


@pytest.mark.parametrize("correlation, reached", [(0.0, 0), (0.4, 2), (0.6, 4)])
def test_the_correlation_of_noise_is_measured_without_a_truth(medulla, correlation, reached):
    clean = medulla[:20:5].astype(np.float32)
    found = noise_correlation(noisy(clean, 25, correlation).astype(np.float32))
    assert found.x[:3] == pytest.approx([correlation, correlation**2, correlation**3], abs=0.07)
    assert max(map(abs, found.y[:3])) < 0.07
    assert abs(reach(found.x) - reached) <= 1 and reach(found.y) == 0


@pytest.mark.parametrize("spot", [(0, 0), (0, 3), (1, 2)])
def test_a_hidden_pixel_and_its_blind_spot_cannot_be_seen(spot):
    image = torch.arange(64.0 * 64).view(1, 1, 64, 64)

    def hidden(values):
        return hide(values, values, spot, Draws(3, 1).uniform)

    shown, target = hidden(image)
    centres = (~target[0, 0].isnan()).nonzero()
    assert len(centres) > 10 and torch.equal(target[~target.isnan()], image[~target.isnan()])
    assert torch.equal(shown, hidden(image)[0])  # by the same numbers
    arms = cross(spot, max(spot)).nonzero() - max(spot)
    replaced = {tuple((c + arm).tolist()) for c in centres for arm in arms}
    inside = {place for place in replaced if all(0 <= p < 64 for p in place)}
    assert {tuple(p.tolist()) for p in (shown != image)[0, 0].nonzero()} == inside
    for y, x in centres[::7].tolist():
        other = image.clone()
        for dy, dx in arms.tolist():
            if 0 <= y + dy < 64 and 0 <= x + dx < 64:
                other[0, 0, y + dy, x + dx] += 1e4
        again, answer = hidden(other)
        assert answer[0, 0, y, x] == image[0, 0, y, x] + 1e4
        assert again[0, 0, y, x] == shown[0, 0, y, x]
        assert surroundings(other, spot)[0, 0, y, x] == surroundings(image, spot)[0, 0, y, x]


def test_what_is_hidden_follows_the_scan_and_the_settings_through_augmentation(images, tmp_path):
    store = write_volume(
        tmp_path / "a.ome.zarr", images, (10, 10, 10), kind="images", sources=[raw_file("x")]
    )
    patches = cut(tmp_path, [store], settings())
    assert (patches.facts.noisy, patches.facts.measured) == ("hidden pixels", False)
    assert [source.seen_as for source in patches.facts.sources] == ["noisy"]
    y, x = blind_spot_of(patches, settings().training)
    assert y == 0 and x >= 2
    for model, spot in ((settings(), (y, x)), (settings(blind_spot=[1, 1]), (1, 1))):
        assert blind_spot_of(patches, model.training) == spot
        batch, target = draw_batch(patches, model, 3, np.arange(8))
        again = draw_batch(patches, model, 3, np.arange(4, 8))  # the share of another process
        assert torch.equal(batch.condition[4:], again[0].condition)
        assert torch.equal(target[4:].nan_to_num(-9), again[1].nan_to_num(-9))
        known = ~target.isnan()
        assert 0 < known.float().mean() < 0.07
        same = (batch.condition[known] - target[known]).abs() < 1e-6
        assert same.float().mean() < 0.2  # replaced by values of other pixels


def test_a_denoiser_is_learned_from_noisy_images_alone(medulla, tmp_path):
    images = noisy(medulla[:40:10, :96, :96], 8)
    store = write_volume(
        tmp_path / "a.ome.zarr", images, (10, 10, 10), kind="images", sources=[raw_file("x")]
    )
    model = settings(learning_rate=5e-3, steps=60, batch=16)
    cut_patches([store], model, tmp_path / "p.zarr")
    train(tmp_path / "p.zarr", model, "noisy", tmp_path / "e", "cpu")
    best = tmp_path / "e" / "best"
    description = read_description(best)
    assert description.learned_from == "hidden pixels" and description.network.blind_spot[0] == 0
    history = json.loads((best / "metrics.json").read_text())["history"]
    assert "validation_psnr" not in history[-1] and history[-1]["validation_loss"] < history[-1]["plain_loss"]
    card = (best / "README.md").read_text()
    assert "There were no clean images" in card and "draws no samples" in card
    with pytest.raises(ConfigError, match=r"learned from noisy images alone.*draws no samples"):
        description.resolve(Sampler(samples=2))
    assert description.resolve(Sampler()).steps == 1
    assert description.samples_drawn(Sampler()) == 0


def test_two_noisy_scans_teach_each_other(medulla, tmp_path):
    clean = medulla[:40:10, :96, :96]
    for number, scan in enumerate(("one", "Two", "three")):
        (tmp_path / "scans" / scan).mkdir(parents=True)
        for field, image in enumerate(noisy(clean, seed=number)):
            tifffile.imwrite(tmp_path / f"scans/{scan}/{field}.tif", image)
    found = find_pairs(tmp_path / "scans", scans=("one", "two", "three"))
    assert len(found.pairs) == 8 and found.pairs[0].name == "0/one-two"
    with pytest.raises(DataError, match="no two scans named one and four"):
        find_pairs(tmp_path / "scans", scans=("one", "four"))
    first, second = noisy(clean, seed=0), noisy(clean, seed=1)
    store = write_pairs(tmp_path / "a.ome.zarr", list(zip(first, second, strict=True)), scans=("one", "two"))
    patches = cut(tmp_path, [store], settings())
    assert (patches.facts.noisy, patches.facts.measured) == ("second scan", False)
    conditions, targets = patches.read(np.arange(2))  # of one place, in both directions
    assert np.array_equal(conditions[0], targets[1]) and np.array_equal(conditions[1], targets[0])
    train(tmp_path / "p.zarr", settings(), "scans", tmp_path / "e", "cpu")
    description = read_description(tmp_path / "e" / "best")
    assert description.learned_from == "second scan" and description.network.blind_spot is None


def test_pairs_with_a_truth_beside_noisy_images_only_measure(images, medulla, tmp_path):
    alone = write_volume(
        tmp_path / "a.ome.zarr", images, (10, 10, 10), kind="images", sources=[raw_file("x")]
    )
    clean = medulla[5:40:10, :96, :96]
    truth = write_pairs(tmp_path / "b.ome.zarr", list(zip(noisy(clean), clean, strict=True)))
    patches = cut(tmp_path, [alone, truth], settings(("a", "b")))
    assert patches.facts.measured and patches.facts.noisy == "hidden pixels"
    dataset = patches.origins[:, 0]
    assert set(dataset[patches.training]) == {0} and set(dataset[patches.validation]) == {1}
    scans = write_pairs(tmp_path / "c.ome.zarr", [(images[0], images[1])], scans=("one", "two"))
    with pytest.raises(DataError, match="train one model for each"):
        cut_patches([alone, scans], settings(("a", "c")), tmp_path / "q.zarr")


def test_a_description_says_how_it_learned_or_is_refused():
    spec = {"conditions": 1, "channels": 8, "multipliers": (1, 2), "blocks": 1}
    with pytest.raises(ValueError, match=r"`network.blind_spot` is required for, and only for, networks"):
        Description(task="emdiffuse-n", network=NativeSpec(**spec, blind_spot=(0, 1)))
    with pytest.raises(ValueError, match=r"`learned_from` is for native networks of emdiffuse-n"):
        Description(task="emdiffuse-r", network=NativeSpec(**spec), learned_from="second scan")
