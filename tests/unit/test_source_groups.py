"""The single image of a group or file is read; among several, one must be chosen."""

import zipfile

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from microscope_files import n5

from emdiffuse.config.reading import Reading
from emdiffuse.readers import open_source
from emdiffuse.runtime.errors import DataError

VOLUME = np.random.default_rng(0).integers(1, 250, (5, 24, 32)).astype(np.uint8)


def contents(place, **reading):
    source = open_source(str(place), reading=Reading(**reading))
    return source.read(0, source.shape[0])


def group_of_one(folder):
    """Write a group with one image, like bioformats2raw, and a table."""
    group = zarr.create_group(folder / "a.zarr")
    group.create_array("0/raw", data=VOLUME)
    group.create_array("table", data=np.arange(3))
    return folder / "a.zarr"


def group_of_one_zipped(folder):
    place = group_of_one(folder)
    with zipfile.ZipFile(folder / "a.ozx", "w") as archive:
        for file in place.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return folder / "a.ozx"


def n5_of_one(folder):
    n5(folder, VOLUME, path="a.n5/setup0/timepoint0/s0")
    return folder / "a.n5"


def hdf5_by_a_slash(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["volumes/raw"] = VOLUME
        file["volumes/labels"] = VOLUME
    return folder / "a.h5/volumes/raw"


def ome_of_several_files(folder):
    """Write an OME image with one file per slice, whose names do not indicate their order."""
    names = ["c", "a", "d", "b"]
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1">'
        f'<UUID FileName="{name}.tif">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    _, height, width = VOLUME.shape
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="{VOLUME.dtype}" '
        f'SizeX="{width}" SizeY="{height}" SizeZ="{len(names)}" SizeC="1" SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )
    (folder / "ome").mkdir()
    for name, plane in zip(names, VOLUME, strict=False):
        tifffile.imwrite(
            folder / f"ome/{name}.tif", plane, photometric="minisblack", metadata=None, description=xml
        )
    return folder / "ome"


@pytest.mark.parametrize(
    "write",
    [group_of_one, group_of_one_zipped, n5_of_one, hdf5_by_a_slash, ome_of_several_files],
)
def test_the_only_image_of_a_group_is_found(tmp_path, write):
    read = contents(write(tmp_path))
    np.testing.assert_array_equal(read, VOLUME[: len(read)])
    assert len(read) >= 4


def test_of_several_images_in_a_group_one_is_chosen(tmp_path):
    for i in range(12):
        zarr.create_array(tmp_path / f"a.zarr/{i}", data=VOLUME + i)
    with pytest.raises(DataError, match=r"contains 12 images \(0, 1, 2, 3, 4 and 7 more\); name one"):
        open_source(str(tmp_path / "a.zarr"))
    np.testing.assert_array_equal(contents(tmp_path / "a.zarr", series=10), VOLUME + 10)
    np.testing.assert_array_equal(contents(tmp_path / "a.zarr/2"), VOLUME + 2)
