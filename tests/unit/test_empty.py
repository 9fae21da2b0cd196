"""Nothing is generated in empty regions; elsewhere nothing changes."""

import json

import numpy as np
import pytest
import tifffile
from helpers import INTENSITY, ROOT, write_volume
from restoring import image_model, run

from emdiffuse.config import Sampler
from emdiffuse.config.shipped import model_folder
from emdiffuse.evaluation.baselines import interpolate
from emdiffuse.models.description import read_description
from emdiffuse.report import plain
from emdiffuse.report.pictures import View, panels
from emdiffuse.restoration import empty
from emdiffuse.restoration.empty import BLOCK, HALO, LAYER, look
from emdiffuse.stores.array import Array
from emdiffuse.stores.volume import open_volume


@pytest.fixture(scope="module")
def mussel():
    """Real SEM of mussel tissue in resin, two scans with independent noise, (2, 128, 320) uint8."""
    return tifffile.imread(ROOT / "resources/demo/mussel_resin.tif")


def seen_at(values, low, high):
    """Return the map of non-empty regions of an image, per pixel."""
    unit = (values.astype(np.float32) - low) / (high - low) * 2 - 1
    return look(unit)[0].repeat(BLOCK, 0).repeat(BLOCK, 1)[: values.shape[0], : values.shape[1]]


def ranges(values):
    low, high = np.percentile(values, [0.5, 99.5])
    return {"intensity": {"low": float(low), "high": float(high)}}


@pytest.fixture(scope="module")
def gap(mussel, small_model, tmp_path_factory):
    """The gap between the two images, filled by a network with random weights, with and without the rule."""
    folder = tmp_path_factory.mktemp("gap")
    volume = write_volume(folder / "a.ome.zarr", mussel, (40, 10, 10), **ranges(mussel))
    plans = {key: run(volume, small_model, folder / key, empty=key) for key in ("plain", "restore")}
    return open_volume(volume), plans


def test_in_real_resin_nothing_is_made_up(gap, mussel):
    volume, plans = gap
    filled = {key: Array(plan.restored / "restored" / "0")[:, :, :] for key, plan in plans.items()}
    scale = volume.intensity.low, volume.intensity.high
    resin = np.maximum(*(seen_at(image, *scale) for image in mussel)) == 0
    assert 0.2 < resin.mean() < 0.8
    grid = plans["plain"].grid.z
    linear = interpolate(volume.array[:, :, :], grid, range(grid.length), "linear").astype(float)
    for axis in (0, 1):  # between the middles of blocks there is interpolation
        resin &= np.roll(resin, BLOCK, axis) & np.roll(resin, -BLOCK, axis)
    variance = min(image[resin].astype(float).var() for image in mussel)
    for z in (1, 2, 3):
        assert filled["plain"][z][resin].astype(float).var() <= variance
        assert np.abs(filled["plain"][z] - linear[z])[resin].max() <= 1  # of rounding
        assert np.abs(filled["restore"][z] - linear[z])[resin].mean() > 1  # what would be made up


def test_where_something_is_seen_not_a_voxel_changes(gap, mussel):
    _, plans = gap
    filled = [Array(plan.restored / "restored" / "0")[:, :, :] for plan in plans.values()]
    layer = Array(plans["plain"].restored / LAYER / "0")[:, :, :]
    tissue = (layer == 0).repeat(BLOCK, 1).repeat(BLOCK, 2)
    for axis in (1, 2):  # between the middles of blocks there is interpolation
        tissue &= np.roll(tissue, BLOCK, axis) & np.roll(tissue, -BLOCK, axis)
    assert tissue[1:4].mean() > 0.2
    np.testing.assert_array_equal(filled[0][tissue], filled[1][tissue])
    assert (filled[0] != filled[1])[1:4].mean() > 0.1


def test_what_was_left_plain_is_marked(gap, mussel):
    _, plans = gap
    plan = plans["plain"]
    layer = open_volume(plan.restored / LAYER)
    assert layer.voxel_size == (10, 10 * BLOCK, 10 * BLOCK)
    values = layer.array[:, :, :]
    assert values.shape == (5, 32, 80) and not values[[0, 4]].any()  # real slices are not generated
    facts = open_volume(plan.restored).restoration.empty
    assert facts.share == pytest.approx(values[1:4].mean() / 255, abs=1e-3) and 0.2 < facts.share < 0.8
    root = json.loads((plan.restored / "zarr.json").read_text())
    assert root["attributes"]["emdiffuse"]["empty"]["block"] == BLOCK
    spread = Array(plan.restored / "uncertainty" / "0")[:, :, :]
    assert not spread[1][np.kron(values[1] == 255, np.ones((BLOCK, BLOCK))) > 0].mean() > 0.5
    assert not (plans["restore"].restored / LAYER).exists()


@pytest.mark.parametrize("others", [{"workers": 3, "order": (3, 1, 2)}, {"tile": 96}, {"block": (1, 1, 1)}])
def test_it_is_the_same_for_any_tiles_and_workers(gap, mussel, small_model, tmp_path, others):
    """Tiles change a network's result, but never which regions are empty."""
    volume, plans = gap
    plan = run(volume.path, small_model, tmp_path, empty="plain", **others)
    same = [LAYER] if "tile" in others else [LAYER, "restored"]
    for name in same:
        one, two = (Array(p.restored / name / "0")[:, :, :] for p in (plans["plain"], plan))
        np.testing.assert_array_equal(one, two)


def test_a_part_of_a_slice_is_seen_as_the_whole(mussel):
    unit = mussel[0].astype(np.float32) / 128 - 1
    whole, _ = look(unit)
    for top, left in ((32, 48), (64, 160)):
        part, _ = look(unit[top - HALO : top + 20 + HALO, left - HALO : left + 40 + HALO])
        inside = (slice(HALO // BLOCK, HALO // BLOCK + 6), slice(HALO // BLOCK, HALO // BLOCK + 11))
        there = (slice(top // BLOCK, top // BLOCK + 6), slice(left // BLOCK, left // BLOCK + 11))
        np.testing.assert_array_equal(part[inside], whole[there])


def test_constant_regions_are_empty_and_noise_is_whatever_its_strength(medulla):
    rng = np.random.default_rng(0)
    unit = (medulla[0, :128, :128].astype(np.float32) - INTENSITY["low"]) / 105 - 1
    assert look(unit)[0].mean() > 0.95
    unit[:, 64:] = 1.0  # charged
    assert not look(unit)[0][:, 16 + 6 :].any() and look(unit)[0][:, :14].mean() > 0.9
    for strength in (0.0, 0.02, 0.1, 0.2):
        noise = rng.normal(0, strength, (256, 256)).astype(np.float32)
        correlated = (noise + np.roll(noise, 1, 1)) / np.sqrt(2)
        for image in (noise, correlated):
            assert look(image)[0].mean() < 0.02


@pytest.mark.parametrize("model", ["emdiffuse-n", "emdiffuse-r"])
def test_the_posterior_mean_of_an_image_is_smooth_in_resin_and_only_marked(mussel, tmp_path, model):
    """As the shipped models restore it by default; with texture, nothing of it is left there."""
    images = write_volume(
        tmp_path / "a.ome.zarr", mussel[:1], (10, 10, 10), kind="images", **ranges(mussel[:1])
    )
    defaults = {"samples": 1, "name": None, "texture": None}
    plans = {
        key: run(images, model_folder(model), tmp_path / str(key), empty=key, steps=1, **defaults)
        for key in (None, "mark", "restore")
    }
    values = {key: Array(plan.restored / "restored" / "0")[:, :, :] for key, plan in plans.items()}
    for key in ("mark", "restore"):
        np.testing.assert_array_equal(values[key], values[None])
    facts = open_volume(plans[None].restored).restoration
    assert facts.sampler.empty == "mark" and "restored like the rest" in plain.sentence(facts, True)[0]
    assert not (plans["restore"].restored / LAYER).exists()
    (layer,) = Array(plans[None].restored / LAYER / "0")[:, :, :]
    scale = plans[None].scale
    resin = np.kron(layer == 255, np.ones((BLOCK * scale, BLOCK * scale))) > 0
    blocks = np.kron(layer == 255, np.ones((BLOCK, BLOCK))) > 0
    assert 0.2 < resin.mean() < 0.8
    assert values[None][0][resin].astype(float).var() < mussel[0][blocks].astype(float).var() / 2
    textured = read_description(model_folder(model)).resolve(Sampler(texture=0.5))
    assert textured.empty == "plain"


@pytest.mark.parametrize("task", ["emdiffuse-n", "emdiffuse-r"])
def test_of_an_image_the_means_are_left(mussel, tmp_path, task):
    images = write_volume(
        tmp_path / "a.ome.zarr", mussel[:1], (10, 10, 10), kind="images", **ranges(mussel[:1])
    )
    model = image_model(tmp_path / "model", task)
    plan = run(images, model, tmp_path / "plain", empty="plain", steps=1, samples=1, name=None, texture=None)
    scale = plan.scale
    (restored,) = Array(plan.restored / "restored" / "0")[:, :, :]
    (layer,) = Array(plan.restored / LAYER / "0")[:, :, :]
    assert layer.shape == (32, 80) and layer.mean() > 0.2 * 255
    resin = np.kron(layer == 255, np.ones((BLOCK * scale, BLOCK * scale))) > 0
    blocks = np.kron(layer == 255, np.ones((BLOCK, BLOCK))) > 0
    assert restored[resin].astype(float).var() <= mussel[0][blocks].astype(float).var()
    assert empty.BLOCK * scale == open_volume(plan.restored).restoration.empty.block


def test_the_report_says_and_shows_it(gap):
    volume, plans = gap
    facts = {key: open_volume(plan.restored) for key, plan in plans.items()}
    grid = plans["plain"].grid.z
    shape = facts["plain"].array.shape
    box = (range(5), range(3, shape[1]), range(6, shape[2] - 5))
    for key, restored in facts.items():
        view = View({"input": volume, "restored": restored}, grid, box, (2, 60, 100), (100.0, 250.0))
        said, shown = plain.sentence(restored.restoration, False), plain.hatched(view)
        assert bool(said) == (shown is not None) == (key == "plain")
        if shown is not None:
            changed = shown != view.plane("restored", 0)
            layer = Array(restored.path / LAYER / "0")[:, :, :][2].repeat(BLOCK, 0).repeat(BLOCK, 1)
            assert not changed[layer[3:, 6:-5] < 128].any() and changed.any()
            (first, *_), _ = panels(view, ["input", "restored"], 10**6, shown)
            assert "is interpolated" in said[0] and first["kind"] == "xy"
