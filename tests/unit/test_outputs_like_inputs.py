"""Outputs are stored like their input: type, range, white, orientation, sizes."""

import gzip
import json
from fractions import Fraction

import mrcfile
import numpy as np
import pytest
import tifffile
from microscope_files import digital_micrograph, sem
from PIL import Image
from test_enhance import image_models  # noqa: F401  (a fixture)

from emdiffuse.config import Sampler
from emdiffuse.config.reading import Crop, Raw, Reading
from emdiffuse.enhance.one_file import Enhancement, enhance, plain_name
from emdiffuse.readers import open_source
from emdiffuse.runtime.errors import ConfigError, DataError


def restored(models, source, output, **options):
    enhance(source, output, Enhancement(models / "emdiffuse-n", Sampler(steps=1), device="cpu", **options))
    return tifffile.imread(output)


def like(found, image):
    return np.corrcoef(found.ravel().astype(float), image.ravel().astype(float))[0, 1] > 0.5


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int8", "float32", "float64", "uint32"])
def test_the_type_is_that_of_the_input(medulla, image_models, tmp_path, dtype):  # noqa: F811
    image = (
        (medulla[0, :40, :56].astype(np.int64) - (100 if dtype == "int8" else 0))
        .clip(-120, 120)
        .astype(dtype)
    )
    if "u" in dtype:
        image = medulla[0, :40, :56].astype(dtype)
    tifffile.imwrite(tmp_path / "raw.tif", image, photometric="minisblack", metadata=None)
    found = restored(image_models, tmp_path / "raw.tif", tmp_path / "out.tif")
    assert found.dtype == dtype and found.shape == image.shape
    assert like(found, image)


@pytest.mark.parametrize("code", [1, 4, 6])
def test_white_stays_white_and_the_first_row_where_it_was(medulla, image_models, tmp_path, code):  # noqa: F811
    image = medulla[0, :40, :56]
    tags = [(274, 3, 1, code, True)]
    tifffile.imwrite(
        tmp_path / "raw.tif", 255 - image, photometric="miniswhite", metadata=None, extratags=tags
    )
    found = restored(image_models, tmp_path / "raw.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        page = tif.pages.first
        assert page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        assert ("Orientation" in page.tags and page.tags["Orientation"].value == code) or code == 1
    assert found.shape == image.shape and like(found, 255 - image)
    upright = [open_source(str(tmp_path / name)).read(0, 1)[0] for name in ("raw.tif", "out.tif")]
    assert like(*upright)


def png(folder, image):
    Image.fromarray(image).save(folder / "raw.png")
    return folder / "raw.png"


def mrc_gz(folder, image):
    with mrcfile.new(folder / "raw.mrc", image.astype(np.int16)) as file:
        file.voxel_size = 80
    (folder / "raw.mrc.gz").write_bytes(gzip.compress((folder / "raw.mrc").read_bytes()))
    return folder / "raw.mrc.gz"


def dm4(folder, image):
    return digital_micrograph(folder / "raw.dm4", [image], 4)


def zarr(folder, image):
    import zarr as library

    library.save_array(folder / "raw.zarr", image[None])
    return folder / "raw.zarr"


def bare(folder, image):
    (folder / "raw.raw").write_bytes(image.tobytes())
    return folder / "raw.raw"


@pytest.mark.parametrize("write", [png, mrc_gz, dm4, zarr, bare])
def test_a_file_of_any_format_is_restored(medulla, image_models, tmp_path, write):  # noqa: F811
    image = medulla[0, :40, :56]
    raw = Raw(shape=image.shape, dtype="uint8") if write is bare else None
    found = restored(image_models, write(tmp_path, image), tmp_path / "out.tif", reading=Reading(raw=raw))
    assert found.shape == image.shape and like(found, image)
    size = open_source(str(tmp_path / "out.tif")).voxel_size
    assert size == (None if write in (png, zarr, bare) else (None, pytest.approx(8), pytest.approx(8)))


@pytest.mark.parametrize("vendor", ["fei", "tescan", "zeiss"])
def test_a_part_is_restored_and_a_data_bar_is_kept(medulla, image_models, tmp_path, vendor):  # noqa: F811
    image = medulla[0, :100, :64].copy()
    image[-40:] = 0
    image[-30:-20, 8:20] = 255
    path = sem(tmp_path, vendor, image)
    found = restored(image_models, path, tmp_path / "out.tif")
    np.testing.assert_array_equal(found[-40:], image[-40:])
    assert open_source(str(tmp_path / "out.tif")).bar == (0 if vendor == "zeiss" else 40)
    part = restored(
        image_models, path, tmp_path / "part.tif", reading=Reading(crop=Crop(y=(0, 60), x=(8, 48)))
    )
    assert part.shape == (60, 40) and like(part, image[:60, 8:48])
    of_part = open_source(str(tmp_path / "part.tif"))
    assert of_part.bar == 0 and of_part.voxel_size[2] == pytest.approx(8)


def test_sizes_that_nobody_knows_are_not_made_up(medulla, image_models, small_model, tmp_path):  # noqa: F811
    tifffile.imwrite(tmp_path / "raw.tif", medulla[:3, :40, :40], photometric="minisblack", metadata=None)
    for model, options in ((image_models / "emdiffuse-n", {}), (small_model, {"factor": Fraction(6)})):
        how = Enhancement(model, Sampler(steps=1), device="cpu", **options)
        enhance(tmp_path / "raw.tif", tmp_path / "out.tif", how, overwrite=True)
        assert open_source(str(tmp_path / "out.tif")).voxel_size is None
        enhance(tmp_path / "raw.tif", tmp_path / "out.ome.zarr", how)
        text = (tmp_path / "out.ome.zarr/zarr.json").read_text()
        images = json.loads(text)["attributes"]["ome"]["multiscales"]
        assert all("unit" not in axis for image in images for axis in image["axes"])


@pytest.mark.parametrize("spacing", [10, 13, 150])
def test_a_ratio_that_no_model_knows_names_the_users_file(medulla, small_model, tmp_path, spacing):
    path = tmp_path / "raw.tif"
    metadata = {"axes": "ZYX", "spacing": spacing, "unit": "nm"}
    tifffile.imwrite(path, medulla[:3, :40, :40], imagej=True, resolution=(0.1, 0.1), metadata=metadata)
    with pytest.raises(ConfigError) as caught:
        enhance(path, tmp_path / "out.tif", Enhancement(small_model, Sampler(steps=1), device="cpu"))
    assert str(caught.value).startswith(f"{path}: the anisotropy factor z/y is")


def test_what_is_said_must_be_what_the_file_says(medulla, small_model, tmp_path):
    metadata = {"axes": "ZYX", "spacing": 0.06, "unit": "um"}
    path = tmp_path / "raw.tif"
    tifffile.imwrite(path, medulla[:3, :40, :40], imagej=True, resolution=(100, 100), metadata=metadata)
    how = {"model": small_model, "sampler": Sampler(steps=1), "device": "cpu"}
    for options in ({"factor": Fraction(5)}, {"voxel_size": (50, 10, 10)}):
        with pytest.raises(DataError, match="voxel of 60 x 10 x 10 nm"):
            enhance(path, tmp_path / "out.tif", Enhancement(**how, **options))
        enhance(path, tmp_path / "out.tif", Enhancement(**how, **options, override=True))
        assert tifffile.imread(tmp_path / "out.tif").shape[0] == 11


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("denoise v1.2", "denoise_v1_2"), ("modèle", "modele"), ("-5deg", "5deg"), ("切片", "image"),
        ("a {b}\n", "a_b"), ("__", "image"), ("x" * 250, "x" * 70),
    ],
)  # fmt: skip
def test_names_that_the_configuration_takes(text, plain):
    assert plain_name(text, "image") == plain
