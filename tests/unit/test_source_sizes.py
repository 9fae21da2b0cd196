"""Voxel sizes: read from every format that states them, consistent with the config, and never invented."""

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from microscope_files import amira, czi, digital_micrograph, fibsem, imaris, n5, nrrd, sem, webknossos

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.acquisition.image_pairs import acquire_pairs
from emdiffuse.config.reading import Reading
from emdiffuse.readers import open_source
from emdiffuse.readers.resampled import SquarePixels
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.volume import open_volume

VOLUME = np.random.default_rng(0).integers(1, 255, (5, 24, 32)).astype(np.uint8)
IMAGE = np.random.default_rng(1).integers(1, 255, (200, 60)).astype(np.uint8)


def size_of(place, **reading):
    return open_source(str(place), reading=Reading(**reading)).voxel_size


@pytest.mark.parametrize(
    "vendor",
    ["fei", "zeiss", "zeiss_old", "tescan", "tescan_beside", "jeol", "gatan", "cm", "inch", "imagej", "ome"],
)
def test_tiff_of_every_maker(tmp_path, vendor):
    path = sem(tmp_path, vendor, IMAGE)
    assert size_of(path) == (None, pytest.approx(8), pytest.approx(8))
    with pytest.raises(DataError, match=r"voxel of \? x 8 x 8 nm .* is 50 x 4 x 4 nm; .*override: true"):
        acquire(str(path), (50, 4, 4), tmp_path / "out.zarr", "a", images=True)
    assert not (tmp_path / "out.zarr").exists()
    acquire(str(path), (50, 4, 4), tmp_path / "out.zarr", "a", images=True, override=True)
    assert open_volume(tmp_path / "out.zarr").voxel_size == (50, 4, 4)
    acquire(str(path), None, tmp_path / "own.zarr", "a", images=True)
    assert open_volume(tmp_path / "own.zarr").voxel_size == pytest.approx((8, 8, 8))


def test_stacks_of_imagej_and_ome_tell_the_distance_of_slices(tmp_path):
    metadata = {"axes": "ZYX", "spacing": 0.05, "unit": "\\u00B5m"}
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, imagej=True, resolution=(125, 125), metadata=metadata)
    assert size_of(tmp_path / "a.tif") == pytest.approx((50, 8, 8))
    metadata = {"axes": "ZYX", "PhysicalSizeX": 8, "PhysicalSizeY": 8, "PhysicalSizeZ": 500}
    units = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "Å"}
    tifffile.imwrite(tmp_path / "b.tif", VOLUME, ome=True, metadata={**metadata, **units})
    assert size_of(tmp_path / "b.tif") == pytest.approx((50, 8, 8))


def hdf5(folder, **attributes):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("raw", data=VOLUME).attrs.update(attributes)
    return folder / "a.h5"


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"element_size_um": [0.04, 0.008, 0.008]}, (40, 8, 8)),
        ({"element_size_um": 0.008}, (8, 8, 8)),
        ({"element_size_um": np.array([0.008])}, (8, 8, 8)),
        ({"resolution": [40.0, 4.0, 4.0]}, (40, 4, 4)),  # CREMI
        ({"resolution": [0.0, np.nan, 4.0]}, (None, None, 4)),
        ({"element_size_um": [1.0, 1.0, 1.0]}, None),
        ({"element_size_um": "unknown"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_attributes_of_hdf5(tmp_path, attributes, size):
    assert size_of(hdf5(tmp_path, **attributes)) == (
        size if size is None else pytest.approx(size, nan_ok=True)
    )


COSEM = {"axes": ["z", "y", "x"], "scale": [40, 8, 8], "units": ["nm", "nm", "nm"]}


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"resolution": [8, 8, 40], "units": ["nm", "nm", "nm"]}, (40, 8, 8)),
        ({"pixelResolution": {"dimensions": [8, 8, 40], "unit": "nm"}}, (40, 8, 8)),
        ({"axes": ["z", "y", "x"], "resolution": [40, 8, 8], "units": ["nm", "nm", "nm"]}, (40, 8, 8)),
        ({"transform": COSEM}, (40, 8, 8)),
        ({"pixelResolution": {"dimensions": [1, 1, 1], "unit": "pixel"}}, None),
        ({"resolution": [8, 8, 40]}, None),
    ],
    ids=str,
)  # fmt: skip
def test_attributes_of_n5(tmp_path, attributes, size):
    assert size_of(n5(tmp_path, VOLUME, **attributes)) == size


def test_other_formats(tmp_path):
    expected = pytest.approx((40, 8, 8))
    assert size_of(czi(tmp_path, VOLUME)) == expected
    assert size_of(imaris(tmp_path, VOLUME)) == expected
    assert size_of(webknossos(tmp_path, VOLUME)) == expected
    assert size_of(nrrd(tmp_path / "a.nrrd", VOLUME)) == expected
    assert size_of(amira(tmp_path / "a.am", VOLUME)) == expected
    assert size_of(digital_micrograph(tmp_path / "a.dm4", [VOLUME], 4)) == expected
    for version in (1, 8):
        file = fibsem(tmp_path / "a.dat", VOLUME.transpose(1, 2, 0)[..., :1], version)
        assert size_of(file) == (None, 8, 8)
    assert size_of(amira(tmp_path / "b.am", VOLUME, unit=None)) is None


@pytest.mark.parametrize(
    ("cell", "size"),
    [
        ((80, 80, 400), (40, 8, 8)),
        ((0, 0, 0), None),
        ((1, 1, 1), None),
        ((80, 80, 0), (None, 8, 8)),
        ((np.nan, 80, 400), (40, 8, None)),
        ((0.008, 0.008, 0.04), None),
    ],
)
def test_cells_of_mrc(tmp_path, cell, size):
    """The last one is in micrometers: otherwise its pixels would be smaller than atoms."""
    with mrcfile.new(tmp_path / "a.mrc", VOLUME.astype(np.int16)) as file:
        file.set_volume()
        for axis, angstrom in zip("xyz", cell, strict=True):
            file.header.cella[axis] = angstrom * file.header[f"m{axis}"]
    assert size_of(tmp_path / "a.mrc") == size


def ome_zarr(folder, scale, unit):
    axes = [{"name": a, "type": "space", **({"unit": unit} if unit else {})} for a in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    metadata = {"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}}
    zarr.open_group(folder / "a.zarr", mode="w", attributes=metadata).create_array("0", data=VOLUME)
    return folder / "a.zarr"


@pytest.mark.parametrize(
    ("scale", "unit", "size"),
    [
        ([0.04, 0.008, 0.008], "micrometer", (40, 8, 8)),
        ([40, 8, 8], None, None),
        ([1, 1, 1], "micrometer", None),
        ([0, 8, 8], "nanometer", (None, 8, 8)),
        ([0.04, 0.004, 0.004], "nanometer", (0.04, None, None)),
    ],
)
def test_scales_of_ome_zarr(tmp_path, scale, unit, size):
    assert size_of(ome_zarr(tmp_path, scale, unit)) == size


@pytest.mark.parametrize("unit", ["pixel", "", "inch", "cm"])
def test_what_is_no_size_of_a_microscope_is_not_believed(tmp_path, unit):
    """Pixels without a unit, and printer resolutions."""
    tifffile.imwrite(
        tmp_path / "a.tif", VOLUME, imagej=True, resolution=(72, 72), metadata={"axes": "ZYX", "unit": unit}
    )
    assert size_of(tmp_path / "a.tif") is None
    with pytest.raises(DataError, match=r"a.tif: the file does not state its voxel size; set `voxel_size`"):
        acquire(str(tmp_path / "a.tif"), None, tmp_path / "out.zarr", "a")


def test_what_is_half_known_is_asked_for(tmp_path):
    path = sem(tmp_path, "cm", IMAGE)
    (tmp_path / "series").mkdir()
    for z in range(3):
        (tmp_path / f"series/{z}.tif").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="states pixels of 8 nm, but not the distance between slices"):
        acquire(str(tmp_path / "series"), None, tmp_path / "out.zarr", "a")
    sem(tmp_path, "cm", IMAGE, nanometers=9).rename(tmp_path / "series/3.tif")
    with pytest.raises(DataError, match=r"3\.tif: pixels are 9 nm, unlike .* the same magnification"):
        acquire(str(tmp_path / "series"), (50, 8, 8), tmp_path / "out.zarr", "a")


@pytest.mark.parametrize("images", [True, False])
def test_pixels_that_are_not_square_are_refused(tmp_path, images):
    metadata = {"axes": "ZYX", "spacing": 0.05, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, imagej=True, resolution=(125, 100), metadata=metadata)
    assert size_of(tmp_path / "a.tif") == pytest.approx((50, 10, 8))
    with pytest.raises(DataError, match="pixels are 10 nm high and 8 nm wide, but only square pixels"):
        acquire(str(tmp_path / "a.tif"), None, tmp_path / "out.zarr", "a", images)
    assert not (tmp_path / "out.zarr").exists()


def waves(rows, columns):
    """Return a smooth image sampled at positions in pixels of its finer axis."""
    return 128 + 60 * np.sin(rows[:, None] / 7) * np.cos(columns / 9)


@pytest.mark.parametrize("longer", ["y", "x"])
@pytest.mark.parametrize("given", [None, (50, 8, 8), (50, "y", "x")])
def test_pixels_that_are_not_square_are_resampled_on_request(tmp_path, longer, given):
    """Voxels of 50 x 10 x 8 nm, or 50 x 8 x 10, become 50 x 8 x 8; a crop equals that of the whole."""
    stretched, fine = (np.arange(60) + 0.5) * 1.25 - 0.5, np.arange(90)
    plane = waves(stretched, fine) if longer == "y" else waves(stretched, fine).T
    sides = (10.0, 8.0) if longer == "y" else (8.0, 10.0)
    volume = np.stack([plane, plane + 9]).astype(np.float32)
    tifffile.imwrite(
        tmp_path / "a.tif", volume, imagej=True, resolution=(1000 / sides[1], 1000 / sides[0]),
        metadata={"axes": "ZYX", "spacing": 0.05, "unit": "um"},
    )  # fmt: skip
    size = (50, *sides) if given and given[1] == "y" else given
    acquire(str(tmp_path / "a.tif"), size, tmp_path / "a.zarr", "a", reading=Reading(square_pixels=True))
    out = open_volume(tmp_path / "a.zarr")
    assert out.voxel_size == (50, 8, 8)
    read = out.array[:]
    assert read.shape == ((2, 75, 90) if longer == "y" else (2, 90, 75))
    expected = waves(np.arange(75), fine) if longer == "y" else waves(np.arange(75), fine).T
    inner = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(read[0][inner], expected[inner], atol=0.02)
    squared = SquarePixels(open_source(str(tmp_path / "a.tif")), (50, *sides))
    np.testing.assert_array_equal(squared.read(1, 2, slice(30, 41), slice(7, 9)), read[1:, 30:41, 7:9])


def test_a_size_that_is_not_square_is_never_written_as_if_it_were(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME)
    with pytest.raises(DataError, match="pixels are 9 nm high and 8 nm wide"):
        acquire(str(tmp_path / "a.tif"), (50, 9, 8), tmp_path / "a.zarr", "a", override=True)


def test_the_clean_images_of_pairs_tell_their_size(tmp_path):
    for role in ("img", "gt"):
        (tmp_path / "raw" / role).mkdir(parents=True)
        sem(tmp_path, "cm", IMAGE).rename(tmp_path / "raw" / role / "1.tif")
    with pytest.raises(DataError, match=r"gt/1\.tif: .*voxel of \? x 8 x 8 nm .* is 50 x 4 x 4 nm"):
        acquire_pairs(str(tmp_path / "raw"), (50, 4, 4), tmp_path / "a.zarr", "a")
    acquire_pairs(str(tmp_path / "raw"), (50, 4, 4), tmp_path / "a.zarr", "a", override=True)
    acquire_pairs(str(tmp_path / "raw"), (50, 8, 8), tmp_path / "b.zarr", "b")
