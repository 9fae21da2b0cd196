"""Missing data are not zeros: absent chunks are counted and named, NaN is masked on request."""

import gzip
import json
import shutil

import h5py
import numpy as np
import pytest
import tensorstore as ts
import tifffile
import zarr
from microscope_files import n5, webknossos
from serving import served_folder

from emdiffuse.config.reading import Reading
from emdiffuse.readers import open_source
from emdiffuse.runtime.errors import DataError

VOLUME = np.random.default_rng(0).integers(1, 255, (8, 16, 16)).astype(np.uint8)


def zarr3(folder):
    zarr.create_array(folder / "a.zarr", data=VOLUME, chunks=(8, 8, 8))
    return folder / "a.zarr", folder / "a.zarr/c/0/1/0"


def zarr2(folder):
    zarr.create_array(folder / "a.zarr", data=VOLUME, chunks=(8, 8, 8), zarr_format=2)
    return folder / "a.zarr", folder / "a.zarr/0.1.0"


def n5_store(folder):
    place = n5(folder, VOLUME)
    return place, place / "0/1/0"


def precomputed(folder):
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/seen/"},
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
        "scale_metadata": {
            "size": VOLUME.shape[::-1], "resolution": [8, 8, 40], "chunk_size": [8, 8, 8], "encoding": "raw",
            "voxel_offset": [3, 0, 100],
        },
    }  # fmt: skip
    ts.open(spec, create=True).result()[..., 0] = VOLUME.T
    return folder / "seen", folder / "seen/8_8_40/3-11_8-16_100-108"


def precomputed_gz(folder):
    place, chunk = precomputed(folder)
    for file in chunk.parent.iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    return place, chunk.with_name(f"{chunk.name}.gz")


def partly_gz(folder):
    place, chunk = precomputed_gz(folder)
    plain = next(file for file in chunk.parent.iterdir() if file != chunk)
    plain.with_suffix("").write_bytes(gzip.decompress(plain.read_bytes()))
    plain.unlink()
    return place, chunk


def codecs_of_python(folder):
    """Write chunks with a codec that tensorstore lacks."""
    from zarr.codecs.numcodecs import LZMA

    zarr.create_array(folder / "a.zarr", data=VOLUME, chunks=(8, 8, 8), compressors=[LZMA()])
    return folder / "a.zarr", folder / "a.zarr/c/0/1/0"


@pytest.mark.parametrize(
    "write", [zarr3, zarr2, n5_store, precomputed, precomputed_gz, partly_gz, codecs_of_python]
)
def test_a_chunk_that_is_absent_is_counted_and_named(tmp_path, write):
    place, chunk = write(tmp_path)
    np.testing.assert_array_equal(open_source(str(place)).read(0, 8), VOLUME)
    chunk.unlink()
    with pytest.raises(DataError, match=r"1 of 4 chunks are missing .*; copy .* `missing_chunks: fill`"):
        open_source(str(place))
    source = open_source(str(place), reading=Reading(missing_chunks="fill"))
    filled = VOLUME.copy()
    filled[:, 8:, :8] = 0
    np.testing.assert_array_equal(source.read(0, 8), filled)
    assert source.absent == ((slice(0, 8), slice(8, 16), slice(0, 8)),)
    elsewhere = open_source(str(place), reading=Reading(crop={"y": (0, 8)}))
    np.testing.assert_array_equal(elsewhere.read(0, 8), VOLUME[:, :8])
    with pytest.raises(DataError, match=r"\(z 0-4, y 2-8, x 0-3\)"):  # within the crop
        open_source(str(place), reading=Reading(crop={"z": (2, 6), "y": (6, 14), "x": (5, 16)}))


@pytest.mark.parametrize("chunks", [(8, 8, 8), (1, 8, 8, 8), None])
def test_an_hdf5_recording_that_was_interrupted_is_refused(tmp_path, chunks):
    values = VOLUME if chunks is None or len(chunks) == 3 else np.stack([VOLUME, VOLUME])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        raw = file.create_dataset("raw", values.shape, values.dtype, chunks=chunks)
        if chunks is not None:
            raw[..., :8, :] = values[..., :8, :]
    many = {"channel": 1, "axes": "czyx"} if values.ndim == 4 else {}
    missing = "1 of 1" if chunks is None else "2 of 4"
    with pytest.raises(DataError, match=f"{missing} chunks are missing"):
        open_source(str(tmp_path / "a.h5"), reading=Reading(**many))
    filled = open_source(str(tmp_path / "a.h5"), reading=Reading(missing_chunks="fill", **many))
    assert (filled.read(0, 8)[:, 8:] == 0).all()
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file.create_dataset("raw", data=values, chunks=chunks)
    whole = open_source(str(tmp_path / "whole.h5"), reading=Reading(**many))
    np.testing.assert_array_equal(whole.read(0, 8), VOLUME)


def test_beyond_the_bounding_box_of_a_layer_nothing_is_missing(tmp_path):
    place = webknossos(tmp_path, VOLUME)
    file = place / "datasource-properties.json"
    properties = json.loads(file.read_text())
    box = {"topLeft": [8, 0, 2], "width": 8, "height": 16, "depth": 6}
    properties["dataLayers"][0]["boundingBox"] = box
    file.write_text(json.dumps(properties))
    array = zarr.open_array(place / "color/1", mode="r")
    stored = array[:]
    shutil.rmtree(place / "color/1")
    array = zarr.create_array(
        place / "color/1", shape=stored.shape, chunks=(1, 8, 8, 8), dtype="u1",
        dimension_names=("c", "x", "y", "z"),
    )  # fmt: skip
    array[:, 8:] = stored[:, 8:]
    np.testing.assert_array_equal(open_source(str(place)).read(0, 6), VOLUME[2:, :, 8:])


def test_of_many_absent_chunks_some_are_named(tmp_path):
    place, _ = zarr3(tmp_path)
    shutil.rmtree(place / "c")
    with pytest.raises(DataError, match=r"4 of 4 chunks are missing \(z 0-8, y 0-8, x 0-8; .* and 1 more\)"):
        open_source(str(place))


@pytest.mark.parametrize("write", [zarr3, zarr2, n5_store, precomputed])
def test_at_an_address_an_absent_chunk_is_found_when_it_is_read(tmp_path, write):
    place, chunk = write(tmp_path)
    chunk.unlink()
    with served_folder(tmp_path) as served:
        address = f"{served}/{place.relative_to(tmp_path)}"
        source = open_source(address)
        np.testing.assert_array_equal(source.read(0, 8, slice(0, 8)), VOLUME[:, :8])
        with pytest.raises(DataError, match=r"a chunk is missing .* `missing_chunks: fill`"):
            source.read(0, 8)
        filled = open_source(address, reading=Reading(missing_chunks="fill")).read(0, 8)
        assert (filled[:, 8:, :8] == 0).all() and (filled[:, :8] == VOLUME[:, :8]).all()


def test_nan_is_refused_or_masked(tmp_path):
    values = VOLUME.astype(np.float32)
    values[2, 3, 4] = np.nan
    zarr.save_array(tmp_path / "a.zarr", values)
    with pytest.raises(
        DataError, match=r"slice 2 .*: there are NaN or infinite values; .* or set `nan: mask`"
    ):
        open_source(str(tmp_path / "a.zarr")).read(0, 8)
    masked = open_source(str(tmp_path / "a.zarr"), reading=Reading(nan="mask"))
    np.testing.assert_array_equal(masked.read(0, 8), values)
    values[2, 3, 4] = np.inf
    zarr.save_array(tmp_path / "b.zarr", values)
    with pytest.raises(DataError, match="there are infinite values"):
        open_source(str(tmp_path / "b.zarr"), reading=Reading(nan="mask")).read(0, 8)


def test_metadata_that_speak_of_a_chunk_grid_that_is_not_there(tmp_path):
    place, _ = precomputed(tmp_path)
    info = json.loads((place / "info").read_text())
    info["scales"][0]["size"] = [16, 16, 24]
    (place / "info").write_text(json.dumps(info))
    with pytest.raises(DataError, match="8 of 12 chunks are missing"):
        open_source(str(place))


@pytest.mark.parametrize("kind", ["fewer", "empty"])
@pytest.mark.parametrize(
    "form", [{"rowsperstrip": 4}, {"tile": (16, 16)}, {"rowsperstrip": 4, "compression": "zlib"}]
)
def test_a_tiff_with_too_few_strips_or_tiles_is_refused(tmp_path, form, kind):
    values = np.random.default_rng(0).integers(1, 255, (32, 32)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="minisblack", metadata=None, **{"rowsperstrip": 4, **form}
    )
    np.testing.assert_array_equal(open_source(str(tmp_path / "a.tif")).read(0, 1)[0], values)
    what = "Tile" if "tile" in form else "Strip"
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        tags = file.pages[0].tags
        for name in (f"{what}Offsets", f"{what}ByteCounts"):
            kept = tags[name].value[:-1]
            tags[name].overwrite(kept if kind == "fewer" else (*kept, 0))
    with pytest.raises(DataError, match=r"a\.tif: (only \d of \d strips|pixels are missing)"):
        open_source(str(tmp_path / "a.tif")).read(0, 1)


@pytest.mark.parametrize("kept", [0, 1, 7, 95])
@pytest.mark.parametrize("version", [2, 3])
def test_every_chunk_that_is_missing_is_found(tmp_path, kept, version):
    """In 4 x 4 x 6 chunks, the last ones partial."""
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(7, 15, 22), chunks=(2, 4, 4), dtype="uint8", zarr_format=version,
        chunk_key_encoding={"name": "default" if version == 3 else "v2", "separator": "/"},
    )  # fmt: skip
    array[...] = 1
    chunks = sorted(
        path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file() and path.name.isdigit()
    )
    assert len(chunks) == 96
    lost = set()
    for i in np.random.default_rng(0).permutation(96)[kept:]:
        lost.add(tuple(int(part) for part in chunks[i].parts[-3:]))
        chunks[i].unlink()
    opened = open_source(str(tmp_path / "a.zarr"), reading=Reading(missing_chunks="fill"))
    found = [(z.start // 2, y.start // 4, x.start // 4) for z, y, x in opened.absent]
    assert found == sorted(lost) and opened.chunks == 96
