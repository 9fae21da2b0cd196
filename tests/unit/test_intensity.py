"""Intensity ranges: each slice's own, whatever the padding; and back to the user's values."""

import logging

import numpy as np
import pytest
import tifffile
from helpers import write_volume
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError
from restoring import image_model, run, volumes

from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.acquisition.degradation import degrade
from emdiffuse.acquisition.statistics import Statistics, measure, smoothed
from emdiffuse.config import Degrade, Model
from emdiffuse.config.reading import Reading
from emdiffuse.patches.gaps import GapSource
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.fill import RUN, fill
from emdiffuse.stores.intensity import BEARABLE, Intensity, from_unit, shown, to_unit
from emdiffuse.stores.pairs import open_pairs
from emdiffuse.stores.volume import open_volume

SIZE = (10.0, 10.0, 10.0)


def measured(values, **options):
    """Return the intensity facts of a volume, or of images."""
    statistics = Statistics(values.dtype)
    everything = (slice(0, len(values)), slice(0, values.shape[1]), slice(0, values.shape[2]))
    statistics.add(measure(values, everything, values.shape))
    return statistics.intensity("a", **options)


def ranges(values, **options):
    """Return low and high of each slice, (2, N)."""
    scaling = measured(values, **options).at(range(len(values)))
    return np.stack([scaling.low.ravel(), scaling.high.ravel()])


def seen(values, **options):
    """Return each slice as the network sees it."""
    return shown(values, measured(values, **options).at(range(len(values))))


def drifting(values, gains, offsets):
    gains, offsets = (np.asarray(v, np.float64)[:, None, None] for v in (gains, offsets))
    return (values * gains + offsets).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(
    values=st.sampled_from(["uint8", "uint16", "int16", "float32"]).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            (3, 9, 7),
            elements=st.floats(-(2.0**99), 2.0**99, width=32) if dtype == "float32" else None,
        )
    )
)
def test_an_image_has_the_range_of_its_own_pixels(values):
    if values.min() == values.max():
        return
    found = measured(values, images=True)
    scaling = found.at(range(3))
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    for z, image in enumerate(values):
        low, high = np.percentile(image, [0.5, 99.5], method="inverted_cdf")
        if low < high:
            bounds = [scaling.low[z, 0, 0], scaling.high[z, 0, 0]]  # a rounding of the span is no error
            np.testing.assert_allclose(bounds, [low, high], 1e-8, 1e-40 + 1e-12 * (float(high) - float(low)))
        elif image.min() < image.max():
            assert (scaling.low[z, 0, 0], scaling.high[z, 0, 0]) == pytest.approx((image.min(), image.max()))
    assert (scaling.low < scaling.high).all()


def test_floats_that_hardly_differ_are_scaled_by_their_own_range():
    values = (10000 + np.random.default_rng(0).normal(0, 0.01, (5, 80, 90))).astype(np.float32)
    assert seen(values).std() == pytest.approx(2 / 5.15, rel=0.02)


def test_low_and_high_become_minus_one_and_one_and_nothing_is_clipped():
    unit = to_unit(np.array([0, 50, 100, 150, 250], np.uint8), Intensity(low=50, high=150).at())
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [-2, -1, 0, 1, 3], atol=1e-6)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_intensities_come_back(dtype, invert):
    limits = np.iinfo(dtype)
    values = np.arange(limits.min, limits.max + 1).astype(dtype).reshape(2, 16, -1)
    intensity = Intensity(low=1, high=2, lows=(3, 100), highs=(90, 30000), invert=invert)
    scaling = intensity.at(range(2))
    np.testing.assert_array_equal(np.rint(from_unit(to_unit(values, scaling), scaling)), values)
    for z in range(2):
        np.testing.assert_array_equal(to_unit(values[z], intensity.at(z)), to_unit(values, scaling)[z])


def test_what_lies_between_slices_is_scaled_between_them():
    intensity = Intensity(low=10, high=20, lows=(0, 12), highs=(100, 160)).stretched(6)
    scaling = intensity.at(range(8))
    np.testing.assert_allclose(scaling.low.ravel(), [0, 2, 4, 6, 8, 10, 12, 12])
    np.testing.assert_allclose(scaling.high.ravel(), [100, 110, 120, 130, 140, 150, 160, 160])
    assert Intensity.model_validate(intensity.as_facts()) == intensity


@pytest.mark.parametrize(
    "facts",
    [{}, {"low": 3, "high": 3}, {"low": 0, "high": float("nan")}, {"low": 0, "high": 1, "lows": (1,)}],
)
def test_what_is_no_range_is_refused(facts):
    with pytest.raises(ValidationError):
        Intensity.model_validate(facts)


def test_a_volume_without_an_image_is_refused():
    with pytest.raises(DataError, match="every voxel is 7"):
        measured(np.full((3, 8, 8), 7, np.uint8))


PADDINGS = {
    "zeros": lambda a: np.pad(a, ((0, 0), (64, 64), (64, 64))),
    "white on one side": lambda a: np.pad(a, ((0, 0), (0, 0), (0, 200)), constant_values=255),
    "a grey of the tissue": lambda a: np.pad(a, ((0, 0), (40, 0), (0, 0)), constant_values=120),
    "turned": lambda a: np.stack([np.where(np.add.outer(*map(np.arange, p.shape)) < 150, 0, p) for p in a]),
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("images", [False, True])
def test_padding_does_not_count(medulla, padding, images):
    values = medulla[:7]
    padded = PADDINGS[padding](values).astype(np.uint8)
    lows, highs = ranges(values, images=images)
    assert ranges(padded, images=images) == pytest.approx(
        np.stack([lows, highs]), abs=0.02 * (highs - lows).min()
    )


def test_padding_that_is_cut_by_shards_does_not_count(medulla, tmp_path):
    """A strip of 8 columns is in a separate shard."""
    padded = np.pad(np.tile(medulla[:3], (1, 3, 3))[:, :520, :500], ((0, 0), (0, 0), (0, 20)))
    tifffile.imwrite(tmp_path / "a.tif", padded, photometric="minisblack")
    acquire(str(tmp_path / "a.tif"), SIZE, tmp_path / "a.ome.zarr", "a")
    found = open_volume(tmp_path / "a.ome.zarr").intensity
    assert found.at(range(3)).low.min() > 50


@pytest.mark.parametrize("spike", [np.inf, -np.inf, np.nan, np.finfo(np.float32).max, -1e30])
def test_a_spike_does_not_count_and_is_not_shown(medulla, spike):
    values = medulla[:5].astype(np.float32)
    spoilt = values.copy()
    spoilt[2, 50, 50:53] = spike
    spoilt[4, 0, 0] = spike
    np.testing.assert_allclose(ranges(spoilt), ranges(values), rtol=0.01)
    clean, dirty = seen(values), seen(spoilt)
    assert np.abs(dirty).max() <= BEARABLE
    assert np.abs(dirty - clean).max() < 1
    assert (dirty != clean).sum() < 10 or np.abs(dirty - clean).mean() < 0.01
    assert measured(spoilt).as_facts()  # JSON without NaN or infinity


def test_a_region_without_numbers_is_shown_as_the_middle(medulla):
    values = medulla[:2].astype(np.float32)
    values[:, :40, :40] = np.nan
    unit = seen(values)
    assert (unit[:, 5:35, 5:35] == 0).all() and np.isfinite(unit).all()


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.uint8, (24, 40), elements=st.integers(0, 1)),
    st.integers(0, 23), st.integers(0, 39), st.integers(1, 24), st.integers(1, 40),
)  # fmt: skip
def test_fill_are_the_runs_of_equal_pixels(values, y, x, height, width):
    values[y : y + height, x : x + width] = 7
    expected = np.zeros(values.shape, bool)
    for rows, mark in ((values, expected), (values.T, expected.T)):
        for row, marked in zip(rows, mark, strict=True):
            for start in range(len(row) - RUN + 1):
                if len(set(row[start : start + RUN].tolist())) == 1:
                    marked[start : start + RUN] = True
    np.testing.assert_array_equal(fill(values), expected)


@pytest.mark.parametrize("value", [0, 255])
def test_the_edge_of_padding_is_not_shown_as_structure(medulla, value):
    """In nearby padding, a network sees a continuation of the tissue."""
    values = np.pad(medulla[:1], ((0, 0), (40, 40), (40, 40)), constant_values=value)
    unit = seen(values)[0]
    steps = np.abs(np.diff(unit[:, 60:160], axis=0)).mean(1)
    assert steps[39] < 1.5 * steps[41:220].mean()
    nothing = np.full((1, 40, 40), value, np.uint8)
    assert np.isfinite(shown(nothing, Intensity(low=60, high=200).at([0]))).all()


def test_unlike_images_look_alike(medulla):
    """An image at three detector settings is the same to a network."""
    image = medulla[0].astype(np.float64)
    stack = np.stack([image * 4 + 2000, image * 60 + 30000, image * 12 + 9000]).astype(np.uint16)
    unit = seen(stack, images=True)
    np.testing.assert_allclose(unit[1:], unit[:-1], atol=0.01)
    np.testing.assert_allclose(unit[:1], seen(stack[:1], images=True), atol=1e-6)


DRIFTS = {
    "steady": lambda n: (np.linspace(1, 3, n), np.linspace(0, 300, n)),
    "falling": lambda n: (0.5 ** (np.arange(n) / n), np.zeros(n)),
    "waves": lambda n: (1 + 0.4 * np.sin(np.arange(n) / 6), 60 * np.cos(np.arange(n) / 9)),
    "a jump": lambda n: (np.where(np.arange(n) < n // 3, 1, 2), np.where(np.arange(n) < n // 3, 0, -90)),
    "every slice": lambda n: tuple(np.random.default_rng(0).uniform(a, b, n) for a, b in ((1, 2), (0, 90))),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("every", [1, 6])
def test_a_drift_is_taken_out(medulla, drift, every):
    values = medulla[::every].astype(np.float32)
    unlike = seen(drifting(values, *DRIFTS[drift](len(values))))
    off = unlike - seen(values)
    # with one range for the whole volume, some slices would be off by 1 or more
    assert np.abs(off.mean((1, 2))).max() < 0.06
    assert np.sqrt((off**2).mean()) < 0.03


def test_a_change_of_the_tissue_is_not_taken_out(medulla):
    """If half of a slice becomes empty resin, the other half is seen as before."""
    values = medulla.copy()
    values[20:40, :, :90] = np.random.default_rng(0).normal(185, 5, (20, 184, 90))
    assert np.abs(values[20:40].mean() - medulla[20:40].mean()) > 0.1 * np.ptp(ranges(medulla)[:, 0])
    assert np.abs(seen(values) - seen(medulla))[:, :, 90:].max() < 0.12


def test_few_pixels_jitter_less_than_their_percentiles(medulla):
    small = medulla[:, :40, :40]
    own = np.percentile(small, [0.5, 99.5], axis=(1, 2))
    assert np.diff(ranges(small), 2).std() < 0.5 * np.diff(own, 2).std()


def test_ranges_are_averaged_but_neither_drift_nor_jump_is():
    ramp = np.stack([np.arange(30.0), 100 + 3 * np.arange(30.0)])
    np.testing.assert_allclose(smoothed(ramp), ramp)
    jump = np.where(np.arange(30) < 11, 0.0, 50.0) + np.array([[0.0], [100.0]])
    np.testing.assert_allclose(smoothed(jump), jump, atol=0.1)
    jitter = np.array([[0.0], [100.0]]) + np.random.default_rng(0).normal(0, 1, (2, 200))
    assert smoothed(jitter)[:, 8:-8].std(1).max() < 0.45


def test_slices_that_show_little_or_are_missing_are_scaled_as_their_neighbours(medulla, caplog):
    values = medulla[:9].copy()
    values[4] = 200 + values[4] // 40  # empty resin
    with caplog.at_level(logging.WARNING):
        lows = ranges(values)[0]
    assert "slices 4 (counted from 0) use little of the intensity range" in caplog.text
    assert lows.max() < 80 and lows.min() > 50
    values[4] = 255 - medulla[4] // 2
    lows = ranges(values, missing=[4])[0]
    assert lows[4] == pytest.approx((lows[3] + lows[5]) / 2, abs=0.5)


def test_few_grey_levels_are_warned_of(medulla, caplog):
    with caplog.at_level(logging.WARNING):
        measured(medulla[:3] // 16)
    assert "slices 0, 1, 2 (counted from 0) use little of the intensity range" in caplog.text


def test_slices_that_were_left_out_do_not_tell(medulla, tmp_path):
    """A thinned volume has the ranges of its own slices, as if acquired that way."""
    values = drifting(medulla[:31], *DRIFTS["every slice"](31)).astype(np.uint16)
    for name, stack in (("all", values), ("kept", values[::6])):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
        acquire(str(tmp_path / f"{name}.tif"), SIZE, tmp_path / f"{name}.ome.zarr", name, invert=True)
    keep_every(tmp_path / "all.ome.zarr", 6, tmp_path / "thin.ome.zarr", "thin")
    found = [open_volume(tmp_path / f"{name}.ome.zarr").intensity for name in ("kept", "thin")]
    assert found[0] == found[1]


def test_many_slices_are_measured_in_little_memory():
    """Part of every slice at a time, in order of shards."""
    statistics = Statistics(np.dtype(np.uint8))
    values = np.random.default_rng(0).integers(0, 255, (2, 64, 64), np.uint8)
    for z in range(0, 400, 2):
        for x in (0, 32):
            box = (slice(z, z + 2), slice(0, 64), slice(x, x + 32))
            statistics.add(measure(values[:, :, x : x + 32], box, (400, 64, 64)))
        assert len(statistics._open) <= 2
    assert len(statistics.slices) == 400


def bordered(medulla, depth, value, dtype):
    """Tissue with padding above and, across shards, beside it."""
    values = np.tile(medulla[:depth], (1, 1, 4))[:, :80, :560].astype(dtype)
    values[:, :30] = value
    values[:, :, 500:] = value
    return values


@pytest.mark.parametrize(
    ("value", "dtype"), [(0, np.uint8), (255, np.uint8), (-30000, np.int16), (np.nan, np.float32)]
)
@pytest.mark.parametrize("kind", ["gaps", "images"])
def test_what_shows_nothing_comes_back_as_it_was(medulla, small_model, tmp_path, kind, value, dtype):
    """The values of padding do not affect the restored tissue beside it."""
    images = kind == "images"
    model = image_model(tmp_path / "m") if images else small_model
    values = bordered(medulla, 2, value, dtype)
    tifffile.imwrite(tmp_path / "raw.tif", values, photometric="minisblack")
    voxel = (10, 10, 10) if images else (40, 10, 10)
    reading = Reading(nan="mask") if dtype == np.float32 else None
    acquire(str(tmp_path / "raw.tif"), voxel, tmp_path / "a.ome.zarr", "a", images=images, reading=reading)
    plan = run(tmp_path / "a.ome.zarr", model, tmp_path, tile=128)
    restored, uncertainty = volumes(plan)
    nothing = np.zeros(values.shape[1:], bool)
    nothing[:30], nothing[:, 500:] = True, True
    assert len(restored) == (2 if images else 5)
    for plane, spread in zip(restored, uncertainty, strict=True):
        np.testing.assert_array_equal(plane[nothing], np.full(nothing.sum(), value, dtype))
        assert (spread[nothing] == 0).all() and np.isfinite(plane[~nothing]).all()
    generated = restored if images else restored[1:4]
    assert not any(np.array_equal(plane[~nothing], values[0][~nothing]) for plane in generated)


def test_a_data_bar_is_neither_measured_nor_learned_from_and_stays(medulla, small_model, tmp_path):
    values = medulla[:25, :100, :84].copy()
    values[:, 80:] = np.random.default_rng(0).choice([0, 255], (1, 20, 84))  # letters
    path = write_volume(tmp_path / "a.ome.zarr", values, SIZE, kind="volume", valid=[0, 80, 0, 84])
    keep_every(path, 6, tmp_path / "thin.ome.zarr", "thin")
    thin = open_volume(tmp_path / "thin.ome.zarr")
    expected = measured(values[::6, :80])
    assert thin.intensity == expected and thin.valid == (slice(0, 80), slice(0, 84))
    restored = volumes(run(thin.path, small_model, tmp_path))[0]
    np.testing.assert_array_equal(restored[:, 80:], np.broadcast_to(values[0, 80:], (25, 20, 84)))
    settings = Degrade.model_validate({"dataset": "a", "bin": 2, "every": 12})
    degrade(path, settings, tmp_path / "pairs.ome.zarr", "p", images=False)
    pairs = open_pairs(tmp_path / "pairs.ome.zarr")
    assert pairs.image(pairs.fields[0], "fixed").array.shape == (1, 80, 84)
    degrade(path, settings, tmp_path / "images.ome.zarr", "i", images=True)
    images = open_volume(tmp_path / "images.ome.zarr")
    assert images.array.shape == (3, 50, 42) and images.valid == (slice(0, 40), slice(0, 42))
    patches = {"size": 16, "axes": ["z", "y"], "validation": 0.2}
    model = {"task": "vemdiffuse-i", "datasets": ["a"], "factor": 2, "patches": patches}
    source = GapSource(path, Model.model_validate(model))
    assert 60 < max(origin.y + source.extent(origin)[1] for origin in source.origins(0)) <= 80
