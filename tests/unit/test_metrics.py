"""Metrics against manual calculations, scikit-image and piq."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage import data
from skimage import metrics as oracle
from skimage.filters import gaussian

from emdiffuse.evaluation import metrics


@pytest.fixture(scope="module")
def pair():
    truth = data.camera()[100:292, 90:300]
    noise = np.random.default_rng(0).normal(0, 6, truth.shape)
    return np.clip(gaussian(truth, 1.2, preserve_range=True) + noise, 0, 255).astype(np.uint8), truth


def test_psnr_by_hand():
    # Errors 3, 0, 0, 1: mean square 2.5; 10 log10(255^2 / 2.5) = 44.1514 dB.
    image, truth = np.array([[13, 20], [30, 39]], np.uint8), np.array([[10, 20], [30, 40]], np.uint8)
    assert metrics.psnr(image, truth, 255) == pytest.approx(44.1514, abs=1e-4)
    assert metrics.psnr(truth, truth, 255) == math.inf


def test_psnr_does_not_wrap_around():
    assert metrics.psnr(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), 255) == 0


def test_nrmse_by_hand():
    # Errors 0 and 5, truth 3 and 4: sqrt(25 / 2) / sqrt(25 / 2) = 1.
    assert metrics.nrmse(np.array([[3, 9]]), np.array([[3, 4]])) == 1
    assert metrics.nrmse(np.zeros((1, 2)), np.zeros((1, 2))) == 0
    assert metrics.nrmse(np.ones((1, 2)), np.zeros((1, 2))) == math.inf


def test_agrees_with_scikit_image(pair):
    image, truth = pair
    assert metrics.psnr(image, truth, 255) == pytest.approx(
        oracle.peak_signal_noise_ratio(truth, image, data_range=255), rel=1e-12
    )
    assert metrics.nrmse(image, truth) == pytest.approx(oracle.normalized_root_mse(truth, image), rel=1e-12)
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    mean, full = oracle.structural_similarity(truth, image, full=True, **wang)
    assert metrics.ssim(image, truth, 255) == pytest.approx(mean, abs=1e-6)
    np.testing.assert_allclose(metrics.ssim_map(image, truth, 255), full, atol=5e-4)


def test_ssim_of_constant_planes_by_hand():
    # Without variance only luminance is left: (2*100*120 + 2.55^2) / (100^2 + 120^2 + 2.55^2) = 0.983611.
    value = metrics.ssim(np.full((20, 20), 100), np.full((20, 20), 120), 255)
    assert value == pytest.approx((24000 + 6.5025) / (24400 + 6.5025), abs=1e-6)


def test_ssim_map_takes_planes_along_any_axes(pair):
    image, truth = (np.stack([p[:40, :30], p[40:80, 30:60]]) for p in pair)
    crossed = metrics.ssim_map(np.moveaxis(image, 0, 1), np.moveaxis(truth, 0, 1), 255, axes=(0, 2))
    np.testing.assert_allclose(crossed[:, 1], metrics.ssim_map(image[1], truth[1], 255), atol=1e-6)


def test_ssim_is_defined_on_planes_smaller_than_its_window():
    plane = np.arange(40, dtype=np.uint8).reshape(8, 5)
    assert metrics.ssim(plane, plane, 255) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(192, 210), (191, 209), (192, 192)])
def test_fsim_agrees_with_piq(pair, shape):
    """Single against double precision, and piq's lower median: equal to 2e-4."""
    piq, torch = pytest.importorskip("piq"), pytest.importorskip("torch")
    image, truth = (p[: shape[0], : shape[1]] for p in pair)
    tensors = [torch.from_numpy(p.astype(np.float64))[None, None] for p in (image, truth)]
    expected = float(piq.fsim(*tensors, data_range=255, chromatic=False))
    assert metrics.fsim(image, truth, 255) == pytest.approx(expected, abs=2e-4)
    assert 0.5 < expected < 0.99


def test_fsim_of_large_planes_agrees_with_piq():
    piq, torch = pytest.importorskip("piq"), pytest.importorskip("torch")
    truth = data.camera()
    image = gaussian(truth, 2, preserve_range=True)
    tensors = [torch.from_numpy(p.astype(np.float64))[None, None] for p in (image, truth)]
    expected = float(piq.fsim(*tensors, data_range=255, chromatic=False))
    assert metrics.fsim(image, truth, 255) == pytest.approx(expected, abs=2e-4)


def test_fsim_depends_on_the_data_range_only_through_the_ratio(pair):
    image, truth = pair
    assert metrics.fsim(image, image, 255) == pytest.approx(1, abs=1e-6)
    scaled = metrics.fsim(image.astype(np.uint16) * 257, truth.astype(np.uint16) * 257, 65535)
    assert scaled == pytest.approx(metrics.fsim(image, truth, 255), abs=1e-5)


def test_high_frequency_ratio_of_waves():
    """Above a quarter of the sampling frequency a wave counts by its squared amplitude, below not at all."""
    y, x = np.mgrid[:64, :64]
    fast, slow = np.cos(2 * np.pi * 0.4 * x), 100 * np.cos(2 * np.pi * 0.1 * y)
    assert metrics.high_frequency_power_ratio(0.5 * fast + slow, fast + slow) == pytest.approx(0.25, rel=1e-2)
    assert metrics.high_frequency_power(metrics.spectrum(fast), fast.shape) == pytest.approx(0.5, rel=1e-2)
    assert math.isnan(metrics.high_frequency_power_ratio(fast, np.full((64, 64), 7)))


def test_high_frequency_power_of_white_noise():
    noise = np.random.default_rng(1).normal(0, 3, (256, 256))
    assert metrics.high_frequency_power(metrics.spectrum(noise), noise.shape) == pytest.approx(
        (1 - np.pi / 16) * 9, rel=0.03
    )


@pytest.mark.parametrize("size", [(192, 208), (176, 240)])
def test_ms_ssim_agrees_with_piq(size):
    """On sides divisible by 16, which piq does not pad; its weights sum to 1.0001."""
    piq, torch = pytest.importorskip("piq"), pytest.importorskip("torch")
    truth = data.camera()[: size[0], : size[1]]
    noise = np.random.default_rng(0).normal(0, 10, truth.shape)
    image = np.clip(gaussian(truth, 1.2, preserve_range=True) + noise, 0, 255)
    tensors = [torch.from_numpy(p.astype(np.float64))[None, None] for p in (image, truth)]
    expected = float(piq.multi_scale_ssim(*tensors, data_range=255))
    assert metrics.ms_ssim(image, truth, 255) == pytest.approx(expected, abs=2e-5)
    assert metrics.ms_ssim(truth, truth, 255) == pytest.approx(1)


def test_ms_ssim_of_a_plane_of_one_scale_is_ssim(pair):
    image, truth = (p[:16, :20] for p in pair)
    assert metrics.ms_ssim(image, truth, 255) == pytest.approx(metrics.ssim(image, truth, 255))


def band(shape, cut, seed=0):
    """Return noise without frequencies above a cut-off (1 / voxel), and its complement; variance one."""
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    low = np.sqrt(sum(f**2 for f in axes)) < cut
    transform = np.fft.fftn(np.random.default_rng(seed).normal(size=shape))
    parts = [np.fft.ifftn(transform * mask).real for mask in (low, ~low)]
    return [part / part.std() for part in parts]


def rings(image, truth):
    return metrics.ring_sums(metrics.spectrum(image), metrics.spectrum(truth), truth.shape)


@pytest.mark.parametrize("cut", [0.1, 0.2, 0.35])
@pytest.mark.parametrize("shape", [(128, 160), (48, 64, 64)])
def test_correlation_ends_where_the_common_band_ends(shape, cut):
    """Two images share only the frequencies below the cut-off; found to about one and a half rings."""
    common, own = band(shape, cut)
    other = band(shape, cut, seed=1)[1]
    found = metrics.correlation_resolution(rings(common + other, common + own))
    assert 1 / found == pytest.approx(cut, abs=0.02 if len(shape) == 2 else 0.04)


def test_correlation_of_equal_and_of_constant_images(pair):
    image, truth = pair
    assert metrics.correlation_resolution(rings(truth, truth)) == 2
    assert math.isnan(metrics.correlation_resolution(rings(np.full((64, 64), 3), truth[:64, :64])))
    sums = rings(image, truth)
    assert 2 < metrics.correlation_resolution(sums) == metrics.correlation_resolution(2 * sums) < 20


def test_correlation_resolution_by_hand():
    """Correlation 1 up to ring 9, 0 from ring 10: 1/7 is crossed 6/7 of the way between their centres."""
    sums = np.ones((5, 64))
    sums[0, 10:] = 0
    assert 1 / metrics.correlation_resolution(sums) == pytest.approx((9.5 + 6 / 7) / 128)


@pytest.mark.parametrize("cut", [0.1, 0.2, 0.35])
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_decorrelation_finds_the_end_of_the_band_through_noise(cut, noise):
    image = band((192, 192), cut)[0] + noise * np.random.default_rng(2).normal(size=(192, 192))
    assert 1 / metrics.decorrelation_resolution(rings(image, image)) == pytest.approx(cut, abs=0.012)


def test_white_noise_has_no_decorrelation_resolution():
    noise = np.random.default_rng(0).normal(size=(128, 128))
    assert math.isnan(metrics.decorrelation_resolution(rings(noise, noise)))
