"""Acquisition keeps every voxel, and leaves no incomplete store."""

import errno
import hashlib
import os
import tracemalloc

import numpy as np
import pytest
import tifffile
from helpers import ROOT

from emdiffuse.acquisition import acquire as acquisition
from emdiffuse.acquisition import streaming
from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.runtime.errors import AccessError, DataError, StoreError
from emdiffuse.stores.volume import open_volume

SIZE = (40.0, 10.0, 10.0)
DEMO = ROOT / "resources/demo/medulla_test.tif"


def acquired(folder, values, name="sample", **options):
    """Acquire an array through a TIFF, and open it."""
    tifffile.imwrite(folder / "raw.tif", values, photometric="minisblack", metadata={"axes": "ZYX"})
    acquire(str(folder / "raw.tif"), SIZE, folder / f"{name}.ome.zarr", name, **options)
    return open_volume(folder / f"{name}.ome.zarr")


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".zarr.json.kept")


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
    assert (volume.facts.stage, volume.facts.dataset) == ("acquire", "sample")
    assert left_in(tmp_path) == ["raw.tif", "sample.ome.zarr"]
    assert left_in(tmp_path / "sample.ome.zarr") == [".emdiffuse", "0", "zarr.json"]


def test_every_source_file_has_its_checksum(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for z, values in enumerate(random_volume("uint8")):
        tifffile.imwrite(folder / f"{z}.tif", values, photometric="minisblack")
    acquire(str(folder), SIZE, tmp_path / "a.ome.zarr", "a")
    sources = open_volume(tmp_path / "a.ome.zarr").facts.sources
    assert [source.path for source in sources] == [str(folder / f"{z}.tif") for z in range(5)]
    content = (folder / "3.tif").read_bytes()
    assert (sources[3].bytes, sources[3].sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_slab_that_is_too_large_for_memory_lies_in_a_scratch_file(tmp_path, monkeypatch):
    values = random_volume("uint16", (66, 64, 2100))  # a slab of 17 MB, five shards wide
    tifffile.imwrite(tmp_path / "raw.tif", values, photometric="minisblack")
    monkeypatch.setattr(streaming, "SLAB_MEMORY", 2**20)
    tracemalloc.start()
    acquire(str(tmp_path / "raw.tif"), SIZE, tmp_path / "a.ome.zarr", "a", workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(open_volume(tmp_path / "a.ome.zarr").array[:, :, :], values)
    assert left_in(tmp_path / "a.ome.zarr") == [".emdiffuse", "0", "zarr.json"]
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
    with pytest.raises(AccessError, match=r"the disk at .* is full"):
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
    assert (facts.stage, facts.dataset) == ("acquire", "thin")
    assert (facts.derived_from, facts.factor, facts.sources) == (
        "sample",
        factor,
        tuple(source.model_copy(update={"kept_every": factor}) for source in origin.facts.sources),
    )


def test_keeping_fewer_than_two_slices_is_an_error(tmp_path):
    origin = acquired(tmp_path, random_volume("uint8", (6, 8, 8)))
    with pytest.raises(DataError, match="a factor of 6 keeps only one of 6 slices"):
        keep_every(origin.path, 6, tmp_path / "thin.ome.zarr", "thin")
    with pytest.raises(StoreError, match="nowhere"):
        keep_every(tmp_path / "nowhere.ome.zarr", 6, tmp_path / "thin.ome.zarr", "thin")
    assert left_in(tmp_path) == ["raw.tif", "sample.ome.zarr"]


def test_the_real_demo_volume(tmp_path, medulla):
    acquire(str(DEMO), (10, 10, 10), tmp_path / "test.ome.zarr", "test")
    volume = open_volume(tmp_path / "test.ome.zarr")
    np.testing.assert_array_equal(volume.array[:, :, :], medulla)
    low, high = np.percentile(medulla, [0.5, 99.5], method="inverted_cdf")
    assert (volume.intensity.low, volume.intensity.high) == pytest.approx((low, high), abs=1.5)
    assert volume.facts.missing == ()
