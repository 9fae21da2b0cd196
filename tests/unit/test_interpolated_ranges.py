"""Ranges between slices follow waves of brightness, and names of roles take precedence over numbers."""

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator

from emdiffuse.acquisition.layouts import find_pairs
from emdiffuse.enhance.watch import output_name
from emdiffuse.stores.intensity import interpolated


@pytest.mark.parametrize("count", [3, 4, 7, 20])
def test_ranges_are_interpolated_as_scipy_does(count):
    random = np.random.default_rng(count)
    low = np.cumsum(random.normal(size=count))
    ranges, places = np.stack([low, low + 50]), np.linspace(0, count - 1, 57)
    known = [Akima1DInterpolator(np.arange(count), ends, method="makima")(places) for ends in ranges]
    np.testing.assert_allclose(interpolated(ranges, places), known, atol=1e-10)


def test_waves_are_followed_and_no_range_turns_over():
    at, fine = np.arange(0, 37, 6), np.arange(37)
    wave = [np.stack([100 * np.cos(z / 9), 500 + 200 * np.sin(z / 6)]) for z in (at, fine)]
    straight = np.stack([np.interp(fine, at, ends) for ends in wave[0]])
    error, before = (np.abs(found - wave[1]).mean() for found in (interpolated(wave[0], fine / 6), straight))
    assert error < before / 2
    strange = np.array([[0.0, 90, 0, 0, 95, 0], [1.0, 100, 1, 100, 96, 1]])
    low, high = interpolated(strange, np.linspace(-1, 6, 200))
    assert (low < high).all()


def test_files_that_name_their_role_are_no_series(tmp_path):
    for number in range(3):
        for role in ("noisy", "clean"):
            (tmp_path / f"{role}_{number}.tif").touch()
    names = {(pair.moving.name, pair.fixed.name) for pair in find_pairs(tmp_path).pairs}
    assert names == {(f"noisy_{n}.tif", f"clean_{n}.tif") for n in range(3)}


def test_no_two_images_of_a_watched_folder_share_an_output():
    names = ["a.tif", "a.png", "a.png.tif", "a.png.tif.tif", "A.PNG.TIF", "b.mrc", "b.mrc.tif", "c.d.tif"]
    assert len({output_name(name) for name in names}) == len(names)
    assert output_name("c.d.tif") == "c.d.tif" and output_name("a.tif") == "a.tif"
