"""Gaps filled between denoised slices: the slices of a volume are first restored one by one."""

import json

import numpy as np
import pytest
import torch
from helpers import raw_file, write_volume
from restoring import content, image_model, run, settings, volumes

from emdiffuse.evaluation.evaluate import evaluate
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.tiles import restore
from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.stores.facts import RealSlices
from emdiffuse.stores.volume import open_volume


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    return image_model(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture(scope="module")
def denoised(dataset, denoiser, tmp_path_factory):
    """The plan of the denoised real slices; never written to."""
    torch.set_num_threads(1)
    return run(dataset, denoiser, tmp_path_factory.mktemp("denoised"), by="denoise")


def fill(denoised, small_model, folder, **others):
    return run(denoised.restored, small_model, folder, real_slices="denoise", **others)


@pytest.fixture(scope="module")
def filled(denoised, small_model, tmp_path_factory):
    """The plan of the gaps filled between them; never written to."""
    return fill(denoised, small_model, tmp_path_factory.mktemp("filled"))


def test_real_slices_are_the_denoised_ones_with_their_uncertainty(dataset, denoised, filled, reference):
    slices, spread = volumes(denoised)
    given = open_volume(dataset).array[:, :, :]
    assert slices.shape == given.shape and (slices != given).mean() > 0.5
    restored, uncertainty = volumes(filled)
    np.testing.assert_array_equal(restored[::6], slices)
    np.testing.assert_array_equal(uncertainty[::6], spread)
    assert (spread > 0).mean() > 0.99
    assert restored.shape == (25, 100, 84) and open_volume(filled.restored).voxel_size == (10, 10, 10)
    plain = volumes(reference)[0]  # filled between the slices as they are
    assert all((restored[z] != plain[z]).mean() > 0.3 for z in range(25) if z % 6)


def test_without_an_uncertainty_of_their_own_it_is_zero(dataset, denoiser, small_model, tmp_path):
    once = run(dataset, denoiser, tmp_path / "once", by="denoise", steps=1, samples=1)
    restored, uncertainty = volumes(fill(once, small_model, tmp_path / "filled"))
    np.testing.assert_array_equal(restored[::6], volumes(once)[0])
    assert (uncertainty[::6] == 0).all() and (uncertainty[1] > 0).all()


def test_the_volume_says_who_restored_its_real_slices(denoised, filled):
    facts = open_volume(filled.restored).facts
    assert facts.real_slices == RealSlices(
        model="denoise",
        estimator=denoised.facts.estimator,
        weights=denoised.facts.weights,
        hash=denoised.hash,
    )
    assert open_volume(denoised.restored).facts.real_slices is None
    assert list(facts.reliability.slices) == [z for z in range(25) if z % 6]


def test_bytes_do_not_depend_on_the_number_of_workers(denoised, small_model, filled, tmp_path):
    plan = fill(denoised, small_model, tmp_path, workers=3, order=(3, 1, 2))
    assert content(plan.restored) == content(filled.restored)


def test_slices_that_were_denoised_otherwise_meanwhile_are_refused(dataset, denoiser, small_model, tmp_path):
    first = run(dataset, denoiser, tmp_path / "n", by="denoise", samples=1)
    make_plan(first.restored, small_model, settings(real_slices="denoise"), tmp_path / "plan.json")
    run(dataset, denoiser, tmp_path / "n", by="denoise", samples=1, seed=4)
    with pytest.raises(StoreError, match=r"restored.ome.zarr: changed since .*plan.json was made"):
        restore(tmp_path / "plan.json", 1, 1, "cpu")


@pytest.mark.parametrize(("real_slices", "says"), [(None, "not set"), ("sharpen", "sharpen")])
def test_slices_of_another_model_than_named_are_refused(denoised, small_model, tmp_path, real_slices, says):
    wanted = settings(real_slices=real_slices)
    with pytest.raises(DataError, match=f"restored by denoise, but `real_slices` is {says};"):
        make_plan(denoised.restored, small_model, wanted, tmp_path / "plan.json")


def test_slices_as_they_were_acquired_are_no_denoised_ones(dataset, small_model, tmp_path):
    with pytest.raises(DataError, match="restored by no model, but `real_slices` is denoise;"):
        make_plan(dataset, small_model, settings(real_slices="denoise"), tmp_path / "plan.json")


def test_missing_slices_stay_missing(medulla, denoiser, small_model, tmp_path):
    lost = write_volume(tmp_path / "a.ome.zarr", medulla[:31:6, :64, :48], (60, 10, 10), missing=[2, 3])
    slices = run(lost, denoiser, tmp_path / "n", by="denoise", samples=1)
    restored = volumes(fill(slices, small_model, tmp_path / "filled", samples=1))[0]
    for real, slice_ in enumerate(volumes(slices)[0]):
        assert np.array_equal(restored[6 * real], slice_) == (real not in (2, 3))


def test_generated_slices_alone_are_measured_beside_interpolation_of_the_denoised_ones(
    medulla, denoised, filled, tmp_path
):
    truth = write_volume(tmp_path / "truth.ome.zarr", medulla[:25, :100, :84], (10, 10, 10))
    found = evaluate(filled.restored, denoised.restored, truth, tmp_path / "found.json")
    assert found["voxels"] == 20 * 100 * 84
    slices = volumes(denoised)[0].astype(np.float64)
    psnr = []
    for z in (z for z in range(25) if z % 6):
        gap, place = divmod(z, 6)
        between = slices[gap] + place / 6 * (slices[gap + 1] - slices[gap])
        psnr.append(10 * np.log10(255**2 / np.mean((np.rint(between) - medulla[z, :100, :84]) ** 2)))
    assert found["methods"]["linear"]["xy"]["psnr"]["mean"] == pytest.approx(np.mean(psnr), abs=0.02)


def test_what_either_model_was_trained_on_is_not_measured_on(
    dataset, denoiser, small_model, medulla, tmp_path
):
    description = json.loads((denoiser / "model.json").read_text()) | {"sources": [raw_file("x")]}
    for name in ("model.safetensors", "model.json"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes((denoiser / name).read_bytes())
    (tmp_path / "model" / "model.json").write_text(json.dumps(description))
    slices = run(dataset, tmp_path / "model", tmp_path / "n", by="denoise", steps=1, samples=1)
    plan = fill(slices, small_model, tmp_path / "filled", steps=1, samples=1)
    sources = [raw_file("x")]
    truth = write_volume(tmp_path / "t.ome.zarr", medulla[:25, :100, :84], (10, 10, 10), sources=sources)
    with pytest.raises(DataError, match="the model was trained on these files"):
        evaluate(plan.restored, slices.restored, truth, tmp_path / "found.json")
