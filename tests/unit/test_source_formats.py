"""Common files of any format are read: gray stored as colour, other types, old headers, packed."""

import bz2
import gzip
import shutil
import struct
import subprocess

import h5py
import imagecodecs
import mrcfile
import numpy as np
import pytest
import tensorstore as ts
import tifffile
import zarr
from microscope_files import amira, czi, digital_micrograph, fibsem, imaris, nrrd, sem, webknossos, wkw
from PIL import Image, ImageOps

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.config.reading import Raw, Reading
from emdiffuse.readers import open_source, source_files
from emdiffuse.readers.data_bar import bar_by_look
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.volume import open_volume

VOLUME = np.random.default_rng(0).integers(1, 250, (5, 24, 32)).astype(np.uint8)


def contents(place, **reading):
    source = open_source(str(place), reading=Reading(**reading))
    values = source.read(0, source.shape[0])
    np.testing.assert_array_equal(source.read(1, 2, slice(2, 9), slice(3, 9)), values[1:2, 2:9, 3:9])
    assert values.dtype == source.dtype and values.dtype.isnative
    return values


def mrc(folder, values=VOLUME):
    with mrcfile.new(folder / "a.mrc", values.astype(np.int16)) as file:
        file.voxel_size = 80
        file.set_volume()
    return folder / "a.mrc"


def packed(folder, ending, pack):
    path = mrc(folder)
    (folder / f"b.mrc{ending}").write_bytes(pack(path.read_bytes()))
    return folder / f"b.mrc{ending}"


def renamed(folder, ending):
    shutil.copy(mrc(folder), folder / f"b{ending}")
    return folder / f"b{ending}"


def pictures(folder, ending):
    (folder / "pictures").mkdir()
    for z, plane in enumerate(VOLUME):
        Image.fromarray(plane).save(folder / f"pictures/{z:03d}.{ending}")
    return folder / "pictures"


def folder_of_mrc(folder):
    (folder / "slices").mkdir()
    for z, plane in enumerate(VOLUME):
        with mrcfile.new(folder / f"slices/{z}.mrc", plane.astype(np.int16)):
            pass
    return folder / "slices"


def folder_of_dat(folder):
    (folder / "slices").mkdir()
    for z, plane in enumerate(VOLUME):
        fibsem(folder / f"slices/Merlin_{z:04d}.dat", plane[..., None])
    return folder / "slices"


def zipped(folder, inside=""):
    zarr.create_array(folder / f"a.zarr{inside}", data=VOLUME, chunks=(2, 8, 8))
    shutil.make_archive(str(folder / "a.zarr"), "zip", folder / "a.zarr")
    return f"{folder}/a.zarr.zip{inside}"


def filtered(folder):
    import hdf5plugin

    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("raw", data=VOLUME, chunks=(2, 8, 8), **hdf5plugin.Zstd())
    return folder / "a.h5"


def raw(folder):
    (folder / "a.raw").write_bytes(b"head" + VOLUME.astype(">u2").tobytes())
    return folder / "a.raw"


def array(folder, values=VOLUME):
    np.save(folder / "a.npy", values)
    return folder / "a.npy"


def packed_array(folder):
    (folder / "b.npy.gz").write_bytes(gzip.compress(array(folder).read_bytes()))
    return folder / "b.npy.gz"


def folder_of_npy(folder):
    (folder / "slices").mkdir()
    for z, plane in enumerate(VOLUME):
        np.save(folder / f"slices/{z}.npy", plane)
    return folder / "slices"


FORMATS = {
    "mrc.gz": lambda folder: packed(folder, ".gz", gzip.compress),
    "mrc.bz2": lambda folder: packed(folder, ".bz2", bz2.compress),
    "ali": lambda folder: renamed(folder, ".ali"),
    "rec": lambda folder: renamed(folder, ".REC"),
    "st": lambda folder: renamed(folder, ".st"),
    "folder of mrc": folder_of_mrc,
    "folder of dat": folder_of_dat,
    "png": lambda folder: pictures(folder, "png"),
    "bmp": lambda folder: pictures(folder, "bmp"),
    "dm3": lambda folder: digital_micrograph(folder / "a.dm3", [VOLUME], 3),
    "dm4": lambda folder: digital_micrograph(folder / "a.dm4", [VOLUME], 4),
    "czi": lambda folder: czi(folder, VOLUME),
    "imaris": lambda folder: imaris(folder, VOLUME),
    "webknossos": lambda folder: webknossos(folder, VOLUME),
    "amira": lambda folder: amira(folder / "a.am", VOLUME),
    "amira big": lambda folder: amira(folder / "a.am", VOLUME.astype(np.uint16), order="BIG"),
    "amira zip": lambda folder: amira(folder / "a.am", VOLUME, "HxZip"),
    "amira rle": lambda folder: amira(folder / "a.am", VOLUME, "HxByteRLE"),
    "nrrd": lambda folder: nrrd(folder / "a.nrrd", VOLUME),
    "nrrd gzip": lambda folder: nrrd(folder / "a.nrrd", VOLUME, gzipped=True),
    "npy": array,
    "npy in Fortran order": lambda folder: array(folder, np.asfortranarray(VOLUME)),
    "npy of big-endian numbers": lambda folder: array(folder, VOLUME.astype(">u2")),
    "npy.gz": packed_array,
    "folder of npy": folder_of_npy,
    "zipped zarr": zipped,
    "array in a zipped zarr": lambda folder: zipped(folder, "/raw"),
    "filter of hdf5": filtered,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read(tmp_path, name):
    place = FORMATS[name](tmp_path)
    np.testing.assert_array_equal(contents(place), VOLUME)
    assert source_files(str(place)), "Snakemake sees what it depends on"
    np.testing.assert_array_equal(contents(f"file://{place}"), VOLUME)


@pytest.mark.parametrize("order", ["C", "F"])
def test_axes_of_an_array_of_numpy_can_be_stated(tmp_path, order):
    place = array(tmp_path, np.array(VOLUME.transpose(2, 1, 0), order=order))
    np.testing.assert_array_equal(contents(place, axes="xyz"), VOLUME)
    place = array(tmp_path, np.array([VOLUME, VOLUME + 1], order=order))
    np.testing.assert_array_equal(contents(place, axes="czyx", channel=1), VOLUME + 1)
    with pytest.raises(DataError, match="state the axes"):
        contents(place)


def test_no_code_is_run_from_an_array_of_numpy(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}, 1]]), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects or records, not numbers"):
        contents(tmp_path / "a.npy")


def test_bare_pixels_of_a_stated_shape(tmp_path):
    stated = {"shape": VOLUME.shape, "dtype": "uint16", "offset": 4, "byte_order": "big"}
    np.testing.assert_array_equal(contents(raw(tmp_path), raw=Raw(**stated)), VOLUME)
    with pytest.raises(DataError, match="does not state its shape; give `raw:"):
        open_source(str(tmp_path / "a.raw"))
    with pytest.raises(DataError, match=r"`raw` states 5 x 24 x 32 pixels of uint8 .* but the file has 7684"):
        open_source(str(tmp_path / "a.raw"), reading=Reading(raw=Raw(shape=VOLUME.shape, dtype="uint8")))


def test_detectors_of_a_fib_sem(tmp_path):
    both = np.stack([VOLUME[0], VOLUME[1]], -1).astype(np.int16) * 100 - 9000
    fibsem(tmp_path / "a.dat", both)
    with pytest.raises(DataError, match=r"there are 2 channels \(InLens, ESB\)"):
        open_source(str(tmp_path / "a.dat"))
    source = open_source(str(tmp_path / "a.dat"), reading=Reading(channel="ESB"))
    np.testing.assert_array_equal(source.read(0, 1)[0], both[..., 1])


def test_images_of_a_dm_file_are_chosen(tmp_path):
    digital_micrograph(tmp_path / "a.dm4", [VOLUME[0], VOLUME[1]], 4)
    with pytest.raises(DataError, match=r"contains 2 images .*'image 0'.*'image 1'"):
        open_source(str(tmp_path / "a.dm4"))
    source = open_source(str(tmp_path / "a.dm4"), reading=Reading(series="image 1"))
    np.testing.assert_array_equal(source.read(0, 1)[0], VOLUME[1])


RAMP = np.stack([np.arange(256, dtype=np.uint16) * 257] * 3)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "palette", "colormap": RAMP},
        {"photometric": "palette", "colormap": RAMP // 257},
        {"rgb": True, "photometric": "rgb"},
        {"rgb": True, "photometric": "rgb", "planarconfig": "separate"},
        {"rgb": True, "photometric": "rgb", "compression": "zlib"},
    ],
    ids=str,
)
def test_gray_that_is_stored_as_colour(tmp_path, options):
    image = VOLUME[0]
    if options.pop("rgb", False):
        image = np.stack([image] * 3, 0 if "planarconfig" in options else -1)
    tifffile.imwrite(tmp_path / "a.tif", image, metadata=None, **options)
    np.testing.assert_array_equal(open_source(str(tmp_path / "a.tif")).read(0, 1)[0], VOLUME[0])
    coloured = dict(options)
    if "colormap" in options:
        coloured["colormap"] = options["colormap"] // np.array([[1], [2], [3]], np.uint16)
    else:
        image = image.copy()
        image.flat[5] += 1
    tifffile.imwrite(tmp_path / "b.tif", image, metadata=None, **coloured)
    with pytest.raises(DataError, match=r"b\.tif: this is a colour image"):
        open_source(str(tmp_path / "b.tif")).read(0, 1)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("bool", "uint8"), ("int8", "int16"), ("float16", "float32"), ("uint32", "float32"),
        ("int32", "float32"), ("float64", "float32"), ("int64", "float32"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("write", ["tiff", "zarr", "hdf5"])
def test_other_types_are_converted_each_value_to_itself(tmp_path, stored, read, write):
    values = (
        (VOLUME > 99)
        if stored == "bool"
        else (VOLUME.astype(np.int64) - 100 * ("u" not in stored)).astype(stored)
    )
    if write == "tiff":
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    elif write == "zarr":
        zarr.create_array(tmp_path / "a.zarr", data=values)
    else:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["raw"] = values
    place = tmp_path / {"tiff": "a.tif", "zarr": "a.zarr", "hdf5": "a.h5"}[write]
    found = contents(place)
    assert found.dtype == read
    np.testing.assert_array_equal(found, values.astype(read))


def test_integers_that_no_type_holds_exactly_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME.astype(np.uint32) + 2**25, photometric="minisblack")
    with pytest.raises(DataError, match=f"there are values of {2**25 + int(VOLUME[0].max())}"):
        open_source(str(tmp_path / "a.tif")).read(0, 1)


def test_the_byte_order_may_change_within_a_series(tmp_path):
    values = VOLUME.astype(np.uint16) * 200
    for z, plane in enumerate(values):
        tifffile.imwrite(tmp_path / f"{z}.tif", plane, byteorder="<>"[z % 2], metadata=None)
    np.testing.assert_array_equal(contents(tmp_path), values)


@pytest.mark.parametrize("patch", ["stamp", "imod stamp", "no map", "big map", "labels"])
def test_old_headers_of_mrc(tmp_path, patch):
    path = mrc(tmp_path)
    content = bytearray(path.read_bytes())
    at, value = {
        "stamp": (212, b"\x44\0\0\0"),
        "imod stamp": (212, b"\x44\x20\x20\x20"),
        "no map": (208, bytes(4)),
        "big map": (208, b"MAP\0"),
        "labels": (220, struct.pack("<i", 99)),
    }[patch]
    content[at : at + len(value)] = value
    path.write_bytes(content)
    np.testing.assert_array_equal(contents(path), VOLUME)


def with_bar(height=150, width=160, rows=24):
    """Return an image with a data bar below it: black, with a line and white letters."""
    rng = np.random.default_rng(2)
    image = np.clip(rng.normal(120, 30, (height, width)), 1, 254).astype(np.uint8)
    image[-rows:] = 0
    image[-rows] = 255
    for x in range(8, width - 8, 12):
        image[-rows + 6 : -6, x : x + 4] = 255
    return image


@pytest.mark.parametrize("vendor", ["fei", "tescan", "tescan_beside", "jeol"])
def test_a_data_bar_is_found_by_metadata(tmp_path, vendor):
    source = open_source(str(sem(tmp_path, vendor, with_bar(rows=40))))
    assert (source.bar, source.valid) == (40, (slice(0, 110), slice(0, 160)))
    assert open_source(source.name, reading=Reading(data_bar=0)).bar == 0
    assert open_source(source.name, reading=Reading(data_bar=7)).bar == 7


def test_a_data_bar_is_found_by_its_look(tmp_path):
    image = with_bar()
    assert bar_by_look(image) == bar_by_look(255 - image) == 24
    without = image[:-24]
    padded = image.copy()
    padded[-24:] = 0
    assert bar_by_look(without) == bar_by_look(padded) == bar_by_look(np.zeros_like(image)) == 0
    for z in range(3):
        (tmp_path / "series").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / f"series/{z}.tif", np.roll(image, z, 1), metadata=None)
    acquire(str(tmp_path / "series"), (50, 8, 8), tmp_path / "a.zarr", "a")
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.facts.valid == (0, 126, 0, 160)
    assert volume.array.shape == (3, 150, 160), "it is kept"


def test_listing_the_files_of_a_source_loads_no_numerical_library(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME)
    code = (
        "import sys; from emdiffuse.config.sources import source_files; import emdiffuse.readers\n"
        f"source_files({str(tmp_path)!r}); assert not {{'numpy', 'tifffile', 'tensorstore', 'zarr'}} "
        "& set(sys.modules)"
    )
    subprocess.run(["python", "-c", code], check=True)


def one(place):
    return open_source(str(place)).read(0, 1)[0]


@pytest.mark.parametrize("coloured", [0.001, 0.2])
def test_annotations_in_colour_over_a_gray_palette(tmp_path, coloured, caplog):
    """As written by Zeiss: some palette indices are colours, used by almost no pixel."""
    palette = np.stack([np.arange(256, dtype=np.uint16) * 257] * 3)
    palette[:, 9] = (65535, 0, 0)
    plane = np.random.default_rng(0).integers(20, 200, (64, 64)).astype(np.uint8)
    plane.ravel()[: int(coloured * plane.size)] = 9
    tifffile.imwrite(tmp_path / "a.tif", plane, photometric="palette", colormap=palette, metadata=None)
    if coloured > 0.01:
        with pytest.raises(DataError, match="this is a colour image"):
            open_source(str(tmp_path / "a.tif"))
        return
    np.testing.assert_array_equal(one(tmp_path / "a.tif"), np.where(plane == 9, 76, plane))
    assert "coloured annotations" in caplog.text


@pytest.mark.parametrize("code", range(1, 9))
def test_a_picture_stored_turned_is_read_upright(tmp_path, code):
    exif = Image.Exif()
    exif[0x0112] = code
    Image.fromarray(VOLUME[0, :5].astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(one(tmp_path / "a.png"), expected)
    assert expected.shape == ((5, VOLUME.shape[2]) if code < 5 else (VOLUME.shape[2], 5))


@pytest.mark.parametrize(("ending", "pack"), [(".br", "brotli_encode"), (".zstd", "zstd_encode")])
def test_packed_chunks_of_precomputed(tmp_path, ending, pack):
    z, y, x = VOLUME.shape
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{tmp_path}/seen/"},
        "multiscale_metadata": {"type": "image", "data_type": VOLUME.dtype.name, "num_channels": 1},
        "scale_metadata": {
            "size": (x, y, z), "resolution": [8, 8, 40], "chunk_size": [8, 8, 8], "encoding": "raw",
        },
    }  # fmt: skip
    ts.open(spec, create=True).result()[..., 0] = VOLUME.T
    for file in (tmp_path / "seen/8_8_40").iterdir():
        file.with_name(file.name + ending).write_bytes(getattr(imagecodecs, pack)(file.read_bytes()))
        file.unlink()
    np.testing.assert_array_equal(contents(tmp_path / "seen"), VOLUME)


@pytest.mark.parametrize("packing", [1, 2])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_wkw_of_webknossos(tmp_path, packing, dtype):
    values = VOLUME.astype(dtype)
    place = wkw(tmp_path, values, packing, corner=(3, 5, 2))
    np.testing.assert_array_equal(contents(place), values)
    assert open_source(str(place)).voxel_size == (40, 8, 8)
    cube = place / "color/1/z0/y1/x1.wkw"
    cube.write_bytes(cube.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"y1/x1\.wkw: it ends early: the WKW file is truncated"):
        contents(place)
    cube.unlink()
    with pytest.raises(DataError, match=r"1 of \d+ chunks are missing"):
        open_source(str(place))
