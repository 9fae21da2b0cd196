"""Coverage, sparsification and flagged regions on data with known errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import INTENSITY, write_volume

from emdiffuse.evaluation.comparison import compare
from emdiffuse.evaluation.trust import assess, sparsification


@pytest.mark.parametrize("right", [True, False])
def test_an_oracle_has_no_area_and_a_liar_much(right):
    error = np.abs(np.random.default_rng(0).normal(size=5000))
    found = sparsification(error, error**3 if right else -error)
    curve = [row["uncertainty"] for row in found["sparsification"]]
    assert curve[0] == pytest.approx(1)
    if right:
        assert found["ause"] == 0
        assert all(b < a for a, b in itertools.pairwise(curve))
    else:
        assert found["ause"] > found["ause_random"] > 0.4
        assert all(b > a for a, b in itertools.pairwise(curve))


def test_sparsification_by_hand():
    # Errors 4, 2, 0, 0 with uncertainties 1, 4, 3, 2: after removing half, 4 and 0 remain.
    found = sparsification(np.array([4, 2, 0, 0]), np.array([1, 4, 3, 2]))
    half = min(found["sparsification"], key=lambda row: abs(row["share"] - 0.5))
    assert half["uncertainty"] == pytest.approx(np.sqrt(8) / np.sqrt(5))
    assert half["oracle"] == 0


def test_no_error_is_no_division_by_zero():
    assert sparsification(np.zeros(10), np.ones(10))["ause"] == 0


def test_a_restoration_without_uncertainty_is_not_assessed(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
    paths = [write_volume(tmp_path / n, image, (5, 5, 5), task="emdiffuse-n") for n in ("a", "b", "c")]
    assert assess(compare(*paths)) is None


def assessed(folder, calibration, right_half=1.0):
    """Assess images with Gaussian errors as stated, `right_half` times as large in the right half."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(60, 190, (2, 128, 128)).astype(np.float32)
    deviation = np.where(np.arange(128) < 64, 3.0, 6.0) * np.ones_like(truth)
    error = rng.normal(size=truth.shape) * deviation * np.where(np.arange(128) < 64, 1, right_half)
    paths = [
        write_volume(folder / name, values.astype(np.float32), (5, 5, 5), **facts)
        for name, values, facts in (
            ("restored", truth + error, {"task": "emdiffuse-n", "calibration": calibration}),
            ("input", truth, {}),
            ("truth", truth, {}),
        )
    ]
    write_volume(
        folder / "restored/uncertainty", deviation.astype(np.float32), (5, 5, 5), intensity=INTENSITY
    )
    found = assess(compare(*paths))
    assert found is not None
    return found


CALIBRATION = {"scale": 1.6449, "alpha": 0.1, "levels": [{"alpha": 0.5, "scale": 0.6745}]}
CALIBRATION |= {"sampler": {"name": "dpm++", "steps": 2}, "weights": "w"}


def test_gaussian_errors_are_covered_as_stated(tmp_path):
    found = assessed(tmp_path, CALIBRATION)
    for row in found["diagram"]:
        assert row["gaussian"] == pytest.approx(row["nominal"], abs=0.015)
    assert found["diagram"][0]["calibrated"] == pytest.approx(0.5, abs=0.015)
    assert "calibrated" not in found["diagram"][1]
    coverage = {row["group"]: row for row in found["coverage"]}
    assert coverage["all voxels"]["mean"] == pytest.approx(0.9, abs=0.01)
    assert coverage["all voxels"]["voxels"] == 2 * 128 * 128
    assert {"at structure edges", "away from edges"} < coverage.keys()
    assert all(row["low"] <= row["mean"] <= row["high"] for row in coverage.values())
    assert found["width"] == pytest.approx(2 * 1.6449 * 4.5, rel=0.01)
    assert found["doubtful"] == []
    assert 0 < found["ause"] < 0.6


def test_where_errors_are_larger_than_stated_is_said(tmp_path):
    """Twice the stated error in the right half: only voxels of large uncertainty are reported."""
    found = assessed(tmp_path, CALIBRATION, right_half=2)
    assert found["doubtful"][0] == "all voxels"
    named = [group for group in found["doubtful"] if group.startswith("uncertainty")]
    assert named == ["uncertainty 3 to 6"] or all(group.split()[-1] == "6" for group in named)


def test_gaussian_intervals_are_judged_without_a_calibration(tmp_path):
    found = assessed(tmp_path, None)
    assert "coverage" not in found
    assert found["diagram"][-1]["gaussian"] == pytest.approx(0.95, abs=0.01)
