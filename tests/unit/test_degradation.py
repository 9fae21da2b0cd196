"""Degraded images: the effects of blur, binning and noise, and the resulting stores."""

import numpy as np
import pytest
from helpers import INTENSITY, raw_file, write_volume

from emdiffuse.acquisition.degradation import degrade, degraded
from emdiffuse.config import Degrade
from emdiffuse.stores.intensity import Intensity
from emdiffuse.stores.pairs import open_pairs
from emdiffuse.stores.volume import open_volume

SCALING = Intensity.model_validate(INTENSITY).at()
LOW, SPAN = INTENSITY["low"], INTENSITY["high"] - INTENSITY["low"]


def settings(**keys):
    return Degrade.model_validate({"dataset": "a", **keys})


def test_a_binned_pixel_is_the_mean_of_four():
    image = np.arange(20, dtype=np.float32).reshape(4, 5)
    np.testing.assert_array_equal(degraded(image, settings(bin=2), SCALING, 0), [[3, 5], [13, 15]])


@pytest.mark.parametrize("signal", [0.25, 1.0])
def test_noise_has_the_variance_that_was_asked_for(signal):
    """The variance of Poisson noise is signal / electrons, in units of the intensity range."""
    image = np.full((256, 256), LOW + SPAN * signal, np.float32)
    noisy = degraded(image, settings(noise={"electrons": 50, "gaussian": 0.1}), SCALING, 0)
    assert noisy.mean() == pytest.approx(image.mean(), abs=SPAN * 0.003)
    assert noisy.std() / SPAN == pytest.approx(np.sqrt(signal / 50 + 0.01), rel=0.02)


def test_noise_may_be_correlated_along_the_fast_axis_and_lines_differ():
    image = np.full((256, 256), LOW + SPAN / 2, np.float32)
    noise = {"electrons": 50, "gaussian": 0.1, "correlation": 0.5}
    noisy = degraded(image, settings(noise=noise), SCALING, 0) - image
    assert noisy.std() / SPAN == pytest.approx(np.sqrt(0.5 / 50 + 0.01), rel=0.03)
    lags = [(noisy[1:] * noisy[:-1]).mean(), (noisy[:, 1:] * noisy[:, :-1]).mean()] / noisy.var()
    np.testing.assert_allclose(lags, [0, 0.5], atol=0.03)
    lines = degraded(image, settings(noise={"lines": 0.1}), SCALING, 0) - image
    assert lines.std(1).max() < 1e-3 and lines.mean(1).std() / SPAN == pytest.approx(0.1, rel=0.2)


def test_a_range_is_drawn_from_for_every_slice():
    image = np.full((64, 64), LOW + SPAN / 2, np.float32)
    ranges = settings(noise={"gaussian": [0.05, 0.2]})
    levels = [(degraded(image, ranges, SCALING, z) - image).std() / SPAN for z in range(100)]
    assert 0.045 < min(levels) < 0.06 and 0.19 < max(levels) < 0.21
    assert np.mean(levels) == pytest.approx(0.125, abs=0.02)


def test_noise_follows_from_seed_and_slice(medulla):
    noise = {"electrons": 20, "gaussian": 0.05}
    one = degraded(medulla[0], settings(noise=noise), SCALING, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, degraded(medulla[0], settings(noise=noise), SCALING, 3))
    for other, number in ((settings(noise=noise), 4), (settings(noise=noise, seed=1), 3)):
        assert not np.array_equal(one, degraded(medulla[0], other, SCALING, number))


def test_pairs_are_made_of_every_nth_slice(medulla, tmp_path):
    volume = write_volume(
        tmp_path / "a.ome.zarr", medulla[:7, :65, :64], (10, 10, 10), sources=[raw_file("x")]
    )
    chosen = settings(every=3, bin=2, noise={"gaussian": 0.05})
    degrade(volume, chosen, tmp_path / "p.ome.zarr", "p", images=False)
    pairs = open_pairs(tmp_path / "p.ome.zarr")
    assert (
        pairs.scale == 2
        and [source.path for source in pairs.facts.sources] == ["x.tif"]
        and len(pairs.fields) == 3
    )
    for field, z in zip(pairs.fields, (0, 3, 6), strict=True):
        moving, fixed = (pairs.image(field, role) for role in ("moving", "fixed"))
        assert moving.voxel_size == (10, 20, 20) and fixed.voxel_size == (10, 10, 10)
        np.testing.assert_array_equal(fixed.array[:, :, :][0], medulla[z, :64, :64])
        expected = degraded(medulla[z, :64, :64], chosen, SCALING, z)
        np.testing.assert_array_equal(moving.array[:, :, :][0], expected)


def test_images_to_restore_are_the_degraded_slices_alone(medulla, tmp_path):
    volume = write_volume(tmp_path / "a.ome.zarr", medulla[:4, :64, :64], (10, 10, 10))
    chosen = settings(bin=2, noise={"electrons": 30})
    degrade(volume, chosen, tmp_path / "i.ome.zarr", "i", images=True)
    images = open_volume(tmp_path / "i.ome.zarr")
    assert images.facts.kind == "images" and images.voxel_size == (10, 20, 20)
    expected = np.stack([degraded(medulla[z, :64, :64], chosen, SCALING, z) for z in range(4)])
    np.testing.assert_array_equal(images.array[:, :, :], expected)
