"""Metadata on order and meaning are honoured, or refused: axes, channels, series, levels, colours."""

import json

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from microscope_files import czi, imaris, n5, webknossos

from emdiffuse.config.reading import Crop, Reading
from emdiffuse.readers import open_source
from emdiffuse.runtime.errors import DataError

VOLUME = np.random.default_rng(0).integers(1, 255, (5, 24, 32)).astype(np.uint8)
XYZ = VOLUME.transpose(2, 1, 0)


def opened(place, **reading):
    return open_source(str(place), reading=Reading(**reading))


def contents(place, **reading):
    source = opened(place, **reading)
    values = source.read(0, source.shape[0])
    part = source.read(0, source.shape[0], slice(2, 9), slice(3, 20))
    np.testing.assert_array_equal(part, values[:, 2:9, 3:20])
    return values


def zarr3(folder, values, names):
    array = zarr.create_array(folder / "a.zarr", data=values, dimension_names=names, zarr_format=3)
    return folder / "a.zarr" if array is not None else None


def zarr2_xarray(folder, values, names):
    array = zarr.create_array(folder / "a.zarr", data=values, zarr_format=2, attributes={})
    array.attrs["_ARRAY_DIMENSIONS"] = list(names)
    return folder / "a.zarr"


def ome(folder, values, names):
    axes = [{"name": a, **({"type": "space"} if a in "xyz" else {})} for a in names]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1] * len(names)}]}]
    image = {"axes": axes, "datasets": datasets}
    group = zarr.open_group(
        folder / "a.zarr", mode="w", attributes={"ome": {"version": "0.5", "multiscales": [image]}}
    )
    group.create_array("0", data=values)
    return folder / "a.zarr"


def n5_axes(folder, values, names):
    return n5(folder, values, axes=list(names)[::-1])


def n5_cosem(folder, values, names):
    transform = {"axes": list(names), "scale": [1.0] * len(names), "units": ["nm"] * len(names)}
    return n5(folder, values, transform=transform)


def hdf5_axistags(folder, values, names):
    with h5py.File(folder / "a.h5", "w") as file:
        dataset = file.create_dataset("exported_data", data=values)
        dataset.attrs["axistags"] = json.dumps({"axes": [{"key": a, "typeFlags": 2} for a in names]})
    return folder / "a.h5"


def hdf5_labels(folder, values, names):
    with h5py.File(folder / "a.h5", "w") as file:
        dataset = file.create_dataset("data", data=values)
        for dim, name in zip(dataset.dims, names, strict=True):
            dim.label = name
    return folder / "a.h5"


WRITERS = [zarr3, zarr2_xarray, ome, n5_axes, n5_cosem, hdf5_axistags, hdf5_labels]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("names", ["zyx", "xyz", "yxz", "czyx", "xyzc", "tczyx", "zyxc"])
def test_axes_that_have_names_are_honoured(tmp_path, write, names):
    values = VOLUME[None, None].transpose(["tczyx".index(a) for a in names] + [
        i for i, a in enumerate("tczyx") if a not in names
    ]).reshape([dict(zip("tczyx", (1, 1, *VOLUME.shape), strict=True))[a] for a in names])  # fmt: skip
    place = write(tmp_path, np.ascontiguousarray(values), names)
    np.testing.assert_array_equal(contents(place), VOLUME)


@pytest.mark.parametrize("write", WRITERS)
def test_a_channel_is_chosen_and_never_silently(tmp_path, write):
    place = write(tmp_path, np.stack([VOLUME, VOLUME[::-1], VOLUME + 1]), "czyx")
    with pytest.raises(DataError, match="there are 3 channels; choose one with `channel`"):
        opened(place)
    np.testing.assert_array_equal(contents(place, channel=1), VOLUME[::-1])
    with pytest.raises(DataError, match="`channel` is 3, but there are 3 channels, counted from 0"):
        opened(place, channel=3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 24, 32), (5, 24, 32)),
        ((1, 5, 24, 32), (5, 24, 32)),
        ((5, 24, 32, 1), (5, 24, 32)),
        ((1, 1, 5, 24, 32), (5, 24, 32)),
        ((24, 32), (1, 24, 32)),
        ((1, 24, 32), (1, 24, 32)),
        ((24, 32, 1), (1, 24, 32)),
        ((1, 1, 24, 32), (1, 24, 32)),
    ],
)
def test_axes_of_one_stand_aside_where_there_are_no_names(tmp_path, shape, expected):
    zarr.save_array(tmp_path / "a.zarr", np.resize(VOLUME, shape))
    assert opened(tmp_path / "a.zarr").shape == expected


@pytest.mark.parametrize(
    ("names", "stored"),
    [
        (("x", None, "z"), XYZ), (("x", "y", None), XYZ), ((None, "y", "x"), VOLUME),
        (("c", None, None), VOLUME[:1]), (("t", None, None, None), VOLUME[None]),
        (("p", "q", "r"), VOLUME), (("x", None, None), None),
    ],
)  # fmt: skip
def test_names_of_some_axes_are_not_overruled(tmp_path, names, stored):
    zarr.create_array(tmp_path / "a.zarr", data=XYZ if stored is None else stored, dimension_names=names)
    if stored is None:
        with pytest.raises(DataError, match="only some of its axes are named: 32 along x"):
            opened(tmp_path / "a.zarr")
    else:
        np.testing.assert_array_equal(contents(tmp_path / "a.zarr"), VOLUME[: 1 if names[0] == "c" else None])


def test_axes_can_be_stated_where_the_file_does_not(tmp_path):
    zarr.save_array(tmp_path / "a.zarr", XYZ)
    np.testing.assert_array_equal(contents(tmp_path / "a.zarr", axes="xyz"), VOLUME)
    with pytest.raises(DataError, match="`axes` is 'zyxc', but the shape is 32 x 24 x 5"):
        opened(tmp_path / "a.zarr", axes="zyxc")
    zarr.save_array(tmp_path / "b.zarr", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="3 columns or channels"):
        opened(tmp_path / "b.zarr")
    zarr.save_array(tmp_path / "d.zarr", np.ones((64, 64, 2), np.uint8))
    with pytest.raises(DataError, match="2 columns or channels"):
        opened(tmp_path / "d.zarr")
    assert opened(tmp_path / "d.zarr", axes="yxc", channel=1).shape == (1, 64, 64)
    zarr.save_array(tmp_path / "c.zarr", np.ones((2, 3, 5, 6), np.uint8))
    with pytest.raises(DataError, match="its shape is 2 x 3 x 5 x 6; state the axes"):
        opened(tmp_path / "c.zarr")


@pytest.mark.parametrize("odd", [{"photometric": "miniswhite"}, {"compression": "zlib"}])
def test_a_stack_with_an_odd_page_is_not_read_without_it(tmp_path, odd):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for z, plane in enumerate(VOLUME):
            file.write(plane, metadata=None, **({"photometric": "minisblack"} | (odd if z == 2 else {})))
    try:
        values = contents(tmp_path / "a.tif")
    except DataError as error:
        assert "if they are one stack, save its pages alike" in str(error)
    else:
        np.testing.assert_array_equal(values, VOLUME)


@pytest.mark.parametrize("order", ["xyz", "yxz", "zyx", "zxy", "xzy", "yzx"])
def test_an_mrc_file_says_what_columns_rows_and_sections_are(tmp_path, order):
    """`order` is that of columns, rows and sections, as in mapc, mapr and maps."""
    values = VOLUME.astype(np.int16).transpose(["zyx".index(a) for a in order[::-1]])
    with mrcfile.new(tmp_path / "a.mrc", np.ascontiguousarray(values)) as file:
        for key, axis in zip(("mapc", "mapr", "maps"), order, strict=True):
            file.header[key] = "xyz".index(axis) + 1
    np.testing.assert_array_equal(contents(tmp_path / "a.mrc"), VOLUME)


IMAGEJ = np.stack([VOLUME, VOLUME[::-1]], 1).astype(np.uint16)


NAMED = {"axes": "ZCYX", "Channel": {"Name": ["SE", "BSE"]}}
FRAMES = IMAGEJ.swapaxes(0, 1)
TILED = {"ome": True, "metadata": {"axes": "ZYX"}, "tile": (16, 16), "compression": "zlib"}


@pytest.mark.parametrize(
    ("values", "options", "reading", "expected"),
    [
        (IMAGEJ, {"imagej": True, "metadata": {"axes": "ZCYX"}}, {"channel": 1}, VOLUME[::-1]),
        (FRAMES, {"imagej": True, "metadata": {"axes": "TZYX"}}, {"timepoint": 1}, VOLUME[::-1]),
        (IMAGEJ, {"ome": True, "metadata": NAMED}, {"channel": "BSE"}, VOLUME[::-1]),
        (FRAMES, {"ome": True, "metadata": {"axes": "CZYX"}}, {"channel": 0}, VOLUME),
        (VOLUME, {"metadata": {"axes": "TYX"}}, {}, VOLUME),
        (VOLUME[None, :, None], {"imagej": True, "metadata": {"axes": "TZCYX"}}, {}, VOLUME),
        (VOLUME[..., None].repeat(3, -1), {"photometric": "rgb"}, {}, VOLUME),
        (VOLUME, TILED, {}, VOLUME),
    ],
)  # fmt: skip
def test_hyperstacks_of_tiff(tmp_path, values, options, reading, expected):
    options.setdefault("photometric", "minisblack")
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    np.testing.assert_array_equal(contents(tmp_path / "a.tif", **reading), expected)
    if reading:
        with pytest.raises(DataError, match=f"choose one with `{next(iter(reading))}`"):
            opened(tmp_path / "a.tif")


def test_the_plane_order_of_ome_is_that_of_its_tiffdata(tmp_path):
    """Pages in order of acquisition, with TiffData that assign slices to them."""
    order = [3, 1, 4, 0, 2]
    data = "".join(
        f'<TiffData IFD="{page}" FirstZ="{z}" FirstC="0" FirstT="0" PlaneCount="1"/>'
        for page, z in enumerate(order)
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="32" SizeY="24" SizeZ="5" SizeC="1" '
        f'SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
    )
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        for page, z in enumerate(order):
            tif.write(VOLUME[z], metadata=None, description=xml if page == 0 else None)
    np.testing.assert_array_equal(contents(tmp_path / "a.ome.tif"), VOLUME)


def test_positions_of_an_ome_tiff_are_chosen(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        tif.write(VOLUME, photometric="minisblack", metadata={"axes": "ZYX", "Name": "left"})
        tif.write(VOLUME[::-1], photometric="minisblack", metadata={"axes": "ZYX", "Name": "right"})
    with pytest.raises(DataError, match=r"contains 2 images .*'left'.*'right'.*; choose one with `series`"):
        opened(tmp_path / "a.ome.tif")
    for choice in (1, "1", "right"):
        np.testing.assert_array_equal(contents(tmp_path / "a.ome.tif", series=choice), VOLUME[::-1])
    with pytest.raises(DataError, match="there is no series 'middle'; available: 0: "):
        opened(tmp_path / "a.ome.tif", series="middle")


@pytest.mark.parametrize("below", ["subifd", "reduced", "unmarked", "thumbnail"])
def test_overviews_are_no_slices(tmp_path, below):
    """A pyramid in SubIFDs, or in pages marked as reduced or not marked, or a thumbnail of another type."""
    half, image = VOLUME[0, ::2, ::2], VOLUME[0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        if below == "subifd":
            tif.write(image, subifds=1, metadata=None)
            tif.write(half, subfiletype=1, metadata=None)
        else:
            tif.write(image, metadata=None)
            small = half[..., None].repeat(3, -1) if below == "thumbnail" else half
            options = {"subfiletype": 1} if below == "reduced" else {}
            tif.write(
                small, photometric="rgb" if below == "thumbnail" else "minisblack", metadata=None, **options
            )
    np.testing.assert_array_equal(contents(tmp_path / "a.tif")[0], image)
    if below == "subifd":
        np.testing.assert_array_equal(contents(tmp_path / "a.tif", level=1)[0], half)
        with pytest.raises(DataError, match="`level` is 2, but there are 2"):
            opened(tmp_path / "a.tif", level=2)


@pytest.mark.parametrize("code", range(1, 9))
def test_an_image_stored_turned_is_read_upright(tmp_path, code):
    image = VOLUME[0]
    stored = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.T, 6: image.T[::-1], 7: image.T[::-1, ::-1], 8: image.T[:, ::-1],
    }[code]  # fmt: skip
    tifffile.imwrite(tmp_path / "a.tif", stored, metadata=None, extratags=[(274, 3, 1, code, True)])
    from PIL import Image, ImageOps

    picture = Image.fromarray(stored)  # another program's opinion; its TIFF reader gets 5 to 8 wrong
    picture.getexif()[274] = code
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(picture)), image)
    np.testing.assert_array_equal(contents(tmp_path / "a.tif")[0], image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "bool"])
def test_where_0_is_white_values_are_inverted(tmp_path, dtype):
    image = (VOLUME[0] > 100) if dtype == "bool" else VOLUME[0].astype(dtype) * 3
    stored = {"float32": lambda: -image, "bool": lambda: ~image}.get(dtype, lambda: ~image)()
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(contents(tmp_path / "a.tif")[0], image)
    for z in range(3):  # one slice of a series was saved so
        white = z == 1
        name = tmp_path / "series" / f"{z}.tif"
        name.parent.mkdir(exist_ok=True)
        options = {"photometric": "miniswhite" if white else "minisblack", "metadata": None}
        tifffile.imwrite(name, stored if white else image, **options)
    assert (contents(tmp_path / "series") == image).all()


def test_a_part_of_a_layer_and_of_a_scene(tmp_path):
    place = webknossos(tmp_path, VOLUME)
    np.testing.assert_array_equal(contents(place), VOLUME)
    with pytest.raises(DataError, match="its layers are color, segmentation; choose one with `series`"):
        opened(place, series="nuclei")
    scenes = czi(tmp_path, VOLUME, channels=2, scenes=2)
    with pytest.raises(DataError, match="contains 2 scenes"):
        opened(scenes)
    with pytest.raises(DataError, match="there are 2 channels"):
        opened(scenes, series=1)
    np.testing.assert_array_equal(contents(scenes, series=1, channel=1), VOLUME + 2)
    file = imaris(tmp_path, VOLUME, channels=2)
    np.testing.assert_array_equal(contents(file, channel=1), VOLUME + 1)
    with pytest.raises(DataError, match="there are 2 channels"):
        opened(file)


def test_a_box_of_a_source(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack")
    source = opened(tmp_path / "a.tif", crop=Crop(z=(1, 4), y=(2, 20)))
    assert source.shape == (3, 18, 32) and "slice 1 " in source.where(0)
    np.testing.assert_array_equal(source.read(1, 3, slice(4, 9), slice(5, 9)), VOLUME[2:4, 6:11, 5:9])
    with pytest.raises(DataError, match="`crop` asks for z from 1 to 9, but there are 5"):
        opened(tmp_path / "a.tif", crop=Crop(z=(1, 9)))
