"""Segmented structures on drawings with known answers."""

from __future__ import annotations

import numpy as np

from emdiffuse.evaluation.metrics.structures import overlap, segment


def drawing(noise: float = 0.0) -> np.ndarray:
    """Return a bright plane of 10 nm pixels with a dark line (3 pixels) and a dark disk (radius 14)."""
    y, x = np.mgrid[:128, :128]
    plane = np.full((128, 128), 200.0)
    plane[30:33] = 80
    plane[(y - 85) ** 2 + (x - 64) ** 2 < 14**2] = 80
    return plane + np.random.default_rng(0).normal(0, noise, plane.shape) if noise else plane


def disk(radius: float) -> np.ndarray:
    y, x = np.mgrid[:128, :128]
    return (y - 85) ** 2 + (x - 64) ** 2 < radius**2


def test_a_line_is_a_membrane_and_a_disk_is_a_dark_region():
    for noise in (0, 15):
        found = segment(drawing(noise), 10)
        assert found["membranes"][30:33].mean() > 0.95
        assert found["membranes"][:20].mean() < 0.03
        common, joint = overlap(found["dark"], disk(14))
        assert common / joint > 0.8
        assert not found["dark"][25:40].any(), "a membrane is too thin to be a region"


def test_the_scale_is_in_nanometers():
    """At 100 nm per pixel the disk of 14 pixels is huge; at 2 nm per pixel it is too small to count."""
    assert segment(drawing(), 2)["dark"].sum() == 0
    assert segment(drawing(), 20)["dark"][85, 64]


def test_brightness_and_contrast_change_nothing():
    plain, scaled = segment(drawing(10), 10), segment(0.5 * drawing(10) + 1000, 10)
    for name, mask in plain.items():
        assert (mask != scaled[name]).mean() < 2e-3


def test_a_constant_plane_has_no_structures():
    found = segment(np.full((64, 64), 7, np.uint8), 10)
    assert not found["membranes"].any() and not found["dark"].any()


def test_overlap_by_hand():
    ours, truth = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert overlap(ours, truth) == (1, 3)
