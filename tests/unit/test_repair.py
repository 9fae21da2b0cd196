"""Damaged slices, changed sources, inverted contrast, and independence of threads."""

import logging
import os

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from restoring import run, volumes

from emdiffuse.acquisition import streaming
from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.acquisition.checksums import require_unchanged
from emdiffuse.config import Dataset, Model
from emdiffuse.config.settings import parse
from emdiffuse.patches.gaps import GapSource
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.stores.intensity import from_unit, to_unit
from emdiffuse.stores.volume import open_volume

SIZE = (10.0, 10.0, 10.0)


def tissue(shape=(12, 24, 24)):
    values = np.random.default_rng(0).normal(120, 30, shape)
    return np.clip(values, 1, 254).astype(np.uint8)


def write_slices(folder, values, leave_out=()):
    folder.mkdir()
    for z, plane in enumerate(values):
        if z not in leave_out:
            tifffile.imwrite(folder / f"s{z:03}.tif", plane, photometric="minisblack")
    return str(folder)


def spoilt():
    """Return a volume with a black, a white, a repeated, and a mostly saturated slice."""
    values = tissue()
    values[2] = 0
    values[3] = 255
    values[6] = values[5]
    values[9, :16] = 255
    return values


def test_untrusted_slices_are_refused_by_name(tmp_path):
    source = write_slices(tmp_path / "raw", spoilt())
    with pytest.raises(DataError) as caught:
        acquire(source, SIZE, tmp_path / "a.ome.zarr", "a")
    message = str(caught.value)
    assert "slices without an image (counted from 0): 2 (s002.tif), 3 (s003.tif);" in message
    assert "slices identical to the previous one (counted from 0): 6 (s006.tif);" in message
    assert "slices that are mostly black or white (counted from 0): 9 (s009.tif);" in message
    assert "`repair: true`" in message and "\n" not in message
    assert not (tmp_path / "a.ome.zarr").exists()


def test_a_gap_in_the_numbers_is_refused_or_repaired(tmp_path):
    values = tissue()
    source = write_slices(tmp_path / "raw", values, leave_out=(4, 7, 8))
    with pytest.raises(DataError, match=r"number 4, 7, 8; .*`repair: true`"):
        acquire(source, SIZE, tmp_path / "a.ome.zarr", "a")
    acquire(source, SIZE, tmp_path / "a.ome.zarr", "a", repair=True)
    volume = open_volume(tmp_path / "a.ome.zarr")
    assert volume.facts.missing == (4, 7, 8)
    expected = values.copy()
    expected[[4, 7, 8]] = values[[3, 6, 9]]
    np.testing.assert_array_equal(volume.array[:, :, :], expected)


@pytest.mark.parametrize("form", ["slices", "pages", "zarr"])
def test_repaired_slices_hold_their_neighbour_and_do_not_count(tmp_path, caplog, form):
    values, clean = spoilt(), tissue()
    source = str(tmp_path / "raw.tif")
    if form == "slices":
        source = write_slices(tmp_path / "raw", values)
    elif form == "pages":
        tifffile.imwrite(source, values, photometric="minisblack")
    else:
        source = str(tmp_path / "raw.zarr")
        zarr.save_array(source, values)
    with caplog.at_level(logging.WARNING):
        acquire(source, SIZE, tmp_path / "a.ome.zarr", "a", repair=True)
    assert "marked as missing, to be restored" in caplog.text
    volume = open_volume(tmp_path / "a.ome.zarr")
    assert volume.facts.missing == (2, 3, 6, 9)
    expected = clean.copy()
    expected[[2, 3, 6, 9]] = clean[[1, 4, 5, 8]]
    np.testing.assert_array_equal(volume.array[:, :, :], expected)
    keep_every(volume.path, 3, tmp_path / "thin.ome.zarr", "thin")
    assert open_volume(tmp_path / "thin.ome.zarr").facts.missing == (1, 2, 3)


@settings(max_examples=30, deadline=None)
@given(bad=st.sets(st.integers(0, 11), min_size=1))
def test_any_set_of_blank_slices_is_found(tmp_path_factory, bad):
    folder = tmp_path_factory.mktemp("blank")
    values = tissue((12, 8, 8))
    values[list(bad)] = 0
    tifffile.imwrite(folder / "raw.tif", values, photometric="minisblack")
    good = [z for z in range(12) if z not in bad]
    if len(good) <= 6:  # the median slice is blank: nothing is to be trusted, whatever is said of it
        return
    acquire(str(folder / "raw.tif"), SIZE, folder / "a.ome.zarr", "a", repair=True)
    volume = open_volume(folder / "a.ome.zarr")
    assert volume.facts.missing == tuple(sorted(bad))
    nearest = [min(good, key=lambda g: (abs(g - z), g)) for z in range(12)]
    np.testing.assert_array_equal(volume.array[:, :, :], values[nearest])


def test_images_are_not_slices(tmp_path, caplog):
    source = write_slices(tmp_path / "raw", spoilt())
    with caplog.at_level(logging.WARNING):
        acquire(source, SIZE, tmp_path / "a.ome.zarr", "a", images=True)
    assert "s002.tif: this image is almost uniform" in caplog.text
    assert open_volume(tmp_path / "a.ome.zarr").facts.missing == ()


def test_no_training_gap_meets_a_missing_slice(tmp_path):
    values = tissue((60, 40, 40))
    source = write_slices(tmp_path / "raw", values, leave_out=(20,))
    acquire(source, SIZE, tmp_path / "a.ome.zarr", "a", repair=True)
    patches = {"size": 16, "axes": ["z", "y", "x"]}
    model = Model.model_validate({"task": "vemdiffuse-i", "datasets": ["a"], "factor": 2, "patches": patches})
    gaps = GapSource(tmp_path / "a.ome.zarr", model)
    origins = list(gaps.origins(0))
    assert {origin.axis for origin in origins} == {0, 1, 2}
    assert not any(o.z <= 20 < o.z + gaps.extent(o)[0] for o in origins)
    assert any(o.z > 20 for o in origins) and any(o.z + gaps.extent(o)[0] <= 20 for o in origins)


def test_repaired_slices_are_restored_as_other_gaps_are(tmp_path, small_model, medulla):
    """From raw slices with a gap in their numbers to a volume with the missing slice restored."""
    source = write_slices(tmp_path / "raw", medulla[:7, :64, :64], leave_out=(3,))
    acquire(source, SIZE, tmp_path / "a.ome.zarr", "a", repair=True)
    plan = run(tmp_path / "a.ome.zarr", small_model, tmp_path)
    restored = volumes(plan)[0]
    real = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(restored[real], medulla[:7, :64, :64][real])
    assert not np.array_equal(restored[3], restored[2]) and restored[3].std() > 0


def test_what_is_restored_from_inverted_contrast_has_its_own(tmp_path, small_model, medulla):
    """A model sees the same if both contrast and `invert` are reversed."""
    kept = medulla[:13:6, :64, :64]
    restored = []
    for name, values, invert in (("plain", kept, False), ("turned", 255 - kept, True)):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "raw.tif", values, photometric="minisblack")
        path = tmp_path / name / "a.ome.zarr"
        acquire(str(tmp_path / name / "raw.tif"), (60, 10, 10), path, "a", invert=invert)
        restored.append(volumes(run(path, small_model, tmp_path / name))[0].astype(int))
    plain, turned = restored
    low, high = np.percentile(kept, [0.5, 99.5], method="inverted_cdf")
    inside = (plain > low) & (plain < high)
    assert np.abs(plain + turned - 255)[inside].mean() < 1


def test_what_repair_and_invert_are_for():
    voxel = {"z": 1, "y": 1, "x": 1}
    with pytest.raises(ConfigError, match="`repair` applies only to the slices of a volume"):
        parse(Dataset, {"source": "a", "images": True, "repair": True, "voxel_size": voxel})
    with pytest.raises(ConfigError, match="`invert` follows from the dataset of `keep_every`"):
        parse(Dataset, {"keep_every": {"dataset": "a", "factor": 2}, "invert": True})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_inverted_contrast_comes_back_as_it_was(tmp_path, dtype):
    values = tissue().astype(dtype)
    tifffile.imwrite(tmp_path / "raw.tif", values, photometric="minisblack")
    facts = []
    for invert in (False, True):
        acquire(str(tmp_path / "raw.tif"), SIZE, tmp_path / "a.ome.zarr", "a", invert=invert)
        volume = open_volume(tmp_path / "a.ome.zarr")
        np.testing.assert_array_equal(volume.array[:, :, :], values)
        facts.append(volume.intensity)
    plain, inverted = (intensity.at(range(len(values))) for intensity in facts)
    np.testing.assert_allclose(to_unit(values, inverted), -to_unit(values, plain), atol=1e-6)
    np.testing.assert_allclose(from_unit(to_unit(values, inverted), inverted), values, atol=1e-4)
    keep_every(tmp_path / "a.ome.zarr", 3, tmp_path / "thin.ome.zarr", "thin")
    assert open_volume(tmp_path / "thin.ome.zarr").intensity.invert


@pytest.mark.parametrize("form", ["pages", "slices", "zarr"])
def test_no_number_depends_on_threads_or_on_how_slices_are_read(tmp_path, monkeypatch, form):
    values = tissue((66, 20, 1100)).astype(np.float32) / 7
    source = str(tmp_path / "raw.tif")
    if form == "slices":
        source = write_slices(tmp_path / "raw", values)
    elif form == "pages":
        tifffile.imwrite(source, values, photometric="minisblack")
    else:
        source = str(tmp_path / "raw.zarr")
        zarr.create_array(source, data=values, chunks=(8, 10, 100))
    found = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}.ome.zarr"
        acquire(source, SIZE, out, "a", workers=workers)
        found.append((out / "zarr.json").read_bytes())
        np.testing.assert_array_equal(open_volume(out).array[:, :, :], values)
        monkeypatch.setattr(streaming, "SLAB_MEMORY", 2**20)  # the second time through a scratch file
    assert found[0] == found[1]


def test_nothing_is_done_twice_and_a_changed_source_is_named(tmp_path, caplog):
    source = write_slices(tmp_path / "raw", tissue())
    out = tmp_path / "a.ome.zarr"
    acquire(source, SIZE, out, "a")
    made = (out / "zarr.json").stat().st_mtime_ns
    os.utime(tmp_path / "raw/s003.tif")  # touched, but the same
    with caplog.at_level(logging.INFO):
        acquire(source, SIZE, out, "a")
    assert "nothing to do" in caplog.text
    assert (out / "zarr.json").stat().st_mtime_ns == made
    require_unchanged(out)

    tifffile.imwrite(tmp_path / "raw/s003.tif", tissue((1, 24, 24))[0] // 2, photometric="minisblack")
    with pytest.raises(DataError, match=r"s003\.tif: changed since .*a\.ome\.zarr was made from it"):
        require_unchanged(out)
    with caplog.at_level(logging.INFO):
        acquire(source, SIZE, out, "a")
    assert "made from other data or with other settings; recomputing it" in caplog.text
    require_unchanged(out)

    acquire(source, (20.0, 10.0, 10.0), out, "a")  # another setting
    assert open_volume(out).voxel_size == (20.0, 10.0, 10.0)
    (tmp_path / "raw").rename(tmp_path / "archive")
    require_unchanged(out)


def test_a_store_of_chunks_that_changed(tmp_path):
    source = tmp_path / "raw.zarr"
    array = zarr.create_array(source, data=tissue(), chunks=(4, 8, 8))
    acquire(str(source), SIZE, tmp_path / "a.ome.zarr", "a")
    facts = open_volume(tmp_path / "a.ome.zarr").facts
    assert [entry.path for entry in facts.sources] == [str(source)]
    require_unchanged(tmp_path / "a.ome.zarr")
    array[3, 4, 5] = 0
    with pytest.raises(DataError, match=f"{source}: changed since"):
        require_unchanged(tmp_path / "a.ome.zarr")
