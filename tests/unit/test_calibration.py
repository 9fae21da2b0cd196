"""Calibration on synthetic data with known answers: the bound, the scale, the guarantee, and errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers import raw_file, write_volume
from scipy.stats import binom, norm

from emdiffuse.config import Calibration, Sampler
from emdiffuse.evaluation.calibration import (
    SCALES,
    calibrate,
    hoeffding_bentkus,
    losses_of,
    scale_of,
    units_needed,
)
from emdiffuse.evaluation.second_scan import gauss_factor
from emdiffuse.restoration.intervals import interval, read_calibration
from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.stores.provenance import SourceFile

SETTINGS = Calibration(dataset="held_out", block=32)
SAMPLER = {"name": "dpm++", "steps": 4, "samples": 4, "seed": 0}


def test_the_bound_by_hand():
    # Without loss, Hoeffding's form is (1 - alpha)^n = 0.9^22; Bentkus's is e times that.
    assert hoeffding_bentkus(0, 0.1, 22) == pytest.approx(0.9**22)
    # One loss of 0.5 in 10 units, alpha 0.5: h(0.05, 0.5) = 0.05 log 0.1 + 0.95 log 1.9 = 0.494633.
    hoeffding = math.exp(-10 * (0.05 * math.log(0.1) + 0.95 * math.log(1.9)))
    bentkus = math.e * (1 + 10) / 2**10  # P(Binomial(10, 1/2) <= ceil(0.5) = 1)
    assert hoeffding_bentkus(0.05, 0.5, 10) == pytest.approx(min(hoeffding, bentkus))
    assert min(hoeffding, bentkus) == pytest.approx(0.00711, abs=1e-5)
    # Whole losses are those of a coin: ceil(100 * 0.07) is 7, though 100 * 0.07 is a little above it.
    assert hoeffding_bentkus(0.07, 0.3, 100) <= math.e * binom.cdf(7, 100, 0.3) * (1 + 1e-9)
    assert hoeffding_bentkus(0.1, 0.1, 50) == pytest.approx(1), "a risk of alpha rules nothing out"


def test_the_least_number_of_units():
    assert units_needed(0.1, 0.1) == 22
    nothing_lost = np.zeros((22, len(SCALES)))
    assert scale_of(nothing_lost, 0.1, 0.1) == SCALES[0]
    assert scale_of(nothing_lost[:21], 0.1, 0.1) is None


def test_losses_are_shares_outside():
    losses = losses_of(np.array([0.0, 0.5, 2.0, 50.0]))
    assert losses[SCALES < 0.5][-1] == 0.75
    assert losses[SCALES >= 50][0] == 0
    assert (np.diff(losses) <= 0).all()


def units(rng: np.random.Generator, count: int, understated: float) -> np.ndarray:
    """Return losses of units of heteroscedastic Gaussian errors with understated deviations."""
    rows = []
    for _ in range(count):
        deviation = rng.uniform(0.5, 4) * rng.uniform(0.5, 2, 100)  # units differ, and voxels within them
        error = rng.normal(0, deviation * rng.uniform(0.8, 1.25))
        rows.append(losses_of(np.abs(error) / (deviation / understated)))
    return np.stack(rows)


def test_the_scale_of_many_units_is_that_of_the_gaussian():
    """Errors are twice the stated: 90 % are within 2 x 1.645 stated deviations, up to units' spread."""
    rng = np.random.default_rng(0)
    losses = np.stack([losses_of(2 * np.abs(rng.normal(size=500))) for _ in range(4000)])
    assert scale_of(losses, 0.1, 0.1) == pytest.approx(2 * norm.ppf(0.95), rel=0.04)


def test_the_guarantee_holds_over_repeated_calibrations():
    """In at least 90 % of calibrations the true risk is at most alpha, and over a tenth of it."""
    rng = np.random.default_rng(1)
    truth = units(rng, 1000, 1.7).mean(axis=0)
    risks = []
    for _ in range(40):
        scale = scale_of(units(rng, 60, 1.7), 0.1, 0.1)
        risks.append(truth[np.searchsorted(SCALES, scale)])
    assert np.mean(np.array(risks) <= 0.1) >= 0.9
    assert 0.01 < np.mean(risks) < 0.09


def test_bounds_are_rounded_outwards_and_clipped():
    restored, uncertainty = np.array([2, 100, 250], np.uint8), np.array([0.0, 1.3, 10.0], np.float32)
    lower, upper = interval(restored, uncertainty, 1.5, 2.0)
    assert (lower.tolist(), upper.tolist()) == ([0, 97, 235], [5, 103, 255])
    assert lower.dtype == np.uint8
    lower, upper = interval(restored.astype(np.float32), uncertainty, 1.5, 0.1)
    np.testing.assert_allclose(upper - lower, [0.3, 3.9, 30], rtol=1e-5)


def held_out(folder, count=3, side=128, **facts):
    """Write images with Gaussian errors three times as large as their uncertainty."""
    rng = np.random.default_rng(2)
    truth = np.full((count, side, side), 128.0)
    deviation = 1 + 4 * (np.indices(truth.shape)[2] // 16 % 2)
    restored = truth + rng.normal(size=truth.shape) * 3 * deviation
    known = {"task": "emdiffuse-n", "model": "m", "weights": "w", "sampler": SAMPLER, "dataset": "held_out"}
    path = write_volume(folder / "restored", np.rint(restored).astype(np.uint8), (5, 5, 5), **known | facts)
    write_volume(path / "uncertainty", deviation.astype(np.float32), (5, 5, 5))
    given = write_volume(folder / "input", truth.astype(np.uint8), (5, 5, 5), sources=[raw_file("a")])
    return path, given, write_volume(folder / "truth", truth.astype(np.uint8), (5, 5, 5))


def test_a_calibration_finds_the_scale_and_counts_blocks(tmp_path):
    found = calibrate(*held_out(tmp_path), tmp_path / "c.json", SETTINGS)
    assert found.as_json() == json.loads((tmp_path / "c.json").read_text())
    assert (found.units, found.unit) == (3 * 4 * 4, "block of 32 x 32 pixels")
    exact = 3 * norm.ppf(0.95)
    assert exact < found.scale < 1.5 * exact
    assert found.risk < 0.1
    scales = [row.scale for row in found.levels]
    assert scales == sorted(scales), "the fewer may lie outside, the wider"
    assert found.levels[4].scale == found.scale


def test_where_there_are_images_enough_they_are_the_units(tmp_path):
    found = calibrate(*held_out(tmp_path, count=22, side=32), tmp_path / "c.json", SETTINGS)
    assert (found.units, found.unit) == (22, "image")


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        (
            {},
            {"training_sources": [raw_file("a")]},
            "the model was trained on these files; use others",
        ),
        ({"block": 64}, {}, "12 blocks are too few .* alpha 0.1 and delta 0.1 need 22"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(tmp_path, settings, facts, words):
    paths = held_out(tmp_path, **facts)
    with pytest.raises(DataError, match=words) as caught:
        calibrate(*paths, tmp_path / "c.json", SETTINGS.model_copy(update=settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c.json").exists()


def test_without_samples_there_is_nothing_to_calibrate(tmp_path):
    paths = held_out(tmp_path)
    (paths[0] / "uncertainty/zarr.json").unlink()
    with pytest.raises(DataError, match=r"no uncertainty to calibrate; restore with `samples`"):
        calibrate(*paths, tmp_path / "c.json", SETTINGS)


def test_a_calibration_is_of_one_model_sampler_and_other_data(tmp_path):
    path, own = tmp_path / "c.json", Sampler.model_validate(SAMPLER)
    same, other = (SourceFile.model_validate(raw_file(name)) for name in ("b", "c"))
    with pytest.raises(StoreError, match="run the stage `calibrate`"):
        read_calibration(path, "w", own, [])
    calibrate(*held_out(tmp_path, sources=[raw_file("b")]), path, SETTINGS)
    assert read_calibration(path, "w", own.model_copy(update={"seed": 5}), [other]).scale > 0
    for weights, sampler in (("other", own), ("w", own.model_copy(update={"steps": 2}))):
        with pytest.raises(StoreError, match="other weights or another sampler"):
            read_calibration(path, weights, sampler, [])
    with pytest.raises(DataError, match="computed on the data being restored"):
        read_calibration(path, "w", own, [same])
    path.write_text("{}")
    with pytest.raises(StoreError, match=r"c\.json: scale: this key is missing"):
        read_calibration(path, "w", own, [])


def scanned_twice(folder, noise, seed=2, shape=(3, 128, 128), heavy=False):
    """Write images restored from a first noisy scan, the second scan, and the clean images.

    Uncertainties differ from pixel to pixel, and the errors are twice as large, Gaussian or heavy-tailed.
    """
    rng = np.random.default_rng(seed)
    clean = 128 + 60 * np.sin(np.indices(shape)[2] / 9)
    deviation = 2 + 2 * (np.indices(shape)[1] // 16 % 2)
    strength = noise * (0.5 + clean / 256)  # the noise follows the intensity
    error = rng.laplace(size=shape) / np.sqrt(2) if heavy else rng.normal(size=shape)
    first, second = (clean + rng.normal(size=shape) * strength for _ in range(2))
    known = {"task": "emdiffuse-n", "model": "m", "weights": "w", "sampler": SAMPLER, "dataset": "held_out"}
    restored = clean + 2 * deviation * error
    path = write_volume(folder / "restored", restored.astype(np.float32), (5, 5, 5), **known)
    write_volume(path / "uncertainty", deviation.astype(np.float32), (5, 5, 5))
    given, again, truth = (
        write_volume(folder / name, values.astype(np.float32), (5, 5, 5))
        for name, values in (("first", first), ("second", second), ("clean", clean))
    )
    inside = np.abs(restored - clean) / deviation
    return path, given, again, truth, inside


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("noise", [2.0, 30.0])
def test_a_second_noisy_scan_stands_in_for_the_truth(tmp_path, noise, heavy):
    """The coverage holds for the clean images even if the noise is many times the error."""
    path, given, again, truth, ratios = scanned_twice(tmp_path, noise, heavy=heavy)
    found = calibrate(path, given, again, tmp_path / "c.json", SETTINGS, second_scan=True)
    assert found.noise == pytest.approx(noise * np.sqrt(1 + (60 / 256) ** 2 / 2), rel=0.05)
    assert (ratios <= found.scale).mean() >= 0.9
    for row in found.levels:
        assert (ratios <= row.scale).mean() >= 1 - row.alpha
    by_truth = calibrate(path, given, truth, tmp_path / "d.json", SETTINGS)
    assert by_truth.noise is None and found.made.hash != by_truth.made.hash
    assert found.scale < (1.5 if noise < 10 else 2.5) * by_truth.scale, "no wider than it has to be"
    naive = calibrate(path, given, again, tmp_path / "e.json", SETTINGS)
    assert noise < 10 or naive.scale > 2 * found.scale, "noise taken for error widens them more"


def test_the_promise_of_second_scans_is_kept_over_repeated_calibrations(tmp_path):
    """In at least 90 % of small calibrations, with noise ten times the error, 90 % of the clean voxels are
    inside."""
    kept = []
    for seed in range(10):
        path, given, again, _, ratios = scanned_twice(tmp_path, 40.0, seed, (2, 128, 128))
        found = calibrate(path, given, again, tmp_path / "c.json", SETTINGS, second_scan=True)
        kept.append((ratios <= found.scale).mean() >= 0.9)
    assert np.mean(kept) >= 0.9


def test_the_inequality_of_gauss():
    assert gauss_factor(0.1) == pytest.approx(2.108, abs=1e-3)
    assert gauss_factor(1 / 3) == pytest.approx(2 / np.sqrt(3)), "where its two forms meet"
    # for a uniform error the second form holds: a fraction 1 - x / sqrt(3) exceeds x root mean squares
    assert gauss_factor(0.5) == pytest.approx(np.sqrt(3) / 2)
