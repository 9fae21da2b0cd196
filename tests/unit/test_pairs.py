"""Image pairs: found in every layout, written to one store, and refused by name if unusable."""

import logging

import numpy as np
import pytest
import tifffile
import zarr

from emdiffuse.acquisition.image_pairs import acquire_pairs
from emdiffuse.acquisition.layouts import find_pairs
from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.stores.facts import PairField
from emdiffuse.stores.pairs import holds_pairs, open_pairs

VOXEL = (50, 4, 4)


def write(folder, files, shape=(20, 24), dtype=np.uint8):
    """Write one image per file, each with different values."""
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(10, 200, shape).astype(dtype)
        tifffile.imwrite(path, image)
    return folder


def published(kind, images=2):
    return [
        f"cell_{cell}/{kind}_{level}/{role}_image{image}.tif"
        for cell in (1, 2)
        for level in (1, 2)
        for image in range(1, images + 1)
        for role in ("wf", "gt")
    ]


LAYOUTS = {
    "noise levels": (published("noise_level"), 8, ("cell_1/noise_level_1/image1", "wf_image1", "gt_image1")),
    "zoom levels": (published("zoom_level"), 8, ("cell_1/zoom_level_1/image1", "wf_image1", "gt_image1")),
    "two folders": (["img/1.tif", "img/2.tif", "gt/1.tif", "gt/2.tif"], 2, ("1", "img/1", "gt/1")),
    "dwell times": (
        [f"Brain_1/Brain__4w_{n:02d}.tif" for n in range(4, 10)],
        5,
        ("Brain_1/Brain__4w_04", "4w_04", "4w_09"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_found(tmp_path, layout):
    files, count, (name, moving, fixed) = LAYOUTS[layout]
    found = find_pairs(write(tmp_path, files))
    assert len(found.pairs) == count and not found.alone
    first = found.pairs[0]
    assert first.name == name and moving in str(first.moving) and fixed in str(first.fixed)


def test_what_was_found_is_said(tmp_path, caplog):
    write(tmp_path / "raw", published("noise_level"))
    with caplog.at_level(logging.INFO):
        acquire_pairs(str(tmp_path / "raw"), VOXEL, tmp_path / "a.ome.zarr", "a")
    assert "found 2 cells x 2 noise levels, 8 pairs" in caplog.text


def test_series_of_two_magnifications(tmp_path):
    """The published raw form: 4w_09 is the clean image of every field, 2w shows twice the field."""
    series = [f"{region}/Brain__{m}w_{n:02}.tif" for region in (1, 2) for m in (2, 4) for n in (1, 2, 3)]
    folder = write(tmp_path / "raw", [*series, "1/Brain__4w_09.tif", "2/Brain__4w_09.tif"], (40, 48))
    with pytest.raises(DataError, match="imaged at two magnifications; choose by `scale`"):
        find_pairs(folder)
    denoise, enlarge = find_pairs(folder, scale=1), find_pairs(folder, scale=2)
    for found, magnification in ((denoise, 4), (enlarge, 2)):
        assert [pair.name for pair in found.pairs] == [
            f"{region}/Brain__{magnification}w_{n:02}" for region in (1, 2) for n in (1, 2, 3)
        ]
        assert {pair.fixed.name for pair in found.pairs} == {"Brain__4w_09.tif"}
        assert {pair.level for pair in found.pairs} == {f"dwell_time_{n}" for n in (1, 2, 3)}
    assert enlarge.summary() == "found 2 specimens x 3 dwell times, 6 pairs"
    acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a", scale=2)
    pairs = open_pairs(tmp_path / "a.ome.zarr")
    assert pairs.scale == 2
    wide = tifffile.imread(folder / "1/Brain__2w_01.tif")
    np.testing.assert_array_equal(
        pairs.image(pairs.fields[0], "moving").array[:, :, :][0], wide[10:30, 12:36]
    )
    assert pairs.image(pairs.fields[0], "fixed").array.shape == (1, 40, 48)


def test_nothing_is_done_twice_for_pairs(tmp_path, caplog):
    folder = write(tmp_path / "raw", published("noise_level"))
    for invert in (False, False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a", invert=invert)
    assert "nothing to do" not in caplog.text
    pairs = open_pairs(tmp_path / "a.ome.zarr")
    assert all(pairs.image(pairs.fields[0], role).intensity.invert for role in ("moving", "fixed"))
    with caplog.at_level(logging.INFO):
        acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a", invert=True)
    assert "nothing to do" in caplog.text


def test_every_kind_of_bad_pair_is_named_and_the_rest_goes_through(tmp_path, caplog):
    folder = write(tmp_path / "raw", [f"{role}/{n}.tif" for n in range(8) for role in ("img", "gt")])
    random = np.random.default_rng(0)
    (folder / "gt/0.tif").unlink()
    tifffile.imwrite(folder / "img/1.tif", random.integers(0, 99, (31, 24)).astype(np.uint8))  # another size
    tifffile.imwrite(folder / "img/2.tif", random.integers(0, 99, (10, 12)).astype(np.uint8))  # magnification
    tifffile.imwrite(folder / "gt/3.tif", np.zeros((20, 24), np.uint8))
    tifffile.imwrite(folder / "img/4.tif", random.integers(0, 9999, (20, 24)).astype(np.uint16))
    (folder / "gt/5.tif").write_bytes((folder / "gt/5.tif").read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a", keep_going=True)
    pairs = open_pairs(tmp_path / "a.ome.zarr")
    assert [field.name for field in pairs.fields] == ["6", "7"]
    for sentence in (
        "there is no partner for img/0.tif; skipped",
        f"img/1.tif: it has 31 x 24 pixels and {folder}/gt/1.tif has 20 x 24",
        f"img/2.tif: it has 10 x 12 pixels and {folder}/gt/2.tif has 20 x 24, but it should have as many",
        "gt/3.tif: every pixel is 0",
        f"img/4.tif: its pixels are uint16, but those of {folder}/gt/4.tif are uint8",
        "gt/5.tif",
    ):
        assert sentence in caplog.text
    assert set(pairs.facts.skipped) == {"img/0.tif", "1", "2", "3", "4", "5"}


def test_what_no_pair_can_be_read_for_is_said(tmp_path):
    folder = write(tmp_path / "raw", ["img/1.tif", "gt/1.tif"], dtype=np.complex64)
    with pytest.raises(DataError, match=r"img/1\.tif: pixels of type complex64 are not supported"):
        acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a")
    write(tmp_path / "raw", ["img/1.tif", "gt/1.tif"])
    with pytest.raises(DataError, match=r"its size is not half of .*gt/1\.tif, .*; check `scale`, crop"):
        acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a", scale=2)


def test_any_naming_is_described_by_a_pattern(tmp_path):
    write(tmp_path, ["m1/s3-noisy.tiff", "m1/s3-clean.tiff", "m1/notes.tif"])
    with pytest.raises(DataError, match=r"no known layout .* describe it by `pattern`"):
        find_pairs(tmp_path)
    (pair,) = find_pairs(tmp_path, "{specimen}/{field}-{role}.tif").pairs
    assert (pair.specimen, pair.name, pair.moving.name) == ("m1", "m1/s3", "s3-noisy.tiff")
    with pytest.raises(DataError, match=r"it must have \{role\} and \{field\}"):
        find_pairs(tmp_path, "{specimen}/{field}.tif")
    with pytest.raises(DataError, match="no pair of images matches the pattern"):
        find_pairs(tmp_path, "{role}/{field}.tif")


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_store_holds_the_images(tmp_path, scale, dtype):
    files = ["cell_1/l_1/wf_a.tif", "cell_1/l_1/gt_a.tif"]
    write(tmp_path / "raw", files[:1], (20, 24), dtype)
    write(tmp_path / "raw", files[1:], (20 * scale, 24 * scale), dtype)
    acquire_pairs(str(tmp_path / "raw"), VOXEL, tmp_path / "a.ome.zarr", "a")
    pairs = open_pairs(tmp_path / "a.ome.zarr")
    assert pairs.scale == scale and len(pairs.facts.sources) == 2
    (field,) = pairs.fields
    assert field == PairField(group="0000", name="cell_1/l_1/a", specimen="cell_1", level="l_1")
    assert list(zarr.open_group(tmp_path / "a.ome.zarr", mode="r").groups())  # other programs find them, too
    for role, file in zip(("moving", "fixed"), files, strict=True):
        volume, raw = pairs.image(field, role), tifffile.imread(tmp_path / "raw" / file)
        np.testing.assert_array_equal(volume.array[:, :, :][0], raw)
        assert volume.array.dtype == dtype
        low = volume.intensity.low
        assert (raw < low).mean() < 0.005 <= (raw <= low).mean()
    assert pairs.image(field, "moving").voxel_size == (50, 4 * scale, 4 * scale)


def test_a_volume_is_no_store_of_pairs(tmp_path):
    from helpers import write_volume

    path = write_volume(tmp_path / "v.ome.zarr", np.ones((2, 8, 8), np.uint8), (1, 1, 1))
    assert not holds_pairs(path)
    with pytest.raises(StoreError, match="expected a store of image pairs"):
        open_pairs(path)


def spoil(folder, how):
    bad = folder / "cell_1/noise_level_1/wf_image1.tif"
    if how == "missing partner":
        bad.unlink()
    elif how == "other type":
        tifffile.imwrite(bad, np.random.default_rng(0).integers(0, 9999, (20, 24)).astype(np.uint16))
    elif how == "black":
        tifffile.imwrite(bad, np.zeros((20, 24), np.uint8))
    elif how == "other size":
        tifffile.imwrite(bad, np.random.default_rng(0).integers(0, 99, (31, 24)).astype(np.uint8))
    elif how == "cut off":
        bad.write_bytes(bad.read_bytes()[:100])
    elif how == "several pages":
        tifffile.imwrite(bad, np.random.default_rng(0).integers(0, 99, (5, 20, 24)).astype(np.uint8))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing partner", "there is no partner for cell_1/noise_level_1/gt_image1.tif;"),
        ("other type", "wf_image1.tif: its pixels are uint16, but those of {}/gt_image1.tif are uint8"),
        ("black", "wf_image1.tif: every pixel is 0"),
        (
            "other size",
            "wf_image1.tif: it has 31 x 24 pixels and {}/gt_image1.tif has 20 x 24, but it should",
        ),
        ("cut off", "wf_image1.tif"),
        ("several pages", "wf_image1.tif: expected a single image, but the file contains 5"),
    ],
)
def test_a_bad_pair_is_named_and_left_out_if_wanted(tmp_path, how, message, caplog):
    folder = write(tmp_path / "raw", published("noise_level"))
    spoil(folder, how)
    message = message.format(folder / "cell_1/noise_level_1")
    with pytest.raises(DataError, match=message):
        acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a")
    assert not (tmp_path / "a.ome.zarr").exists()
    acquire_pairs(str(folder), VOXEL, tmp_path / "a.ome.zarr", "a", keep_going=True)
    pairs = open_pairs(tmp_path / "a.ome.zarr")
    assert len(pairs.fields) == 7 and len(pairs.facts.skipped) == 1
    assert message in caplog.text


def test_a_folder_of_other_things_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        find_pairs(tmp_path / "nowhere")
    with pytest.raises(DataError, match="there are no images"):
        find_pairs(tmp_path)
