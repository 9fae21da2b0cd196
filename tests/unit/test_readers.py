"""Raw files: valid ones are read lazily and exactly, faulty ones give one sentence that names the file."""

import re

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from emdiffuse.readers import open_source, source_files
from emdiffuse.runtime.errors import DataError

STACK = np.arange(5 * 12 * 10, dtype=np.uint16).reshape(5, 12, 10) * 7


def write(path, values, **options):
    tifffile.imwrite(path, values, photometric="minisblack", **options)
    return path


def numbered(folder, names, shape=(6, 4), dtype=np.uint8):
    """Write slices whose voxels all equal the slice number."""
    folder.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        write(folder / name, np.full(shape, value, dtype))
    return folder


def only_error(source):
    """Open and read a faulty source, and return the error as one sentence."""
    with pytest.raises(DataError) as caught:
        slices = open_source(str(source))
        slices.read(0, slices.shape[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"bigtiff": True},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"metadata": None},
        {"compression": "zlib", "tile": (16, 16)},
        {"byteorder": ">"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_file_of_many_pages_is_read_slab_by_slab(tmp_path, options, dtype):
    if options.get("imagej") and dtype == "int16":  # which ImageJ's format has not
        dtype = "uint16"
    values = STACK.astype(dtype)
    slices = open_source(str(write(tmp_path / "a.tif", values, **options)))
    assert (slices.shape, slices.dtype, slices.files) == ((5, 12, 10), np.dtype(dtype), [tmp_path / "a.tif"])
    assert slices.dtype.isnative
    np.testing.assert_array_equal(slices.read(1, 4), values[1:4])
    np.testing.assert_array_equal(slices.read(4, 5), values[4:])
    with pytest.raises(IndexError):
        slices.read(4, 6)


def test_a_stack_of_one_directory_is_read_by_its_offset(tmp_path):
    """ImageJ writes stacks of more than 4 GB this way: the pixels of all slices after one directory."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK.astype(">u2"), byteorder=">", photometric="minisblack", truncate=True)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    np.testing.assert_array_equal(open_source(str(path)).read(1, 3), STACK[1:3])
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated" in only_error(path)


@pytest.mark.parametrize(
    "names",
    [
        [f"{n}.tif" for n in range(12)],
        [f"{n:04}.tif" for n in range(1, 13)],
        [f"s2_10nm_slice{n}_raw.TIFF" for n in range(95, 107)],
        [f"2024-05-01_{9 * n}_{n}.tif" for n in range(12)],
    ],
)
def test_numbered_slices_come_in_the_order_of_their_numbers(tmp_path, names):
    folder = numbered(tmp_path / "stack", names)
    (folder / "notes.txt").write_text("not a slice")
    (folder / "._0.tif").write_bytes(b"left by another system")
    for source in (folder, folder / "*.[tT]*"):
        slices = open_source(str(source))
        assert [file.name for file in slices.files] == names
        np.testing.assert_array_equal(slices.read(0, 12)[:, 0, 0], range(12))
    assert sorted(file.name for file in source_files(str(folder))) == sorted(names)


def test_a_relative_glob_and_a_folder_with_one_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(numbered(tmp_path / "raw", []) / "stack.tif", STACK)
    assert open_source("raw").shape == (5, 12, 10)
    assert open_source("raw/*.tif").shape == (5, 12, 10)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["0.tif", "1.tif", "3.tif"], "missing between '0.tif' and '3.tif': number 2;"),
        (["a1.tif", "a9.tif"], "number 2, 3, 4, 5, 6 and 2 more"),
        (["1.tif", "01.tif"], "'01.tif' and '1.tif' have the same number 1"),
        (["1.tif", "1.tiff", "2.tif"], "have the same number 1"),
        (["1.tif", "slice2.tif"], "not numbered alike"),
        (["first.tif", "second.tif"], "not numbered alike"),
        ([], "this folder contains no image"),
    ],
)
def test_wrong_names_in_a_folder(tmp_path, names, sentence):
    folder = numbered(tmp_path / "stack", names)
    error = only_error(folder)
    assert sentence in error
    assert str(folder) in error


def test_a_missing_source(tmp_path):
    assert "no such file or folder" in only_error(tmp_path / "nowhere.tif")
    assert "no image matching this pattern" in only_error(tmp_path / "*.tif")


def test_types_that_are_not_supported(tmp_path):
    error = only_error(write(tmp_path / "a.tif", np.zeros((3, 8, 8), np.complex64)))
    assert f"{tmp_path}/a.tif: pixels of type complex64" in error
    assert "convert them to uint8, uint16, int16, float32" in error


def bad_rgb(path):
    tifffile.imwrite(path, np.arange(72, dtype=np.uint8).reshape(6, 4, 3), photometric="rgb")


def bad_palette(path):
    tifffile.imwrite(
        path,
        np.zeros((6, 4), np.uint8),
        photometric="palette",
        colormap=np.arange(768, dtype=np.uint16).reshape(3, 256),
    )


def bad_shape(path):
    write(path, np.zeros((6, 5), np.uint8))


def bad_dtype(path):
    write(path, np.zeros((6, 4), np.uint16))


def bad_pages(path):
    write(path, np.zeros((2, 6, 4), np.uint8))


def bad_nan(path):
    write(path, np.full((6, 4), np.nan, np.float32))


def bad_infinity(path):
    write(path, np.where(np.eye(6, 4) > 0, np.inf, 0).astype(np.float32))


def bad_empty(path):
    path.write_bytes(b"")


def bad_text(path):
    path.write_text("this is not a TIFF")


def bad_truncated(path):
    write(path, np.zeros((6, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:-30])


def bad_pixels(path):
    """Damage the compressed pixels: only decoding them finds it."""
    tifffile.imwrite(
        path, np.zeros((6, 4), np.uint8), photometric="minisblack", compression="zlib", metadata=None
    )
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 6] = b"\xff" * 6
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (bad_rgb, "colour image"),
        (bad_palette, "colour image"),
        (bad_shape, "6 x 5 pixels of uint8, unlike .*0.tif with 6 x 4 pixels of uint8"),
        (bad_dtype, "6 x 4 pixels of uint16, unlike"),
        (bad_pages, "2 pages"),
        (bad_nan, "NaN or infinite"),
        (bad_infinity, "NaN or infinite"),
        (bad_empty, "the file is empty"),
        (bad_text, "not a readable TIFF"),
        (bad_truncated, "truncated"),
        (bad_pixels, "not a readable TIFF"),
    ],
)
def test_one_bad_slice_is_named(tmp_path, spoil, sentence):
    floating = spoil in (bad_nan, bad_infinity)
    folder = numbered(
        tmp_path / "stack", ["0.tif", "1.tif", "2.tif"], dtype=np.float32 if floating else np.uint8
    )
    spoil(folder / "1.tif")
    error = only_error(folder)
    assert error.startswith(f"{folder}/1.tif")
    assert re.search(sentence, error)


def test_metadata_are_checked_before_any_pixel_is_read(tmp_path, monkeypatch):
    folder = numbered(tmp_path / "stack", ["0.tif", "1.tif", "2.tif"])
    bad_dtype(folder / "2.tif")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("a pixel was read"))
    with pytest.raises(DataError, match=r"2\.tif"):
        open_source(str(folder))


def test_one_bad_page_is_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for width in (4, 4, 5):
            writer.write(np.zeros((6, width), np.uint8), photometric="minisblack", metadata=None)
    error = only_error(tmp_path / "a.tif")
    assert "contains 2 images (0: 2 x 6 x 4 uint8; 1: 6 x 5 uint8); choose one with `series`" in error
    values = np.zeros((3, 6, 4), np.float32)
    values[1, 2, 3] = np.nan
    assert "slice 1 (counted from 0)" in only_error(write(tmp_path / "b.tif", values))


def test_two_loops_are_no_volume(tmp_path):
    both = np.zeros((3, 2, 6, 4), np.uint8)
    assert "there are 2 channels (0, 1); choose one with `channel`" in only_error(
        write(tmp_path / "a.tif", both, ome=True, metadata={"axes": "ZCYX"})
    )


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), compression=st.sampled_from([None, "zlib"]))
def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path_factory, share, compression):
    path = tmp_path_factory.mktemp("cut") / "a.tif"
    whole = write(path, STACK, compression=compression).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    try:
        slices = open_source(str(path))
        values = slices.read(0, slices.shape[0])
    except DataError as error:
        assert str(error).startswith(str(path))
    else:  # nothing but padding was cut off
        np.testing.assert_array_equal(values, STACK)
