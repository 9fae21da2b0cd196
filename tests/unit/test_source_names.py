"""Slices by the numbers in their names, as written by microscopes and people."""

import numpy as np
import pytest
import tifffile

from emdiffuse.config.reading import Reading
from emdiffuse.readers import open_source
from emdiffuse.runtime.errors import DataError


def series(folder, names):
    """Write slices whose voxels all equal the slice number."""
    folder.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        tifffile.imwrite(folder / name, np.full((6, 4), value, np.uint8), photometric="minisblack")
    return folder


TWELVE = range(12)
NAMES = {
    "not padded": [f"img{i + 1}.tif" for i in TWELVE],
    "atlas": [f"slice_{i:05d}_z={i * 0.01:.4f}um.tif" for i in TWELVE],
    "fei": [f"SEM Image 2 - SliceImage - {i + 1:03d}.tif" for i in TWELVE],
    "date first": [
        f"2024-03-0{1 + i // 6}_{10 + i % 6:02d}-{i * 7 % 60:02d}_slice_{i:04d}.tif" for i in TWELVE
    ],
    "number first": [f"{i:04d}_2024030{1 + i // 6}{i * 37 % 24:02d}{i * 13 % 60:02d}.tif" for i in TWELVE],
    "a step of ten": [f"s_{10 * i:04d}.tif" for i in TWELVE],
    "a step and an odd start": [f"s_{7 + 5 * i}.tif" for i in TWELVE],
    "a constant number": [f"stack10nm_{i}.tif" for i in TWELVE],
    "large numbers": [f"s{2**40 + i}.tif" for i in TWELVE],
    "signs": [f"tilt_{5 * i - 30}deg.tif" for i in TWELVE],
    "signs first": [f"{5 * i - 30}deg.tif" for i in TWELVE],
    "spaces, braces and lines": [f"a {{b}} [c]\n{i}.tif" for i in TWELVE],
    "other scripts": [f"modèle №{i:02d} 切片.TIF" for i in TWELVE],
    "two that rise": [f"r{i + 3:02d}_z{i:03d}.tif" for i in TWELVE],
    "depth and number": [f"z{30 * i:05d}nm_{i:04d}.tif" for i in TWELVE],
    "the same twice": [f"{i:03d}_{i:03d}.tif" for i in TWELVE],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_number_that_counts_is_found(tmp_path, name):
    source = open_source(str(series(tmp_path / "a", NAMES[name])))
    np.testing.assert_array_equal(source.read(0, 12)[:, 0, 0], TWELVE)
    assert source.missing == ()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            [f"s_{i + (i >= 5):04d}.tif" for i in TWELVE],
            "number 5; add them, renumber the files, or set `repair",
        ),
        (
            [f"{c}_{i:03d}.tif" for c in ("ch0", "ch1") for i in range(6)],
            "'ch0_000.tif' and 'ch1_000.tif' have the",
        ),
        (
            ["a.tif", "b.tif", "c.tif"],
            "not numbered alike; .* if these are separate images, set `images: true`",
        ),
        (
            [*(f"s{i:03d}.tif" for i in range(11)), "overview.tif"],
            "'s000.tif' and 'overview.tif' are not numbered",
        ),
        (
            [f"up{i:02d}_down{11 - i:02d}.tif" for i in TWELVE],
            r"several numbers .* different orders .* write {z}",
        ),
        ([f"s_{10 * i:04d}.tif" for i in TWELVE if i not in (4, 5)], "number 40, 50; add them"),
    ],
)
def test_what_is_not_clear_is_asked_for(tmp_path, names, sentence):
    with pytest.raises(DataError, match=sentence):
        open_source(str(series(tmp_path / "a", names)))


def test_the_number_can_be_marked(tmp_path):
    folder = series(tmp_path / "a", [f"up{i:02d}_down{11 - i:02d}.tif" for i in TWELVE])
    for pattern, order in (("up{z}_down*.tif", 1), ("up*_down{z}.tif", -1)):
        source = open_source(f"{folder}/{pattern}")
        np.testing.assert_array_equal(source.read(0, 12)[:, 0, 0][::order], TWELVE)
    with pytest.raises(DataError, match="no image matching this pattern"):
        open_source(f"{folder}/left{{z}}.tif")


def test_a_step_that_is_stated_tells_what_is_missing(tmp_path):
    folder = series(tmp_path / "a", ["s0.tif", "s20.tif", "s60.tif"])
    source = open_source(str(folder), repair=True, reading=Reading(step=20))
    assert (source.shape[0], source.missing) == (4, (2,))
    with pytest.raises(DataError, match="number 40; add them"):
        open_source(str(folder), reading=Reading(step=20))
    with pytest.raises(
        DataError, match=r"the numbers rise by 15, but 's20.tif' is not among them; correct `step`"
    ):
        open_source(str(folder), reading=Reading(step=15))


def test_separate_images_need_no_numbers(tmp_path):
    folder = series(tmp_path / "a", ["axon.tif", "soma 2.tif", "soma 10.tif"])
    source = open_source(str(folder), images=True)
    assert [file.name for file in source.files] == ["axon.tif", "soma 2.tif", "soma 10.tif"]


def test_a_folder_of_two_formats(tmp_path):
    folder = series(tmp_path / "a", ["0.tif", "1.tif", "2.png"])
    with pytest.raises(
        DataError, match=r"files of several formats, such as '0.tif' and '2.png'; .* '\*.tif'"
    ):
        open_source(str(folder))
    assert open_source(f"{folder}/*.tif").shape[0] == 2


def test_names_with_brackets_are_taken_by_their_letters(tmp_path):
    folder = series(tmp_path / "raw [a] {z}*", ["0.tif", "1.tif"])
    assert open_source(str(folder)).shape[0] == 2
    tifffile.imwrite(tmp_path / "scan [1].tif", np.ones((2, 6, 4), np.uint8), photometric="minisblack")
    assert open_source(str(tmp_path / "scan [1].tif")).shape[0] == 2
