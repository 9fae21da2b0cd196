"""Acquisition keeps every voxel, measures intensities exactly, and leaves nothing half-made behind."""

import errno
import hashlib
import os
import tracemalloc

import numpy as np
import pytest
import tifffile
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from emdiffuse.acquisition import acquire as acquisition
from emdiffuse.acquisition import streaming
from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.stores.intensity import from_unit, to_unit
from emdiffuse.stores.volume import open_volume

SIZE = (40.0, 10.0, 10.0)
DEMO = ROOT / "resources/demo/medulla_test.tif"


def acquired(folder, values, name="sample", **options):
    """Acquire an array through a TIFF, and open it."""
    tifffile.imwrite(folder / "raw.tif", values, photometric="minisblack", metadata={"axes": "ZYX"})
    acquire(str(folder / "raw.tif"), SIZE, folder / f"{name}.ome.zarr", name, **options)
    return open_volume(folder / f"{name}.ome.zarr")


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def random_volume(dtype, shape=(5, 40, 33)):
    values = np.random.default_rng(0).normal(100, 30, shape)
    return np.clip(values, 0, 255).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_voxels_type_and_voxel_size_are_kept(tmp_path, dtype):
    values = random_volume(dtype)
    volume = acquired(tmp_path, values)
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array[:, :, :], values)
    assert volume.voxel_size == SIZE
    assert (volume.facts["stage"], volume.facts["dataset"]) == ("acquire", "sample")
    assert left_in(tmp_path) == ["raw.tif", "sample.ome.zarr"]
    assert left_in(tmp_path / "sample.ome.zarr") == ["0", "zarr.json"]


def test_every_source_file_has_its_checksum(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for z, values in enumerate(random_volume("uint8")):
        tifffile.imwrite(folder / f"{z}.tif", values, photometric="minisblack")
    acquire(str(folder), SIZE, tmp_path / "a.ome.zarr", "a")
    sources = open_volume(tmp_path / "a.ome.zarr").facts["sources"]
    assert [source["path"] for source in sources] == [str(folder / f"{z}.tif") for z in range(5)]
    content = (folder / "3.tif").read_bytes()
    assert (sources[3]["bytes"], sources[3]["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


@settings(max_examples=25, deadline=None)
@given(
    values=st.sampled_from(["uint8", "uint16", "int16", "float32"]).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            (3, 9, 7),
            elements=st.floats(-(2.0**99), 2.0**99, width=32) if dtype == "float32" else None,
        )
    )
)
def test_intensities_are_exact(tmp_path_factory, values):
    if values.min() == values.max():
        return
    wide = values.astype(np.float64)
    found = acquired(tmp_path_factory.mktemp("exact"), values, images=True).facts["intensity"]
    low, high = np.percentile(values, [0.5, 99.5], method="inverted_cdf")
    if low == high:
        low, high = values.min(), values.max()
    assert (found["minimum"], found["maximum"]) == (values.min(), values.max())
    assert (found["low"], found["high"]) == (low, high)
    assert found["mean"] == pytest.approx(wide.mean(), abs=1e-6 * np.abs(wide).max())
    assert found["standard_deviation"] == pytest.approx(wide.std(), rel=1e-5)


def test_percentiles_of_many_slabs_and_of_floats_that_hardly_differ(tmp_path):
    """130 slices are three shards; values around 10000 differ by less than a leading-16-bit bin is wide."""
    values = (10000 + np.random.default_rng(0).normal(0, 0.01, (130, 8, 9))).astype(np.float32)
    found = acquired(tmp_path, values).facts["intensity"]
    low, high = np.percentile(values, [0.5, 99.5], method="inverted_cdf")
    assert (found["low"], found["high"]) == (low, high)
    assert found["standard_deviation"] == pytest.approx(values.astype(float).std(), rel=1e-6)


def test_low_and_high_become_minus_one_and_one_and_nothing_is_clipped():
    intensity = {"low": 50.0, "high": 150.0}
    unit = to_unit(np.array([0, 50, 100, 150, 250], np.uint8), intensity)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [-2, -1, 0, 1, 3], atol=1e-6)
    values = np.arange(65536, dtype=np.uint16)
    back = from_unit(to_unit(values, {"low": 300.0, "high": 41000.0}), {"low": 300.0, "high": 41000.0})
    np.testing.assert_array_equal(np.rint(back), values)


def test_a_slab_that_is_too_large_for_memory_lies_in_a_scratch_file(tmp_path, monkeypatch):
    values = random_volume("uint16", (66, 64, 2100))  # a slab of 17 MB, five shards wide
    tifffile.imwrite(tmp_path / "raw.tif", values, photometric="minisblack")
    monkeypatch.setattr(streaming, "SLAB_MEMORY", 2**20)
    tracemalloc.start()
    acquire(str(tmp_path / "raw.tif"), SIZE, tmp_path / "a.ome.zarr", "a", workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(open_volume(tmp_path / "a.ome.zarr").array[:, :, :], values)
    assert left_in(tmp_path / "a.ome.zarr") == ["0", "zarr.json"]
    assert peak < 14e6


def test_a_bad_source_leaves_what_was_there(tmp_path):
    before = acquired(tmp_path, random_volume("uint8"))
    values = random_volume("float32", (70, 8, 8))
    values[69, 1, 1] = np.nan  # found only when the last slab is read
    tifffile.imwrite(tmp_path / "bad.tif", values, photometric="minisblack")
    for out in ("sample.ome.zarr", "new.ome.zarr"):
        with pytest.raises(DataError, match="slice 69"):
            acquire(str(tmp_path / "bad.tif"), SIZE, tmp_path / out, "sample")
    assert left_in(tmp_path) == ["bad.tif", "raw.tif", "sample.ome.zarr"]
    assert open_volume(tmp_path / "sample.ome.zarr").facts == before.facts


def test_a_volume_without_an_image_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"raw\.tif: every voxel is 7"):
        acquired(tmp_path, np.full((3, 8, 8), 7, np.uint8))
    assert left_in(tmp_path) == ["raw.tif"]


@pytest.mark.parametrize("scratch", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, scratch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if scratch:
        monkeypatch.setattr(streaming, "SLAB_MEMORY", 1)
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(acquisition, "write_image", full)
    with pytest.raises(OSError, match="No space left"):
        acquired(tmp_path, random_volume("uint8", (5, 40, 600)))
    assert left_in(tmp_path) == ["raw.tif"]


@pytest.mark.parametrize(("depth", "factor", "kept"), [(61, 6, 11), (60, 6, 10), (7, 6, 2), (150, 2, 75)])
def test_keeping_every_nth_slice(tmp_path, depth, factor, kept):
    values = random_volume("uint8", (depth, 20, 30))
    origin = acquired(tmp_path, values)
    keep_every(origin.path, factor, tmp_path / "thin.ome.zarr", "thin")
    thin = open_volume(tmp_path / "thin.ome.zarr")
    assert thin.array.shape == (kept, 20, 30)
    assert (kept - 1) * factor < depth  # the truth reaches at least as far
    np.testing.assert_array_equal(thin.array[:, :, :], values[::factor])
    assert thin.voxel_size == (SIZE[0] * factor, *SIZE[1:])
    facts = thin.facts
    assert (facts["stage"], facts["dataset"]) == ("acquire", "thin")
    assert (facts["derived_from"], facts["factor"], facts["sources"]) == (
        "sample",
        factor,
        [{**source, "kept_every": factor} for source in origin.facts["sources"]],
    )
    assert facts["intensity"]["mean"] == pytest.approx(values[::factor].mean())


def test_keeping_fewer_than_two_slices_is_an_error(tmp_path):
    origin = acquired(tmp_path, random_volume("uint8", (6, 8, 8)))
    with pytest.raises(DataError, match="of 6 slices only one is kept by a factor of 6"):
        keep_every(origin.path, 6, tmp_path / "thin.ome.zarr", "thin")
    with pytest.raises(StoreError, match="nowhere"):
        keep_every(tmp_path / "nowhere.ome.zarr", 6, tmp_path / "thin.ome.zarr", "thin")
    assert left_in(tmp_path) == ["raw.tif", "sample.ome.zarr"]


def test_the_real_demo_volume(tmp_path, medulla):
    acquire(str(DEMO), (10, 10, 10), tmp_path / "test.ome.zarr", "test")
    volume = open_volume(tmp_path / "test.ome.zarr")
    np.testing.assert_array_equal(volume.array[:, :, :], medulla)
    low, high = np.percentile(medulla, [0.5, 99.5], method="inverted_cdf")
    assert (volume.facts["intensity"]["low"], volume.facts["intensity"]["high"]) == (low, high) == (65, 197)
    assert volume.facts["missing"] == []
