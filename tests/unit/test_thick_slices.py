"""Slices that integrate over several output slices: kept, placed, and reproduced by the restoration."""

import numpy as np
import pytest
import torch
from helpers import write_volume
from restoring import content, image_model, run, settings

from emdiffuse.acquisition.acquire import keep_every
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import stitch_box
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.array import Array
from emdiffuse.stores.volume import open_volume

FACTOR = 4


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def thick(medulla, tmp_path_factory):
    """Six slices, each the mean of four."""
    folder = tmp_path_factory.mktemp("thick")
    volume = write_volume(folder / "a.ome.zarr", medulla[:25, :70, :64], (10, 10, 10), missing=[21])
    keep_every(volume, FACTOR, folder / "thick.ome.zarr", "thick", thickness=1.0)
    return folder / "thick.ome.zarr"


def test_a_thick_slice_is_the_mean_of_what_it_integrates_over(thick, medulla, tmp_path):
    kept, facts = open_volume(thick).array[:, :, :], open_volume(thick).facts
    whole = medulla[:24, :70, :64].astype(float)
    np.testing.assert_array_equal(kept, np.rint(whole.reshape(6, 4, 70, 64).mean(1)))
    assert facts.thickness == 1.0 and facts.missing == (5,)  # slice 21 is part of the last
    volume = write_volume(tmp_path / "a.ome.zarr", medulla[:25, :70, :64], (10, 10, 10))
    keep_every(volume, 5, tmp_path / "part.ome.zarr", "part", thickness=0.5)
    part = open_volume(tmp_path / "part.ome.zarr").array[:, :, :]
    assert len(part) == 5
    mean = np.tensordot([0.4, 0.4, 0.2], medulla[5:8, :70, :64].astype(float), 1)
    assert np.abs(part[1] - mean).max() <= 0.5 + 1e-6
    keep_every(volume, 5, tmp_path / "thin.ome.zarr", "thin", thickness=0.1)
    assert open_volume(tmp_path / "thin.ome.zarr").facts.thickness == 0.0


@pytest.fixture(scope="module")
def reference(thick, small_model, tmp_path_factory):
    return run(thick, small_model, tmp_path_factory.mktemp("reference"))


def restored(plan, name="restored"):
    return Array(plan.restored / name / "0")[:, :, :]


def averages(values):
    return values.astype(float).reshape(-1, FACTOR, *values.shape[1:]).mean(1)


def test_all_that_a_thick_slice_integrates_over_is_restored_and_averages_to_it(thick, reference):
    values, real = restored(reference), open_volume(thick).array[:, :, :]
    assert values.shape == (24, 70, 64) and reference.sampler.consistent
    inside = (values[:20] > 0) & (values[:20] < 255)  # what was clipped to 8 bits is lost
    whole = inside.reshape(5, FACTOR, 70, 64).all(1)
    assert np.abs(averages(values)[:5] - real[:5])[whole].max() <= 0.6  # rounded to grey levels
    assert np.abs(averages(values)[5] - real[5]).max() > 2  # of a missing slice nothing is asked
    assert (restored(reference, "uncertainty") > 0).mean() > 0.99


def test_without_consistency_it_is_what_the_network_made(thick, small_model, reference, tmp_path):
    plan = run(thick, small_model, tmp_path, consistent=False)
    free, held = restored(plan).astype(float), restored(reference).astype(float)
    assert np.abs(averages(free)[:5] - averages(held)[:5]).max() > 2
    changes = (held - free)[:20].reshape(5, FACTOR, 70, 64)
    inside = ((held > 0) & (held < 255) & (free > 0) & (free < 255))[:20].reshape(changes.shape).all(1)
    spread = (changes.max(1) - changes.min(1))[inside]
    assert spread.max() <= 2  # the smallest change that does it is the same in all four


@pytest.mark.parametrize("block, workers", [((1, 1, 1), 1), ((2, 2, 1), 3)])
def test_neither_blocks_nor_workers_show(thick, small_model, reference, tmp_path, block, workers):
    plan = run(thick, small_model, tmp_path, block=block, workers=workers)
    difference = restored(plan).astype(float) - restored(reference)
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3
    if block == (2, 2, 1):
        assert content(plan.restored) == content(reference.restored)


def test_a_part_of_the_volume_is_cut_from_the_whole(thick, reference):
    """Across shard borders, a slice constrains everything it integrates over."""
    tiles, volume, whole = Array(reference.tiles), open_volume(thick), restored(reference)
    for begin, end in ((0, 3), (3, 9), (9, 10), (10, 24)):
        box = (slice(begin, end), slice(8, 40), slice(0, 64))
        part = stitch_box(reference, volume, tiles, "restored", box)
        np.testing.assert_array_equal(part, whole[box])


def test_consistency_is_for_thick_slices_alone(dataset, small_model, tmp_path):
    with pytest.raises(DataError, match=r"sampler\.consistent` is for thick slices"):
        make_plan(dataset, small_model, settings(consistent=True), tmp_path / "plan.json")
    with pytest.raises(DataError, match=r"sampler\.consistent` is for thick slices"):
        make_plan(dataset, image_model(tmp_path / "n"), settings(consistent=True), tmp_path / "plan.json")
    assert make_plan(dataset, small_model, settings(), tmp_path / "plan.json").sampler.consistent is False
