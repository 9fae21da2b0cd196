"""Pairs are checked for alignment, and separate images are passed on."""

import json

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers import write_pairs, write_volume

from emdiffuse.acquisition import acquire
from emdiffuse.config import Alignment
from emdiffuse.errors import DataError
from emdiffuse.pairs import open_pairs
from emdiffuse.registration import register
from emdiffuse.volume import open_volume


def run(store, folder, **settings):
    register(store, Alignment(**settings), folder / "out", folder / "q.json", folder / "q.png")
    return json.loads((folder / "q.json").read_text())


@pytest.mark.parametrize("scale", [1, 2])
def test_shifted_and_foreign_pairs_are_excluded(medulla, tmp_path, scale):
    field, other = medulla[0, :128, :128], medulla[60, 40:168, 40:168]
    shifted = medulla[0, 3 * scale : 128 + 3 * scale, :128]
    noise = np.random.default_rng(0).normal(0, 15, field.shape)

    def small(image):
        return image.astype(float).reshape(128 // scale, scale, 128 // scale, scale).mean((1, 3))

    noisy = [np.clip(small(f + noise), 0, 255).astype(np.uint8) for f in (field, shifted, other)]
    store = write_pairs(tmp_path / "a.ome.zarr", [(image, field) for image in noisy], scale)
    report = run(store, tmp_path)
    assert report["conclusion"] == "1 of 3 pairs are aligned within 1 pixels"
    good, moved, foreign = open_pairs(tmp_path / "out").fields
    assert "excluded" not in good and abs(good["quality"]["shift"]["y"]) < 0.2
    assert "pixels, more than `alignment.tolerance`" in moved["excluded"]
    assert moved["quality"]["shift"]["y"] == pytest.approx(-3, abs=0.3)
    assert "do not show the same field" in foreign["excluded"]
    moving = open_pairs(tmp_path / "out").image(good, "moving")
    np.testing.assert_array_equal(moving.array[:, :, :][0], noisy[0])
    assert imagecodecs.png_decode((tmp_path / "q.png").read_bytes()).std() > 10


def test_pairs_of_which_none_is_aligned_are_refused(medulla, tmp_path):
    image = medulla[0, :128, :128]
    store = write_pairs(tmp_path / "a.ome.zarr", [(np.roll(image, 5, 1), image)])
    with pytest.raises(DataError, match=r"no pair is aligned: .*shifted by [45]\.\d pixels"):
        run(store, tmp_path)
    assert not (tmp_path / "out").exists() and (tmp_path / "q.png").exists()
    run(store, tmp_path, tolerance=6.0)


def test_separate_images_have_no_slices_to_align(medulla, tmp_path):
    values = np.stack([medulla[0], medulla[60, ::-1]])
    store = write_volume(tmp_path / "a.ome.zarr", values, (50, 4, 4), kind="images")
    assert "separate image" in run(store, tmp_path)["conclusion"]
    np.testing.assert_array_equal(open_volume(tmp_path / "out").array[:, :, :], values)


def test_one_image_is_no_volume_but_an_image(medulla, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", medulla[0])
    with pytest.raises(DataError, match="only one slice; a volume needs two or more"):
        acquire(str(tmp_path / "a.tif"), (1, 1, 1), tmp_path / "a.ome.zarr", "a")
    acquire(str(tmp_path / "a.tif"), (1, 1, 1), tmp_path / "a.ome.zarr", "a", images=True)
    assert "1 separate image" in run(tmp_path / "a.ome.zarr", tmp_path)["conclusion"]
