"""The invariants of restoration: the same volume however the work is split, killed, damaged or repeated."""

import itertools
import json
import random
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import INTENSITY, write_volume
from restoring import chunks, content, image_model, run, settings, volumes

from emdiffuse.config import Sampler
from emdiffuse.models.description import Description, UnetSpec
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.networks.build import UNet
from emdiffuse.models.networks.weights import save_model
from emdiffuse.models.processes import Batch
from emdiffuse.restoration.intervals import floors, interval
from emdiffuse.restoration.plan import read_plan
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import read_condition, restore, restore_blocks
from emdiffuse.runtime.errors import ConfigError, ModelError, StoreError
from emdiffuse.stores.array import Array
from emdiffuse.stores.facts import CalibrationFacts
from emdiffuse.stores.provenance import digest, made_by
from emdiffuse.stores.volume import open_volume


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_real_slices_pass_unchanged_and_generated_ones_are_not_interpolated(reference, medulla):
    restored, uncertainty = volumes(reference)
    assert restored.shape == (25, 100, 84) and restored.dtype == np.uint8
    np.testing.assert_array_equal(restored[::6], medulla[:25:6, :100, :84])
    assert (uncertainty[::6] == 0).all()
    generated = np.arange(25) % 6 != 0
    assert (uncertainty[generated] > 0).mean() > 0.99
    assert len(np.unique(restored[generated])) > 50


@pytest.mark.parametrize("workers", [2, 5])
def test_bytes_do_not_depend_on_the_number_of_workers_or_their_order(
    dataset, small_model, reference, tmp_path, workers
):
    order = random.Random(workers).sample(range(1, workers + 1), workers)
    plan = run(dataset, small_model, tmp_path, workers=workers, order=order)
    assert content(plan.restored) == content(reference.restored)


@pytest.mark.parametrize("block", [(1, 1, 1), (4, 3, 2), (3, 1, 2)])
def test_voxels_do_not_depend_on_the_shape_of_blocks(dataset, small_model, reference, tmp_path, block):
    plan = run(dataset, small_model, tmp_path, block=block)
    for ours, theirs in zip(volumes(plan), volumes(reference), strict=True):
        difference = np.abs(ours.astype(np.float64) - theirs)
        assert difference.max() <= (1 if ours.dtype == np.uint8 else 1e-3)  # a value may round the other way
        assert (difference > 1e-3).mean() < 1e-4


def test_the_seed_decides(dataset, small_model, reference, tmp_path):
    other = run(dataset, small_model, tmp_path, seed=4)
    assert (volumes(other)[0] != volumes(reference)[0]).mean() > 0.1


def test_one_of_several_samples_can_be_what_is_restored(dataset, small_model, reference, tmp_path):
    """The first sample equals a single sample; the uncertainty is that of all samples."""
    plan = run(dataset, small_model, tmp_path / "first", texture=1)
    alone = run(dataset, small_model, tmp_path / "alone", samples=1, texture=None)
    assert plan.facts.estimator == "first of 2 samples of 2 network evaluations (dpm++)"
    assert alone.facts.estimator == "one sample of 2 network evaluations (dpm++)"
    np.testing.assert_array_equal(volumes(plan)[0], volumes(alone)[0])
    np.testing.assert_array_equal(volumes(plan)[1], volumes(reference)[1])
    assert (volumes(plan)[0] != volumes(reference)[0]).mean() > 0.1


def test_the_restored_volume_is_the_mean_or_a_sample_or_between(dataset, small_model, reference, tmp_path):
    """Whatever else is drawn; the uncertainty is the same."""
    mean, spread = volumes(run(dataset, small_model, tmp_path / "mean", texture=None))
    once = volumes(run(dataset, small_model, tmp_path / "once", steps=None, samples=1, texture=None))
    np.testing.assert_array_equal(mean, once[0])
    np.testing.assert_array_equal(spread, volumes(reference)[1])
    sharp = volumes(run(dataset, small_model, tmp_path / "sharp", samples=1))[0]
    np.testing.assert_array_equal(sharp, volumes(reference)[0])
    first = volumes(run(dataset, small_model, tmp_path / "first", texture=1))[0]
    between = (mean.astype(float) + first) / 2
    assert np.abs(sharp - between).max() <= 1.5, "both are rounded, and what is outside the range is clipped"
    assert (sharp != mean).mean() > 0.1
    said = "plus 0.5 of the texture of a sample of 2 network evaluations (dpm++); uncertainty from 2 samples"
    assert said in reference.facts.estimator


def test_a_volume_is_sharpened_instead(dataset, small_model, reference, tmp_path):
    plan = run(dataset, small_model, tmp_path, texture=None, sharpen=0.5)
    said = "sharpened from noise of level 0.5 in 2 network evaluations (dpm++); uncertainty from 2 samples"
    assert said in plan.facts.estimator
    assert (volumes(plan)[0] != volumes(reference)[0]).mean() > 0.1
    np.testing.assert_array_equal(volumes(plan)[1], volumes(reference)[1])


def test_an_ensemble_is_the_mean_of_all_flips_and_turns(tmp_path):
    """It rotates with its input, unlike a single evaluation."""
    model = RestorationModel.load(image_model(tmp_path / "m"))
    image = torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1

    def restored(turn, flip, ensemble):
        turned = image.rot90(turn, (-2, -1))
        batch = Batch.of_images(turned.flip(-1) if flip else turned)
        values = model.restore(batch, Sampler(ensemble=ensemble), None)[0]
        return (values.flip(-1) if flip else values).rot90(-turn, (-2, -1))

    turns = list(itertools.product(range(4), (False, True)))
    single = [restored(*turn, 1) for turn in turns]
    assert (single[1] - single[0]).abs().max() > 1e-3
    for turn in turns:
        torch.testing.assert_close(restored(*turn, 8), torch.stack(single).mean(0), atol=1e-5, rtol=0)


def test_one_call_needs_no_noise_and_has_no_uncertainty(dataset, small_model, tmp_path):
    plan = run(dataset, small_model, tmp_path / "a", steps=1, samples=1, texture=None, seed=1)
    assert (
        plan.quantities == ("restored",)
        and plan.facts.estimator == "posterior mean in one network evaluation"
    )
    other = run(dataset, small_model, tmp_path / "b", steps=1, samples=1, texture=None, seed=2)
    np.testing.assert_array_equal(volumes(plan)[0], volumes(other)[0])


def test_done_blocks_are_not_done_again(dataset, small_model, tmp_path):
    plan = run(dataset, small_model, tmp_path)
    before = [path.stat().st_mtime_ns for path in chunks(plan)]
    chunks(plan)[2].unlink()
    make_plan(dataset, small_model, settings(), tmp_path / "plan.json")
    for worker in (1, 2, 3):
        restore(tmp_path / "plan.json", worker, 3, "cpu")
    after = [path.stat().st_mtime_ns for path in chunks(plan)]
    assert [n for n in range(len(after)) if before[n] != after[n]] == [2]


def test_other_settings_are_never_resumed_into(dataset, small_model, tmp_path):
    plan = run(dataset, small_model, tmp_path)
    old = (tmp_path / "plan.json").read_text()
    make_plan(dataset, small_model, settings(steps=3), tmp_path / "plan.json")
    assert not any(map(Array(plan.tiles).exists, np.ndindex(*Array(plan.tiles).grid)))
    assert not (plan.restored / "zarr.json").exists()
    (tmp_path / "plan.json").write_text(old)  # a worker of the old plan must not write into the new stores
    with pytest.raises(StoreError, match="other settings"):
        restore(tmp_path / "plan.json", 1, 1, "cpu")


def test_a_model_without_weights_is_refused(dataset, small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read"):
        make_plan(dataset, model, settings(), tmp_path / "plan.json")


def published(folder, task, **network):
    torch.manual_seed(0)
    spec = {"base_channels": 16, "multipliers": [1, 2], "blocks": 1, **network}
    net = UNet(**spec)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_model(folder, net, Description(task=task, network=UnetSpec(**spec)))
    return folder


def test_a_published_network_fills_gaps_slice_by_slice(dataset, tmp_path):
    model = published(tmp_path / "m", "vemdiffuse-i", in_channels=3, slice_index=True)
    plan = run(dataset, model, tmp_path / "out", name="ddim", steps=2, samples=1)
    assert plan.facts.estimator == "one sample of 2 network evaluations (ddim)"
    values = open_volume(plan.restored / "restored").array[:, :, :]
    assert values.shape == plan.shape and values[1].std() > 0 and not np.array_equal(values[1], values[2])


@pytest.mark.parametrize(("task", "scale"), [("emdiffuse-n", 1), ("emdiffuse-r", 2)])
def test_images_take_the_same_path(medulla, tmp_path, task, scale):
    """A stack of images: restored separately, on the finer grid for super-resolution, in any tiling."""
    stack = write_volume(tmp_path / "s.ome.zarr", medulla[:2, :72, :90], (50, 4, 4))
    image_model(tmp_path / "m", task)
    plan = run(stack, tmp_path / "m", tmp_path / "out", name="dpm++", steps=3, samples=2)
    restored = open_volume(plan.restored / "restored")
    assert restored.array.shape == (2, 72 * scale, 90 * scale)
    assert restored.voxel_size == (50, 4 / scale, 4 / scale)
    again = run(stack, tmp_path / "m", tmp_path / "whole", tile=192, name="dpm++", steps=3, samples=2)
    one, other = (open_volume(p.restored / "restored").array[:, :, :].astype(float) for p in (plan, again))
    assert np.abs(one - other).max() <= 2 and one.std() > 5


@pytest.mark.parametrize("shape", [(2, 40, 40), (2, 10, 300), (3, 17, 65)])
@pytest.mark.parametrize("voxel", [(60, 10, 10), (45, 8, 8), (20, 10, 10), (120, 10, 10)])
def test_any_shape_and_factor_is_covered(medulla, small_model, tmp_path, shape, voxel):
    values = np.resize(medulla, shape)
    path = write_volume(tmp_path / "a.ome.zarr", values, voxel)
    plan = run(path, small_model, tmp_path / "out", steps=1, samples=1)
    volume = open_volume(plan.restored)
    factor = Fraction(voxel[0], voxel[1])
    assert volume.array.shape == (int((shape[0] - 1) * factor) + 1, *shape[1:])
    assert volume.voxel_size == (voxel[1],) * 3
    restored = volume.array[:, :, :]
    grid = plan.grid.z
    for z in range(grid.length):
        real = grid.real(z)
        if real is not None:
            np.testing.assert_array_equal(restored[z], values[real])


def test_condition_is_mirrored_and_ends_repeat(dataset, medulla):
    volume = open_volume(dataset)
    condition = read_condition(volume, [0, 0, 1, 2], (64, 48), (48, 48))
    np.testing.assert_array_equal(condition[0], condition[1])
    np.testing.assert_array_equal(condition[:, 36:48, :36], condition[:, 35:23:-1, :36])
    expected = (medulla[:13:6, 64:100, 48:84].astype(np.float32) - 20) / 210 * 2 - 1
    np.testing.assert_allclose(condition[1:, :36, :36], expected, atol=1e-6)


def test_block_of_linear_interpolation(dataset, small_model, tmp_path):
    """With a network of zeros, tiles blend exactly to linear interpolation: no seam, no shift."""
    plan = make_plan(dataset, small_model, settings(steps=1, samples=1), tmp_path / "plan.json")
    model = RestorationModel.load(small_model)
    with torch.no_grad():
        for parameter in model.network.head.exit.parameters():
            parameter.zero_()
    volume = open_volume(dataset)
    block = plan.grid[0]
    (sums, *_), *_ = restore_blocks(plan, [0], volume, model)
    (z0, y0, x0), (_, y1, x1) = block.begin, block.end
    before, after = read_condition(volume, [0, 1], (y0, x0), (y1 - y0, x1 - x0))
    inner = (
        slice(0, y1 - y0 - 8),
        slice(0, x1 - x0 - 8),
    )  # the block's own end still waits for its neighbour
    for z in range(1, 6):
        expected = before + np.float32(z / 6) * (after - before)
        np.testing.assert_allclose(sums[z - z0][inner], expected[inner], atol=1e-5)


def test_isotropic_input_and_damaged_plans_are_refused(medulla, small_model, tmp_path):
    path = write_volume(tmp_path / "a.ome.zarr", medulla[:9, :40, :40], (10, 10, 10))
    with pytest.raises(ConfigError, match="anisotropy factor z/y is 1"):
        make_plan(path, small_model, settings(), tmp_path / "plan.json")
    with pytest.raises(StoreError, match="there is no plan"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(json.dumps({"hash": "1"}))
    with pytest.raises(StoreError, match=r"plan\.json: .*run the stage `plan` again"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_of_another_version_is_not_called_edited(dataset, small_model, tmp_path):
    """A version with one key fewer, or more, writes a checksum that matches its content."""
    path = tmp_path / "plan.json"
    make_plan(dataset, small_model, settings(), path)
    written = json.loads(path.read_text())
    assert read_plan(path).checksum == written.pop("checksum")
    for other in ({key: value for key, value in written.items() if key != "context"}, {**written, "new": 1}):
        path.write_text(json.dumps({**other, "checksum": digest(other)}))
        with pytest.raises(StoreError, match=r"another version of emdiffuse.*run the stage `plan` again"):
            read_plan(path)
    path.write_text(json.dumps({**written, "blocks": written["blocks"] + 1, "checksum": digest(written)}))
    with pytest.raises(StoreError, match="the plan was edited"):
        read_plan(path)


def calibration_for(plan, folder, scale=2.0):
    """Write a calibration of the plan's model and sampler, from other data."""
    made = made_by("calibrate", "other", {})
    facts = CalibrationFacts(made=made, scale=scale, sampler=plan.sampler, weights=plan.facts.weights)
    path = folder / "calibration.json"
    path.write_text(json.dumps(facts.as_json()))
    return path


def test_a_calibrated_restoration_holds_intervals(dataset, small_model, tmp_path):
    """Bounds enclose the restored value, and equal it at real slices."""
    mean = run(dataset, small_model, tmp_path / "mean", texture=None)
    path = calibration_for(mean, tmp_path)
    plan = make_plan(dataset, small_model, settings(texture=None), tmp_path / "plan.json", path)
    for stage in (restore, stitch):
        stage(tmp_path / "plan.json", 1, 1)
    pyramid(tmp_path / "plan.json")
    assert plan.outputs == ("restored", "uncertainty", "lower", "upper")
    made = {name: open_volume(plan.restored / name).array[:, :, :] for name in plan.outputs}
    restored, uncertainty = volumes(mean)
    np.testing.assert_array_equal(made["restored"], restored)
    floor = floors(plan.intensity.at())
    bounds = interval(restored, uncertainty, 2.0, floor)
    for name, bound in zip(("lower", "upper"), bounds, strict=True):
        np.testing.assert_array_equal(made[name][1:6], bound[1:6])
        np.testing.assert_array_equal(made[name][::6], restored[::6])
    with pytest.raises(StoreError, match="another sampler"):
        make_plan(dataset, small_model, settings(steps=3), tmp_path / "plan.json", path)


def test_every_generated_slice_is_scored(reference):
    """The score is the 99th percentile of the uncertainty, as a fraction of the robust range, to 1/1000."""
    told = open_volume(reference.restored).facts.reliability
    _, uncertainty = volumes(reference)
    generated = [z for z in range(25) if z % 6]
    span = INTENSITY["high"] - INTENSITY["low"]
    wanted = np.percentile(uncertainty[generated], 99, axis=(1, 2)) / span
    np.testing.assert_allclose(told.scores, wanted, atol=1.5e-3)
    assert told.threshold == 0.12
    assert list(told.slices) == generated
    assert told.reliable == (np.array(told.scores) <= 0.12).sum()


def test_tiles_in_batches_give_the_same_volume(dataset, small_model, reference, tmp_path):
    plan = run(dataset, small_model, tmp_path, batch=3)
    for ours, theirs in zip(volumes(plan), volumes(reference), strict=True):
        assert np.abs(ours.astype(np.float64) - theirs).max() <= (1 if ours.dtype == np.uint8 else 1e-2)


def test_batches_hold_gaps_of_one_depth(medulla, small_model, tmp_path):
    path = write_volume(tmp_path / "a.ome.zarr", medulla[:4, :100, :40], (25, 10, 10))  # 2 and 2 and 3 slices
    alone = run(path, small_model, tmp_path / "alone", samples=1)
    batched = run(path, small_model, tmp_path / "batched", samples=1, batch=8)
    difference = np.abs(volumes(alone)[0].astype(int) - volumes(batched)[0])
    assert difference.max() <= 1 and volumes(alone)[0].std() > 5


def test_missing_slices_are_restored_from_the_good_ones_on_both_sides(medulla, small_model, tmp_path):
    """Slices 2 and 3 of 6 are lost: a gap of 18 slices, in which copies of a neighbour are not used."""
    values = medulla[:31:6, :64, :48].copy()
    lost = write_volume(tmp_path / "a.ome.zarr", values, (60, 10, 10), missing=[2, 3])
    plan = run(lost, small_model, tmp_path / "a", samples=1)
    restored = volumes(plan)[0]
    assert restored.shape[0] == 31
    for real in (0, 1, 4, 5):
        np.testing.assert_array_equal(restored[6 * real], values[real])
    assert all((restored[6 * real] != values[real]).mean() > 0.5 for real in (2, 3))
    values[2:4] = 99
    other = write_volume(tmp_path / "b.ome.zarr", values, (60, 10, 10), missing=[2, 3])
    np.testing.assert_array_equal(volumes(run(other, small_model, tmp_path / "b", samples=1))[0], restored)
    complete = write_volume(tmp_path / "c.ome.zarr", values, (60, 10, 10))
    assert run(complete, small_model, tmp_path / "c", samples=1).hash != plan.hash


def test_an_isotropic_volume_is_restored_where_slices_are_missing(medulla, small_model, tmp_path, caplog):
    values = medulla[:12, :64, :48]
    path = write_volume(tmp_path / "a.ome.zarr", values, (10, 10, 10), missing=[0, 6, 7])
    plan = run(path, small_model, tmp_path / "a", block=(2, 1, 1), samples=1)
    restored = volumes(plan)[0]
    made = [z for z in range(12) if not np.array_equal(restored[z], values[z])]
    assert made == [6, 7]
    written = Array(plan.tiles).written()
    assert 0 < len(written) == len(plan.grid) // plan.grid.counts[0]  # the blocks of one gap
    assert "slices [0] are missing at an end" in caplog.text and "factor 3, but" in caplog.text
