"""Interpolation of slices: exact at real slices, correct between them, independent of blocks."""

from __future__ import annotations

import sys
import types
from fractions import Fraction

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emdiffuse.evaluation.baselines import (
    Between,
    denoised,
    interpolate,
    kernel,
    noise_of,
    slice_flow,
    weights_of,
)
from emdiffuse.evaluation.methods import baselines_of
from emdiffuse.restoration.slice_grid import SliceGrid

KINDS = baselines_of("vemdiffuse-i")


def column(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype).reshape(-1, 1, 1)


def whole(slices: np.ndarray, factor: Fraction, kind: str) -> np.ndarray:
    grid = SliceGrid(len(slices), factor)
    return interpolate(slices, grid, range(grid.length), kind)


def test_hand_computed_values():
    slices, factor = column(0, 4, 20, 12), Fraction(4)
    assert whole(slices, factor, "nearest").ravel().tolist() == [0, 0, 0, 4, 4, 4, 4, 20, 20, 20, 20, 12, 12]
    assert whole(slices, factor, "linear").ravel().tolist() == [0, 1, 2, 3, 4, 8, 12, 16, 20, 18, 16, 14, 12]
    # Half way: (-1 * a + 9 * b + 9 * c - 1 * d) / 16; at the ends the outermost slice is repeated.
    cubic = whole(slices, factor, "cubic").ravel()
    assert cubic[[2, 6, 10]].tolist() == [(9 * 4 - 20) / 16, (9 * 24 - 12) / 16, (-4 + 9 * 32 - 12) / 16]


def test_cubic_reproduces_parabolas_inside():
    z = np.arange(6.0)
    values = whole(column(*(z**2 - 3 * z + 1)), Fraction(5), "cubic").ravel()
    fine = np.arange(26) / 5
    np.testing.assert_allclose(values[5:21], (fine**2 - 3 * fine + 1)[5:21], atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flow"])
def test_weights_add_up_to_one(kind):
    assert [sum(kernel(kind, t)) for t in (0, 0.125, 0.5, 0.875, 1)] == [1] * 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [Fraction(6), Fraction(2), Fraction(5, 2), Fraction(31, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_exact_at_real_slices(kind, factor, dtype):
    real = (np.random.default_rng(0).random((7, 3, 4)) * 250).astype(dtype)
    grid = SliceGrid(7, factor)
    result = whole(real, factor, kind)
    assert result.shape == (grid.length, 3, 4)
    assert result.dtype == real.dtype
    at = {z: grid.real(z) for z in range(grid.length) if grid.real(z) is not None}
    assert len(at) >= 2
    for z, index in at.items():
        np.testing.assert_array_equal(result[z], real[index])


THICK = [(Fraction(6), 1), (Fraction(5), Fraction(3, 5)), (Fraction(45, 8), Fraction(1, 2))]


@pytest.mark.parametrize("factor, thickness", THICK)
def test_the_spline_averages_to_the_thick_slices(factor, thickness):
    grid = SliceGrid(9, factor, thickness=Fraction(thickness))
    assert {*baselines_of("vemdiffuse-i", grid.thick)} == {*KINDS, "spline"}
    real = np.random.default_rng(0).random((9, 3, 4)).astype(np.float32)
    result = interpolate(real, grid, range(grid.length), "spline")
    for z, image in enumerate(real):
        first, weights = grid.integrated(z)
        average = np.tensordot(weights, result[first : first + len(weights)], 1)
        np.testing.assert_allclose(average, image, atol=2e-3)  # the spline of each gap sees 12 slices


@pytest.mark.parametrize("factor, thickness", THICK)
def test_thick_slices_of_a_ramp_are_undone(factor, thickness):
    """A linear gradient along z is preserved: by the spline to the ends, by all between centres."""
    grid = SliceGrid(9, factor, thickness=Fraction(thickness))
    z = np.arange(grid.length)
    windows = [grid.integrated(i) for i in range(9)]
    real = column(*(weights @ z[first : first + len(weights)] for first, weights in windows))
    spline = interpolate(real, grid, range(grid.length), "spline").ravel()
    np.testing.assert_allclose(spline, z, atol=1e-3)
    inner = (z >= real[0, 0, 0]) & (z <= real[-1, 0, 0])
    for kind in ("linear", "flow"):
        values = interpolate(real, grid, range(grid.length), kind).ravel()
        np.testing.assert_allclose(values[inner], z[inner], atol=0.4)  # voxels are whole
        assert set(values[~inner]) <= {real[0, 0, 0], real[-1, 0, 0]}


def test_the_spline_of_a_part_is_that_of_the_whole():
    grid = SliceGrid(30, Fraction(4), thickness=Fraction(1))
    first, weights = weights_of(grid, range(50, 62), "spline")
    whole_first, all_weights = weights_of(grid, range(grid.length), "spline")
    assert whole_first == 0 and weights.shape[1] < 16
    np.testing.assert_array_equal(weights, all_weights[50:62, first : first + weights.shape[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_cut_from_the_whole(kind):
    real = np.random.default_rng(1).integers(0, 256, (5, 6, 7), np.uint8)
    result, grid = whole(real, Fraction(7, 2), kind), SliceGrid(5, Fraction(7, 2))
    for begin in range(len(result)):
        part = interpolate(
            real, grid, range(begin, min(begin + 3, len(result))), kind, (slice(1, 4), slice(2, 7))
        )
        np.testing.assert_array_equal(part, result[begin : begin + 3, 1:4, 2:7])


def test_reads_only_the_slices_it_needs():
    reads = []

    class Spy:
        shape, dtype = (1000, 4, 4), np.dtype(np.uint8)

        def __getitem__(self, box):
            reads.append(box[0])
            return np.zeros((box[0].stop - box[0].start, 4, 4), np.uint8)

    interpolate(Spy(), SliceGrid(1000, Fraction(6)), range(601, 606), "cubic")
    assert reads == [slice(99, 103)]


def test_overshoot_is_clipped_and_halves_round_to_even():
    slices = column(0, 0, 255, 255, dtype="uint8")
    assert whole(slices, Fraction(2), "cubic").ravel().tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert whole(slices, Fraction(2), "linear").ravel().tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_two_slices_suffice():
    assert whole(column(10, 20), Fraction(2), "cubic").ravel().tolist() == [10, 15, 20]


def texture(shift: float, size: int = 96) -> np.ndarray:
    """Return smooth random blobs moved along x, float32 in about [0, 250]."""
    noise = np.random.default_rng(3).normal(size=(size, size))
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)
    spectrum = np.fft.fft2(noise) * np.exp(-200 * (fx**2 + fy**2)) * np.exp(-2j * np.pi * fx * shift)
    values = np.fft.ifft2(spectrum).real
    return (125 + 40 * values / values.std()).astype(np.float32)


def test_flow_points_from_a_slice_to_the_next():
    flow = slice_flow(texture(0), texture(3))[16:-16, 16:-16]
    assert np.median(flow[..., 0]) == pytest.approx(3, abs=0.2)
    assert np.median(flow[..., 1]) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("t", [0.25, 0.5, 0.75])
def test_along_the_flow_what_moves_is_found_where_it_was(t):
    first, second = texture(0), texture(4)
    made, truth = Between(first, second).at(t)[16:-16, 16:-16], texture(4 * t)[16:-16, 16:-16]
    plain = ((1 - t) * first + t * second)[16:-16, 16:-16]
    assert np.mean((made - truth) ** 2) < np.mean((plain - truth) ** 2) / 10


def test_noise_of_white_and_of_smoothed_noise():
    white = np.random.default_rng(0).normal(0, 7, (256, 256))
    assert noise_of(white) == pytest.approx(7, rel=0.05)
    assert noise_of(gaussian_filter(white, 0.7)) == pytest.approx(gaussian_filter(white, 0.7).std(), rel=0.4)


@pytest.mark.parametrize("kind", ["gaussian", "nlm"])
def test_denoising_comes_nearer_to_the_truth(kind):
    truth = np.kron(np.indices((4, 4)).sum(axis=0) % 2 * 100.0, np.ones((24, 24)))
    noisy = truth + np.random.default_rng(0).normal(0, 15, truth.shape)
    found = denoised(noisy, kind)
    assert np.mean((found - truth) ** 2) < np.mean((noisy - truth) ** 2) * (0.45 if kind == "nlm" else 1)
    np.testing.assert_allclose(denoised(np.full((20, 20), 7.0), kind), 7, atol=1e-3)


def test_bm3d_is_told_the_noise(monkeypatch):
    """The library, if installed, gets the plane and its noise."""
    told = []
    library = types.ModuleType("bm3d")
    library.bm3d = lambda plane, noise: told.append(noise) or plane / 2
    monkeypatch.setitem(sys.modules, "bm3d", library)
    noisy = np.random.default_rng(0).normal(100, 15, (64, 64)).astype(np.float32)
    np.testing.assert_allclose(denoised(noisy, "bm3d"), noisy / 2)
    assert told == [noise_of(noisy)]
