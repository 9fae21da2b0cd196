"""MRC, HDF5, Zarr, N5 and precomputed: read box by box with their voxel size, or one sentence of error."""

import json

import h5py
import mrcfile
import numpy as np
import pytest
import tensorstore as ts
import zarr
from serving import served_folder

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.config.reading import Reading
from emdiffuse.config.sources import parse_source
from emdiffuse.readers import open_source, source_files
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.stores.volume import open_volume

VOLUME = np.random.default_rng(0).integers(0, 255, (7, 20, 30)).astype(np.uint8)
SIZE = (40.0, 4.0, 4.0)


def error_of(source):
    """Open and read a faulty source, and return the error as one sentence."""
    with pytest.raises(DataError) as caught:
        opened = open_source(str(source))
        opened.read(0, opened.shape[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mrc(folder, values=VOLUME, angstrom=400.0):
    with mrcfile.new(folder / "a.mrc", values) as file:
        file.voxel_size = (angstrom / 10, angstrom / 10, angstrom)
        if values.ndim == 3:
            file.set_volume()
    return folder / "a.mrc"


def hdf5(folder, values=VOLUME, inside="volumes/raw", **options):
    with h5py.File(folder / "a.h5", "a") as file:
        dataset = file.create_dataset(inside, data=values, **options)
        dataset.attrs["element_size_um"] = [0.04, 0.004, 0.004]
    return f"{folder}/a.h5:/{inside}"


def ome_zarr(folder, values=VOLUME, version=3, axes="zyx"):
    """Write an image of two levels, with voxels of 40 x 4 x 4 nm, in OME-Zarr 0.5 or 0.4."""
    scale = {"z": 0.04, "y": 0.004, "x": 0.004}
    image = {
        "axes": [
            {"name": a, "type": "space", "unit": "micrometer"} if a in scale else {"name": a} for a in axes
        ],
        "datasets": [
            {
                "path": f"s{level}",
                "coordinateTransformations": [{"type": "scale", "scale": [scale.get(a, 1.0) for a in axes]}],
            }
            for level in range(2)
        ],
    }
    attributes = (
        {"ome": {"version": "0.5", "multiscales": [image]}} if version == 3 else {"multiscales": [image]}
    )
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=version, attributes=attributes)
    for level, array in enumerate((values, values[..., ::2, ::2])):
        group.create_array(f"s{level}", data=array, chunks=(*(1,) * (values.ndim - 3), 4, 8, 8))
    return folder / "a.zarr"


def n5(folder, values=VOLUME, path="a.n5/s0", **attributes):
    metadata = {
        "dimensions": values.shape[::-1],
        "blockSize": (8,) * values.ndim,
        "dataType": values.dtype.name,
        "compression": {"type": "gzip"},
        **attributes,
    }
    kvstore = {"driver": "file", "path": f"{folder}/{path}/"}
    store = ts.open({"driver": "n5", "kvstore": kvstore, "metadata": metadata}, create=True).result()
    store[...] = values.T
    return folder / "a.n5"


def precomputed(folder, values=VOLUME, channels=1):
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/seen/"},
        "multiscale_metadata": {"type": "image", "data_type": values.dtype.name, "num_channels": channels},
        "scale_metadata": {
            "size": values.shape[::-1],
            "resolution": SIZE[::-1],
            "chunk_size": [8, 8, 8],
            "encoding": "raw",
            "voxel_offset": [3, 0, 100],
        },
    }
    store = ts.open(spec, create=True).result()
    for channel in range(channels):
        store[..., channel] = values.T + channel
    return folder / "seen"


def n5_with_size(folder, values=VOLUME):
    return n5(folder, values, resolution=[4, 4, 40], units=["nm", "nm", "nm"])


def ome_zarr_2(folder, values=VOLUME):
    return ome_zarr(folder, values, version=2)


def ome_zarr_czyx(folder, values=VOLUME):
    return ome_zarr(folder, values[None, None], axes="tczyx")


def chunked_hdf5(folder, values=VOLUME):
    return hdf5(folder, values, chunks=(2, 5, 5), compression="gzip")


WRITERS = [mrc, hdf5, chunked_hdf5, ome_zarr, ome_zarr_2, ome_zarr_czyx, n5_with_size, precomputed]


@pytest.mark.parametrize("write", WRITERS)
def test_a_volume_is_read_box_by_box_and_tells_its_voxel_size(tmp_path, write):
    source = open_source(str(write(tmp_path)))
    assert (source.shape, source.missing) == (VOLUME.shape, ())
    assert source.dtype == (np.uint16 if write is mrc else np.uint8)  # MRC has no such bytes
    assert source.voxel_size == pytest.approx(SIZE)
    np.testing.assert_array_equal(source.read(0, 7), VOLUME)
    np.testing.assert_array_equal(source.read(2, 5, slice(3, 17), slice(10, 30)), VOLUME[2:5, 3:17, 10:])
    assert "slice 3" in source.where(3)
    with pytest.raises(IndexError):
        source.read(5, 8)


@pytest.mark.parametrize("write", [mrc, hdf5, ome_zarr, n5, precomputed])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_types(tmp_path, write, dtype):
    if (write, dtype) == (precomputed, "uint16"):
        dtype = "int16"
    values = VOLUME.astype(dtype) * 3 - 5
    source = open_source(str(write(tmp_path, values)))
    assert source.dtype == dtype and source.dtype.isnative
    np.testing.assert_array_equal(source.read(1, 7), values[1:])


def test_bytes_that_imod_wrote_are_unsigned(tmp_path):
    file = mrc(tmp_path, VOLUME.view(np.int8))
    np.testing.assert_array_equal(open_source(str(file)).read(0, 7), VOLUME.view(np.int8).astype(np.int16))
    with file.open("r+b") as opened:
        opened.seek(152)
        opened.write(np.array([1146047817, 0], "<i4").tobytes())
    np.testing.assert_array_equal(open_source(str(file)).read(0, 7), VOLUME)


def test_an_mrc_file_of_big_endian_numbers_and_an_unknown_voxel_size(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(VOLUME.astype(">i2"))
        file.set_volume()
    source = open_source(str(tmp_path / "a.mrc"))
    assert source.voxel_size is None and source.dtype.isnative
    np.testing.assert_array_equal(source.read(3, 6), VOLUME[3:6])


@pytest.fixture
def address(tmp_path):
    """Serve a folder on this machine."""
    with served_folder(tmp_path) as address:
        yield address


@pytest.mark.parametrize("write", [ome_zarr, ome_zarr_2, n5_with_size, precomputed])
def test_a_volume_at_an_address(tmp_path, address, write):
    place = f"{address}/{write(tmp_path).name}"
    source = open_source(place)
    assert (source.shape, source.files) == (VOLUME.shape, [])
    assert source.voxel_size == pytest.approx(SIZE)
    np.testing.assert_array_equal(source.read(2, 7, slice(5, 9)), VOLUME[2:, 5:9])
    assert source_files(place) == []
    acquire(place, None, tmp_path / "out.ome.zarr", "out")
    volume = open_volume(tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(volume.array[:, :, :], VOLUME)
    assert volume.voxel_size == pytest.approx(SIZE)
    for wrong in (f"{address}/nowhere", f"{address}/nowhere.zarr", f"zarr://{address}/nowhere"):
        assert wrong in error_of(wrong)


def test_an_address_where_nobody_answers():
    assert "check the path and the network" in error_of("http://127.0.0.1:9/seen")


def test_arrays_within_a_store(tmp_path):
    place = ome_zarr(tmp_path)
    finest, coarser = open_source(f"{place}/s0"), open_source(f"{place}/s1")
    assert finest.voxel_size == pytest.approx(SIZE)
    assert coarser.shape == (7, 10, 15)
    zarr.save_array(tmp_path / "plain.zarr", VOLUME[None])
    plain = open_source(str(tmp_path / "plain.zarr"))
    assert (plain.shape, plain.voxel_size) == (VOLUME.shape, None)
    n5(tmp_path, path="a.n5/raw")
    assert open_source(f"{tmp_path}/a.n5/raw").shape == VOLUME.shape
    assert open_source(f"{tmp_path}/a.n5").shape == VOLUME.shape  # there is but one
    hdf5(tmp_path, inside="one")
    assert open_source(f"{tmp_path}/a.h5").shape == VOLUME.shape
    hdf5(tmp_path, inside="two")
    assert f"{tmp_path}/a.h5:/one, {tmp_path}/a.h5:/two" in error_of(tmp_path / "a.h5")
    assert "no array '/three' in it; it contains" in error_of(f"{tmp_path}/a.h5:/three")


def test_the_only_folder_of_a_format_needs_no_ending(tmp_path):
    ome_zarr(tmp_path).rename(tmp_path / "other")
    assert open_source(str(tmp_path / "other")).shape == VOLUME.shape
    assert source_files(str(tmp_path / "other")) == [tmp_path / "other/zarr.json"]


def test_channels_of_a_precomputed_volume(tmp_path):
    place = f"precomputed://{precomputed(tmp_path, channels=2)}"
    assert "there are 2 channels; choose one with `channel`" in error_of(place)
    source = open_source(place, reading=Reading(channel=1))
    np.testing.assert_array_equal(source.read(0, 7), VOLUME + np.uint8(1))


def cut(path):
    """Truncate a file by its last bytes."""
    path.write_bytes(path.read_bytes()[:-20])


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("write", [mrc, chunked_hdf5, ome_zarr, n5, precomputed])
def test_a_truncated_file_is_named(tmp_path, write):
    source = str(write(tmp_path))
    cut(largest(tmp_path))
    assert error_of(source).startswith(source.split(":")[0])


@pytest.mark.parametrize("write", [mrc, hdf5, n5])
def test_a_volume_has_three_axes_and_an_image_two(tmp_path, write):
    assert open_source(str(write(tmp_path, np.ones((20, 30), np.float32)))).shape == (1, 20, 30)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (mrc, "there are 3 time points"),
        (hdf5, "its shape is 3 x 5 x 6 x 7"),
        (n5, "its shape is 3 x 5 x 6 x 7"),
    ],
)
def test_four_axes_must_be_named(tmp_path, write, sentence):
    assert sentence in error_of(write(tmp_path, np.ones((3, 5, 6, 7), np.float32)))


def test_channels_and_colours_are_refused(tmp_path):
    assert "there are 2 channels" in error_of(ome_zarr(tmp_path, np.stack([VOLUME, VOLUME]), axes="czyx"))
    assert "axes" in error_of(hdf5(tmp_path, np.zeros((7, 20, 30, 3), np.uint8)))


@pytest.mark.parametrize("write", [hdf5, ome_zarr, mrc])
def test_numbers_that_are_no_intensities(tmp_path, write):
    assert "complex64 are not supported" in error_of(write(tmp_path, VOLUME.astype(np.complex64)))


@pytest.mark.parametrize("write", [hdf5, ome_zarr, n5])
def test_values_that_are_not_finite(tmp_path, write):
    values = VOLUME.astype(np.float32)
    values[4, 2, 2] = np.nan
    assert "slice 4 (counted from 0): there are NaN" in error_of(write(tmp_path, values))


def test_missing_and_broken_stores(tmp_path):
    for name in ("a.mrc", "a.h5:/raw", "a.zarr", "a.n5", "precomputed://a"):
        scheme, _, place = name.rpartition("://")
        source = f"{scheme}://{tmp_path}/{place}" if scheme else f"{tmp_path}/{name}"
        assert "no such file or folder" in error_of(source)
    (tmp_path / "b.zarr").mkdir()
    assert "contains no Zarr or N5 image" in error_of(tmp_path / "b.zarr")
    zarr.open_group(tmp_path / "b.zarr", mode="w")
    assert "contains no Zarr or N5 image" in error_of(tmp_path / "b.zarr")
    (tmp_path / "b.zarr/zarr.json").write_text("{")
    assert "'zarr.json' is not readable as JSON" in error_of(tmp_path / "b.zarr")
    (tmp_path / "b.h5").write_text("no HDF5")
    assert "not a readable HDF5 file" in error_of(tmp_path / "b.h5")
    (tmp_path / "info").write_text(json.dumps({"scales": []}))
    assert "no precomputed volume" in error_of(tmp_path)


@pytest.mark.parametrize("library", ["h5py", "mrcfile"])
def test_a_library_that_is_not_installed(tmp_path, monkeypatch, library):
    source = mrc(tmp_path) if library == "mrcfile" else hdf5(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ConfigError, match=rf"needs {library}; run pip install 'emdiffuse\[formats\]'"):
        open_source(str(source))


def test_the_voxel_size_is_taken_from_the_source_or_must_agree(tmp_path):
    source, out = str(ome_zarr(tmp_path)), tmp_path / "out.ome.zarr"
    acquire(source, None, out, "out")
    assert open_volume(out).voxel_size == pytest.approx(SIZE)
    acquire(source, (40.2, 4, 4), out, "out")
    assert open_volume(out).voxel_size == (40.2, 4, 4)
    with pytest.raises(DataError, match=r"voxel of 40 x 4 x 4 nm .* is 50 x 4 x 4 nm"):
        acquire(source, (50, 4, 4), out, "out")
    zarr.save_array(tmp_path / "plain.zarr", VOLUME)
    with pytest.raises(
        DataError, match=r"plain.zarr: the file does not state its voxel size; set `voxel_size`"
    ):
        acquire(str(tmp_path / "plain.zarr"), None, out, "out")


@pytest.mark.parametrize(
    ("source", "kind", "place", "inside"),
    [
        ("a/raw.tif", "image", "a/raw.tif", ""),
        ("a/*.tif", "image", "a/*.tif", ""),
        ("file:///a/b%20c.mrc.gz", "mrc", "/a/b c.mrc.gz", ""),
        ("a/b.zarr.zip/raw", "zarr", "a/b.zarr.zip", "raw"),
        ("a/b.ims", "hdf5", "a/b.ims", ""),
        ("a/b.DM4", "dm", "a/b.DM4", ""),
        ("a/b.H5:/x/y", "hdf5", "a/b.H5", "x/y"),
        ("a/b.hdf5", "hdf5", "a/b.hdf5", ""),
        ("a/b.rec", "mrc", "a/b.rec", ""),
        ("a/b.ome.zarr/0/", "zarr", "a/b.ome.zarr/0", ""),
        ("https://host/b.n5/raw", "n5", "https://host/b.n5/raw", ""),
        ("gs://bucket/image", "precomputed", "gs://bucket/image", ""),
        ("zarr://s3://bucket/image", "zarr", "s3://bucket/image", ""),
    ],
)
def test_how_a_source_is_named(source, kind, place, inside):
    found = parse_source(source)
    assert (found.kind, found.place, found.inside) == (kind, place, inside)
