"""Augmentation: geometry moves condition and target alike, and each degradation acts as documented."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from emdiffuse.config import Augmentation
from emdiffuse.training.augmentation import CHOICES, MISSING, Choice, augment, gaussian_blur

ROWS = np.arange(8, dtype=np.float32)


def gap(seed=0):
    """Ten slices with a linear gradient along z, factor 3: linear interpolation is exact."""
    plane = np.random.default_rng(seed).random((1, 8, 8), np.float32)
    ramp = np.arange(10, dtype=np.float32)[:, None, None] / 10 + plane
    target = np.concatenate([ramp[4:6], np.full((1, 8, 8), np.nan, np.float32)])
    return ramp[::3], target, np.array([1 / 3, 2 / 3, np.nan], np.float32)


def image():
    plane = np.random.default_rng(1).random((1, 8, 8), np.float32)
    return plane, plane + 1, np.array([0.5], np.float32)


def times(example, count=200, flips=False, missing=False, **keys):
    """Return what becomes of an example that is drawn many times; what is not wanted happens to none."""
    condition, target, positions = (
        torch.from_numpy(values).expand(count, *values.shape).clone() for values in example
    )
    generator = torch.Generator().manual_seed(0)
    choices = torch.rand((count, CHOICES), generator=generator)
    for wanted, names in (
        (flips, (Choice.FLIP_Z, Choice.FLIP_Y, Choice.FLIP_X)),
        (missing, (Choice.NO_FIRST, Choice.NO_LAST)),
    ):
        choices[:, list(names)] = choices[:, list(names)] if wanted else 0.999
    noise = torch.randn(condition.shape, generator=generator)
    settings = Augmentation(**{"transposition": False, **keys})
    changed = augment(condition, target, positions, settings, choices, lambda: noise)
    return list(zip(*(values.numpy() for values in changed), strict=True))


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ({}, 1),
        ({"flips": True}, 8),  # along z, y and x
        ({"transposition": True}, 2),
        ({"flips": True, "transposition": True}, 16),  # of a square, up and down
    ],
)
def test_geometry_is_the_same_in_condition_and_target(keys, kinds):
    found = set()
    for condition, target, positions in times(gap(), **keys):
        assert condition.shape == (4, 8, 8) and np.isnan(target[2]).all() and np.isnan(positions[2])
        t = positions[:2, None, None]
        np.testing.assert_allclose(target[:2], condition[1] + t * (condition[2] - condition[1]), atol=1e-6)
        found.add(condition[1].tobytes())
    assert len(found) == kinds


def test_blur_is_the_published_gaussian_for_a_share_of_examples():
    condition, target, positions = image()
    blurred = gaussian_filter(condition, (0, 3, 3))
    kept = 0
    for changed, wanted, _ in times((condition, target, positions), blur=0.25):
        same = np.array_equal(changed, condition)
        kept += same
        np.testing.assert_array_equal(wanted, target)
        assert same or np.allclose(changed, blurred, atol=1e-5)
    assert 130 < kept < 170


@pytest.mark.parametrize("shape", [(1, 2, 40, 33), (3, 1, 7, 9)])
def test_blur_agrees_with_scipy(shape):
    images = np.random.default_rng(3).random(shape, np.float32)
    expected = gaussian_filter(images, (0, 0, 1.5, 1.5))
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(images), 1.5), expected, atol=1e-5)


def test_noise_is_at_most_as_strong_as_said():
    flat = np.zeros((1, 64, 64), np.float32)
    strengths = [changed[0].std() for changed in times((flat, flat, image()[2]), noise=0.2)]
    assert 0.18 < max(strengths) < 0.21 and min(strengths) < 0.02 and 0.08 < np.mean(strengths) < 0.12


def test_contrast_and_a_jump_of_brightness_are_undone_by_a_line():
    condition = gap()[0]
    for changed, *_ in times(gap(), contrast=0.2):
        slope, offset = np.polyfit(condition.ravel(), changed.ravel(), 1)
        assert abs(slope - 1) <= 0.2 and abs(offset) <= 0.2001
    jumps = np.array([(changed[0] - condition).mean((1, 2)) for changed in times(gap(), brightness_jump=0.3)])
    assert ((np.abs(jumps) > 1e-4).sum(1) <= 1).all() and 0.28 < np.abs(jumps).max() <= 0.3
    assert set(np.abs(jumps).argmax(1)) == {0, 1, 2, 3}


def test_gain_and_inversion_change_condition_and_target_alike():
    condition, target, _ = image()
    slopes = []
    for known, wanted, _ in times(image(), gain=0.3, inversion=0.25):
        slope, offset = np.polyfit(condition.ravel(), known.ravel(), 1)
        np.testing.assert_allclose(wanted, slope * target + offset, atol=1e-5)
        assert 0.7 <= abs(slope) <= 1.3 and abs(offset) <= 0.1501
        slopes.append(slope)
    assert 30 < sum(slope < 0 for slope in slopes) < 70 and np.std(np.abs(slopes)) > 0.1


def test_an_outer_slice_is_missing_as_often_as_said():
    condition = gap()[0]
    found = times(gap(), 600, missing=True)
    first = [np.array_equal(c[0], c[1]) for c, *_ in found]
    last = [np.array_equal(c[3], c[2]) for c, *_ in found]
    assert all(300 * MISSING < sum(which) < 900 * MISSING for which in (first, last))
    assert not np.array_equal(condition[0], condition[1])


def test_a_setting_changes_nothing_but_what_it_says():
    plain, noisy = times(gap(), flips=True), times(gap(), flips=True, noise=1e-6)
    for one, other in zip(plain, noisy, strict=True):
        np.testing.assert_allclose(other[0], one[0], atol=1e-4)
