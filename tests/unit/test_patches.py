"""Patches of every task: several factors in one store, lateral gaps, and image pairs."""

import numpy as np
import pytest
import torch
from helpers import INTENSITY, write_pairs, write_volume

from emdiffuse.config import Model
from emdiffuse.patches.cut import ORIGIN_COLUMNS, TRAINING, PatchStore, cut_patches
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.array import Array
from emdiffuse.stores.pairs import finish_pairs, open_pairs
from emdiffuse.stores.resampling import enlarge
from emdiffuse.training.feed import read_batch

PATCHES = {"size": 32, "overlap": 0.5, "validation": 0.25}


def model(task, **more):
    return Model.model_validate({"task": task, "datasets": ["a"], "patches": PATCHES} | more)


def unit(values):
    return (values.astype(np.float32) - INTENSITY["low"]) / (INTENSITY["high"] - INTENSITY["low"]) * 2 - 1


def table(store):
    rows = Array(store / "origin")[:, :]
    return {name: rows[:, i] for i, name in enumerate(ORIGIN_COLUMNS)}


def test_one_store_holds_several_factors(medulla, tmp_path):
    volume = write_volume(tmp_path / "a.ome.zarr", medulla[:60, :64, :64], (10, 10, 10))
    cut_patches([volume], model("vemdiffuse-i", factor=[4, 2]), tmp_path / "p.zarr")
    patches = PatchStore(tmp_path / "p.zarr")
    assert set(patches.factor) == {2, 4} and patches.facts.factors == (2, 4)
    for factor in (2, 4):
        row = int(np.flatnonzero(patches.factor == factor)[0])
        batch, target = read_batch(patches, np.array([row]))
        depth = factor - 1
        assert target.shape[1] == 3 and target[0, :depth].isfinite().all() and target[0, depth:].isnan().all()
        np.testing.assert_allclose(batch.positions[0, :depth], np.arange(1, factor) / factor)
        assert batch.positions[0, depth:].isnan().all() and batch.factor.item() == factor
        origin = {name: int(values[row]) for name, values in table(tmp_path / "p.zarr").items()}
        box = [slice(origin[n], origin[n] + 32) for n in "zyx"]
        box[origin["axis"]] = slice(box[origin["axis"]].start, box[origin["axis"]].start + 3 * factor + 1)
        stack = np.moveaxis(unit(medulla[tuple(box)]), origin["axis"], 0)
        np.testing.assert_allclose(batch.condition[0], stack[::factor], atol=2e-3)
        np.testing.assert_allclose(target[0, :depth], stack[factor + 1 : 2 * factor], atol=2e-3)


@pytest.mark.parametrize(("factor", "thickness"), [(6, 1.0), (6, 0.5), (4, 0.6), (5, 1.0), (5, 0.1)])
def test_a_thick_slice_is_the_mean_of_what_it_integrates_over_and_lies_in_its_middle(
    tmp_path, factor, thickness, monkeypatch
):
    """In a volume whose values are z, a slice's value is the position of its centre."""
    monkeypatch.setattr("emdiffuse.patches.gaps.BLANK", 0.0)
    depth = np.arange(80, dtype=np.float32)
    ramp = np.broadcast_to(depth[:, None, None], (80, 64, 64)) + np.eye(64, dtype=np.float32)
    volume = write_volume(tmp_path / "a.ome.zarr", ramp.astype(np.float32), (10, 10, 10))
    settings = {"patches": PATCHES, "factor": factor, "thickness": thickness}
    cut_patches([volume], model("vemdiffuse-i", **settings), tmp_path / "p.zarr")
    patches, origins = PatchStore(tmp_path / "p.zarr"), table(tmp_path / "p.zarr")
    span = (INTENSITY["high"] - INTENSITY["low"]) / 2
    window = max(factor * thickness, 1)
    ends = {int(end): row for row, end in enumerate(origins["end"])}
    assert set(ends) == ({0, 1} if window > 1 else {0})
    for end, row in ends.items():
        batch, target = read_batch(patches, np.array([row]))
        z = (torch.cat([batch.condition[0], target[0]])[:, 0, 9] + 1) * span + INTENSITY["low"]
        real, slices = z[:4].numpy() - origins["z"][row], z[4:].numpy() - origins["z"][row]
        whole, part = int(window), window - int(window)
        mean = (sum(range(whole)) + part * whole) / window  # of the voxels 0, 1, ... with their weights
        np.testing.assert_allclose(real[end:], np.arange(end, 4) * factor + mean, atol=0.05)
        assert not end or real[0] == real[1]
        positions = patches.positions[row]
        present = np.isfinite(positions)
        assert np.isfinite(slices[present]).all() and np.isnan(slices[~present]).all()
        centre = factor + (window - 1) / 2
        np.testing.assert_allclose((slices[present] - centre) / factor, positions[present], atol=0.02)
        spacing = np.diff(slices[present])
        np.testing.assert_allclose(spacing, 1, atol=0.1)
        assert (positions[present].min() < 0) == bool(end) and positions[present].max() <= 1
        assert len(slices[present]) >= (factor if window > 1 else factor - 1)
        assert batch.thickness[0] == pytest.approx(thickness if window > 1 else 0)


def test_small_volumes_are_trained_on_whole_and_give_the_factors_that_fit(medulla, tmp_path):
    deep = np.concatenate([medulla, medulla[:39]])[:, :64, :64]
    large = write_volume(tmp_path / "a.ome.zarr", deep, (10, 10, 10))
    small = write_volume(tmp_path / "b.ome.zarr", medulla[:20, :64, :64], (10, 10, 10))
    settings = {
        "datasets": ["a", "b"],
        "factor": [2, 6, 8],
        "patches": PATCHES | {"validation_datasets": ["a"], "limit": 200},
    }
    cut_patches([large, small], model("vemdiffuse-i", **settings), tmp_path / "p.zarr")
    origins = table(tmp_path / "p.zarr")
    of_small = origins["dataset"] == 1
    assert set(origins["factor"][of_small]) == {2, 6} and set(origins["split"][of_small]) == {TRAINING}
    assert set(origins["factor"]) == {2, 6, 8}
    assert 0.1 < of_small.mean() < 0.4  # a sixteenth of the places
    middling = write_volume(tmp_path / "c.ome.zarr", medulla[:45, :64, :64], (10, 10, 10))
    with pytest.raises(DataError, match="too small for gaps of factor 12"):
        cut_patches([middling], model("vemdiffuse-i", factor=[2, 12]), tmp_path / "q.zarr")


def test_gaps_are_cut_along_the_axes_that_are_asked_for(medulla, tmp_path):
    volume = write_volume(tmp_path / "a.ome.zarr", medulla[:60, :64, :64], (10, 10, 10))
    wanted = model("vemdiffuse-i", factor=4, patches=PATCHES | {"axes": ["z", "x"]})
    cut_patches([volume], wanted, tmp_path / "p.zarr")
    origins = table(tmp_path / "p.zarr")
    assert set(origins["axis"][origins["split"] == TRAINING]) == {0, 2}


def test_lateral_gaps_of_an_anisotropic_volume(medulla, tmp_path):
    """Depth is y or x; the coarse z axis is interpolated to the lateral pixel size."""
    coarse = medulla[::4][:10]
    volume = write_volume(tmp_path / "a.ome.zarr", coarse, (40, 10, 10))
    cut_patches([volume], model("vemdiffuse-a", factor=4), tmp_path / "p.zarr")
    patches, origins = PatchStore(tmp_path / "p.zarr"), table(tmp_path / "p.zarr")
    assert set(origins["axis"]) == {1, 2}
    for axis in (1, 2):
        row = int(np.flatnonzero(origins["axis"] == axis)[3])
        z, y, x = (int(origins[n][row]) for n in "zyx")
        # row 8 of the stretched axis is slice z + 2; row 6 is half way between z + 1 and z + 2
        place = [slice(y, y + 32), slice(x, x + 32)]
        place[axis - 1] = slice(place[axis - 1].start, place[axis - 1].start + 13, 4)
        real = unit(coarse[(slice(z, z + 10), *place)])
        condition = patches.read(np.array([row]))[0][0]
        np.testing.assert_allclose(condition[:, 8], np.moveaxis(real[2], axis - 1, 0), atol=2e-3)
        np.testing.assert_allclose(
            condition[:, 6], np.moveaxis((real[1] + real[2]) / 2, axis - 1, 0), atol=2e-3
        )
    y_end = origins["y"] + np.where(origins["axis"] == 1, 13, 32)
    training = origins["split"] == TRAINING
    assert y_end[training].max() + 4 <= origins["y"][~training].min()


def test_a_volume_thinner_than_a_patch_is_mirrored(medulla, tmp_path):
    volume = write_volume(tmp_path / "a.ome.zarr", medulla[:24:6, :96, :96], (60, 10, 10))
    cut_patches([volume], model("vemdiffuse-a", factor=2), tmp_path / "p.zarr")
    condition, _ = PatchStore(tmp_path / "p.zarr").read(np.array([0]))
    assert np.isfinite(condition).all() and condition.shape[2:] == (32, 32)


@pytest.mark.parametrize(("task", "scale"), [("emdiffuse-n", 1), ("emdiffuse-r", 2)])
def test_patches_of_pairs_lie_over_each_other(medulla, tmp_path, task, scale):
    fixed = [medulla[0, :128, :96], medulla[40, :128, :96]]
    pairs = [(image[::scale, ::scale], image) for image in fixed]
    store = write_pairs(tmp_path / "a.ome.zarr", pairs, scale)
    cut_patches([store], model(task), tmp_path / "p.zarr")
    patches, origins = PatchStore(tmp_path / "p.zarr"), table(tmp_path / "p.zarr")
    assert set(origins["axis"][origins["split"] == TRAINING]) == {0}  # the second field is kept
    assert set(origins["axis"][origins["split"] != TRAINING]) == {1}
    for row in (0, 5):
        y, x = int(origins["y"][row]), int(origins["x"][row])
        condition, target = patches.read(np.array([row]))
        np.testing.assert_allclose(target[0, 0], unit(fixed[0][y : y + 32, x : x + 32]), atol=2e-3)
        small = unit(pairs[0][0][y // scale : (y + 32) // scale, x // scale : (x + 32) // scale])
        np.testing.assert_allclose(condition[0, 0], enlarge(small, scale), atol=2e-3)


def test_one_field_is_split_by_region_and_masked_patches_are_left_out(medulla, tmp_path):
    image = medulla[0, :150, :100]
    store = write_pairs(tmp_path / "a.ome.zarr", [(image, image)])
    mask = np.ones((1, *image.shape), np.uint8)
    mask[:, :, :20] = 0
    mask[0, 60, 90] = 0
    write_volume(store / "0000" / "mask", mask, (5, 5, 5))
    cut_patches([store], model("emdiffuse-n"), tmp_path / "p.zarr")
    origins = table(tmp_path / "p.zarr")
    training = origins["split"] == TRAINING
    assert origins["x"].min() == 20 and len(origins["x"]) > 10  # the grid begins where the mask does
    for y, x in zip(origins["y"], origins["x"], strict=True):
        assert mask[0, y : y + 32, x : x + 32].all()
    assert (origins["y"][training] + 32).max() + 16 <= origins["y"][~training].min()


def test_data_that_does_not_suit_the_task_is_refused(medulla, tmp_path):
    image = medulla[0, :128, :96]
    store = write_pairs(tmp_path / "a.ome.zarr", [(image, image)])
    volume = write_volume(tmp_path / "v.ome.zarr", medulla[:40], (10, 10, 10))
    with pytest.raises(DataError, match="pairs of scale 2, but these have scale 1"):
        cut_patches([store], model("emdiffuse-r"), tmp_path / "p.zarr")
    with pytest.raises(DataError, match="learns from image pairs, but this is a volume"):
        cut_patches([volume], model("emdiffuse-r"), tmp_path / "p.zarr")
    pairs = open_pairs(store)
    excluded = (pairs.fields[0].model_copy(update={"excluded": "blurred"}),)
    finish_pairs(store, pairs.facts.model_copy(update={"fields": excluded}))
    with pytest.raises(DataError, match="every field was excluded"):
        cut_patches([store], model("emdiffuse-n"), tmp_path / "p.zarr")
    assert not (tmp_path / "p.zarr").exists()


def test_enlarging_keeps_a_ramp_and_its_place():
    ramp = np.arange(20, dtype=np.float32)[None, :] * np.ones((20, 1), np.float32)
    large = enlarge(ramp, 2)
    assert large.shape == (40, 40)
    np.testing.assert_allclose(large[20, 10:30], (np.arange(10, 30) - 0.5) / 2, atol=1e-4)
    assert torch.equal(torch.from_numpy(enlarge(ramp, 1)), torch.from_numpy(ramp))
