"""Pairs are registered, measured, and excluded if that fails; separate images are passed on."""

import json

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers import ROOT, write_pairs, write_volume

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.config import Alignment
from emdiffuse.registration.align import align
from emdiffuse.registration.homography import shift_of
from emdiffuse.registration.pair import NotRegistered, register_pair
from emdiffuse.registration.raft import Flow
from emdiffuse.registration.register import register
from emdiffuse.registration.warping import composed, correlation, identity, mapped, translation, warp
from emdiffuse.report.tables import field_rows
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.stores.pairs import open_pairs
from emdiffuse.stores.volume import open_volume

BRAIN = ROOT / "resources/demo/brain/cell_1/noise_level_1"


@pytest.fixture(scope="module")
def flow():
    return Flow()


@pytest.fixture(scope="module")
def brain():
    """A real clean image, and one as noisy as a real fast scan, of the same field."""
    clean, noisy = (tifffile.imread(BRAIN / f"{role}_image1.tif").astype(np.float32) for role in ("gt", "wf"))
    noise = np.roll(noisy - clean, (200, 300), (0, 1))
    return clean[:320, :352], (clean + noise)[:320, :352]


def deformation(shape, seed, shift=(14, -9), degrees=2.0, local=4.0):
    """Return a map of a rotation, a shift and a smooth local deformation, in pixels."""
    rng = np.random.default_rng(seed)
    knots = [
        cv2.resize(rng.standard_normal((6, 6)), shape[::-1], interpolation=cv2.INTER_CUBIC) for _ in "yx"
    ]
    smooth = np.stack(knots) * local / np.hypot(*knots).max()
    angle, centre = np.deg2rad(degrees), np.array(shape)[:, None, None] / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = np.einsum("ij,jyx->iyx", turn, identity(shape) + smooth - centre) + centre
    return (places + np.array(shift)[:, None, None]).astype(np.float32)


def error(displacement, truth, mask):
    """Return the mean end-point error inside a mask, away from the edges."""
    inner = np.zeros_like(mask)
    inner[16:-16, 16:-16] = True
    apart = np.hypot(*(identity(mask.shape) + displacement - truth))
    return apart[mask & inner].mean()


def run(store, folder, **settings):
    register(store, Alignment(**settings), folder / "out", folder / "q.json", folder / "q.png")
    return json.loads((folder / "q.json").read_text())


def uint8(image):
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def test_maps_and_homographies_agree_with_arithmetic():
    places = identity((3, 4))
    np.testing.assert_array_equal(places[:, 2, 3], [2, 3])
    moved = mapped(translation(np.array([1.5, -2.0])), places)
    np.testing.assert_allclose(moved[:, 2, 3], [3.5, 1])
    ramp = np.stack([10 * places[0] + places[1]] * 2)
    np.testing.assert_allclose(composed(places[:, 1:2, 1:2] + 0.5, ramp)[0], [[16.5]])
    image = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(warp(image, places), image)
    assert correlation(image, 5 - 2 * image, np.ones((3, 4), bool)) == pytest.approx(-1)
    assert correlation(image, np.ones((3, 4)), np.ones((3, 4), bool)) == 0


@pytest.mark.parametrize("shift", [(0, 0), (22, -34), (-40, 12)])
def test_the_shift_of_noisy_images_is_found(brain, shift):
    clean, noisy = brain
    fixed = clean[48:-48, 48:-48]
    moving = noisy[48 - shift[0] : 320 - 48 - shift[0], 48 - shift[1] : 352 - 48 - shift[1]]
    np.testing.assert_allclose(shift_of(fixed, moving), shift, atol=2)


def test_a_deformed_noisy_image_is_registered_below_a_third_of_a_pixel(brain, flow):
    clean, noisy = brain
    truth = deformation(clean.shape, 0)
    fixed = warp(clean, truth)
    found = register_pair(fixed, uint8(noisy), flow)
    coarse = register_pair(fixed, uint8(noisy), None)
    assert error(found.displacement, truth, found.mask) < 0.35
    assert error(found.displacement, truth, found.mask) * 3 < error(coarse.displacement, truth, coarse.mask)
    ncc = found.quality["ncc"]
    assert ncc["before"] < ncc["homography"] < ncc["after"] and ncc["after"] > 0.97
    assert found.moving.dtype == np.uint8 and found.moving.shape == fixed.shape
    assert found.quality["forward_backward"] < 0.3 and found.quality["inliers"] > 50
    assert found.quality["rejected"] == pytest.approx(1 - found.mask.mean())
    known = (truth >= 0).all(0) & (truth <= np.array(clean.shape)[:, None, None] - 1).all(0)
    assert (found.mask == known).mean() > 0.98 and not known.all()


def test_an_aligned_pair_is_left_as_it_is_to_the_bit(brain, flow):
    clean, noisy = brain
    found = register_pair(uint8(clean)[:192, :192], uint8(noisy)[:192, :192], flow)
    assert not found.quality["changed"] and found.mask.all()
    np.testing.assert_array_equal(found.moving, uint8(noisy)[:192, :192])


def test_a_shift_of_a_fraction_of_a_pixel_is_taken_away(brain, flow):
    clean, noisy = brain
    shift = (0.15, -0.1)
    moving = warp(noisy, identity(noisy.shape) - np.array(shift, np.float32)[:, None, None])
    found = register_pair(clean, moving, flow)
    assert found.quality["changed"]
    np.testing.assert_allclose(found.displacement.mean((1, 2)), shift, atol=0.04)
    assert np.ptp(found.displacement, (1, 2)).max() < 1e-3  # noise alone deforms nothing


def test_sixteen_bits_and_another_contrast_are_registered_to_eight(brain, flow):
    clean, noisy = brain
    truth = deformation(clean.shape, 1, local=3.0)
    moving = (9000 + 200 * noisy).astype(np.uint16)
    found = register_pair(uint8(warp(clean, truth)), moving, flow)
    assert error(found.displacement, truth, found.mask) < 0.35
    assert found.moving.dtype == np.uint16 and found.moving[found.mask].mean() > 20000


def test_what_cannot_be_registered_is_refused_with_its_reason(brain, medulla, flow):
    clean, noisy = (image[:256, :256] for image in brain)
    with pytest.raises(NotRegistered, match="moving image is blank"):
        register_pair(clean, np.zeros_like(noisy), flow)
    with pytest.raises(NotRegistered, match=r"not show the same field|no part can be registered .1 tiles"):
        register_pair(clean[:184, :184], medulla[0], flow)
    wide = cv2.resize(noisy, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    with pytest.raises(NotRegistered, match=r"differ in magnification by a factor of 1\.(4[5-9]|5)"):
        register_pair(clean, wide, flow)


def test_bad_pairs_are_named_and_the_rest_goes_through(brain, medulla, tmp_path):
    clean, noisy = (uint8(image)[:256, :256] for image in brain)
    shifted = uint8(warp(brain[1], identity((256, 256)) + np.array([5.3, 3.6], np.float32)[:, None, None]))
    pairs = [(shifted, clean), (np.zeros_like(noisy), clean), (medulla[0], clean[:184, :184])]
    report = run(write_pairs(tmp_path / "a.ome.zarr", pairs), tmp_path)
    good, black, foreign = open_pairs(tmp_path / "out").fields
    assert good.excluded is None and good.quality["changed"]
    assert good.quality["displacement"]["median"] == pytest.approx(np.hypot(5.3, 3.6), abs=0.3)
    assert "blank" in black.excluded and foreign.excluded
    assert report["conclusion"].startswith("1 of 3 pairs are aligned, 1 of them after")
    rows = field_rows(report["fields"])
    assert [row[-1].split()[0] for row in rows] == ["warped", "its", "no"] or "field" in rows[2][-1]
    assert float(rows[0][1]) < float(rows[0][3]) and rows[1][1] == ""
    assert "cell_1/noise_level_1/image1: the moving image is blank" in report["conclusion"]
    store = open_pairs(tmp_path / "out")
    image, mask = (store.image(good, name).array[:, :, :][0] for name in ("moving", "mask"))
    np.testing.assert_array_equal(store.image(good, "fixed").array[:, :, :][0], clean)
    inner = np.s_[16:-16, 16:-16]
    assert mask[inner].all() and not mask[:5].any()
    assert np.corrcoef(image[inner].ravel(), noisy[inner].ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(store.image(black, "moving").array[:, :, :][0], 0)
    assert not store.has_mask(black)
    for picture in (tmp_path / "q.png", tmp_path / "q" / "0000.png"):
        assert imagecodecs.png_decode(picture.read_bytes()).std() > 10


def test_a_coarse_image_is_warped_on_its_own_pixels(brain, tmp_path):
    clean, noisy = brain
    moved = warp(noisy, identity((320, 352)) + np.array([9.0, -7.0], np.float32)[:, None, None])
    coarse = uint8(moved.reshape(160, 2, 176, 2).mean((1, 3)))
    run(write_pairs(tmp_path / "a.ome.zarr", [(coarse, uint8(clean))], scale=2), tmp_path)
    store = open_pairs(tmp_path / "out")
    (field,) = store.fields
    image, mask = (store.image(field, name).array[:, :, :][0] for name in ("moving", "mask"))
    assert image.shape == (160, 176) and mask.shape == (320, 352)
    assert field.quality["displacement"]["median"] == pytest.approx(np.hypot(4.5, 3.5), abs=0.2)
    target = clean.reshape(160, 2, 176, 2).mean((1, 3))
    inner = np.s_[12:-12, 12:-12]
    found = np.corrcoef(image[inner].ravel(), target[inner].ravel())[0, 1]
    assert found > 0.95 > np.corrcoef(coarse[inner].ravel(), target[inner].ravel())[0, 1]


@pytest.mark.parametrize("scale", [1, 2])
def test_the_check_alone_excludes_shifted_and_foreign_pairs(medulla, tmp_path, scale):
    field, other = medulla[0, :128, :128], medulla[60, 40:168, 40:168]
    shifted = medulla[0, 3 * scale : 128 + 3 * scale, :128]
    noise = np.random.default_rng(0).normal(0, 15, field.shape)

    def small(image):
        return image.astype(float).reshape(128 // scale, scale, 128 // scale, scale).mean((1, 3))

    noisy = [uint8(small(f + noise)) for f in (field, shifted, other)]
    store = write_pairs(tmp_path / "a.ome.zarr", [(image, field) for image in noisy], scale)
    report = run(store, tmp_path, method="check")
    assert report["conclusion"].startswith("1 of 3 pairs are aligned")
    good, moved, foreign = open_pairs(tmp_path / "out").fields
    assert good.excluded is None and good.quality["displacement"]["median"] < 0.2
    assert "pixels, more than `alignment.tolerance`" in moved.excluded
    assert "do not show the same field" in foreign.excluded
    moving = open_pairs(tmp_path / "out").image(good, "moving")
    np.testing.assert_array_equal(moving.array[:, :, :][0], noisy[0])


def test_pairs_of_which_none_is_aligned_are_refused(medulla, tmp_path):
    image = medulla[0, :128, :128]
    store = write_pairs(tmp_path / "a.ome.zarr", [(np.roll(image, 5, 1), image)])
    with pytest.raises(DataError, match=r"no pair can be registered: .*shifted by [45]\.\d pixels"):
        run(store, tmp_path, method="check")
    assert not (tmp_path / "out").exists() and (tmp_path / "q.png").exists()
    run(store, tmp_path, method="check", tolerance=6.0)


def test_one_pair_is_aligned_without_a_workflow(brain, tmp_path):
    clean = uint8(brain[0])[:256, :288]
    tifffile.imwrite(tmp_path / "clean.tif", clean)
    moved = warp(brain[1], identity((256, 288)) + np.array([6.4, -3.2], np.float32)[:, None, None])
    tifffile.imwrite(tmp_path / "noisy.tif", uint8(moved))
    align(tmp_path / "noisy.tif", tmp_path / "clean.tif", tmp_path / "out.tif")
    image, moves, mask = (tifffile.imread(tmp_path / f"out{part}.tif") for part in ("", ".flow", ".mask"))
    assert (
        image.dtype == np.uint8 and image.shape == clean.shape == mask.shape and moves.shape == (2, 256, 288)
    )
    np.testing.assert_allclose(np.median(moves, (1, 2)), [-6.4, 3.2], atol=0.2)
    quality = json.loads((tmp_path / "out.json").read_text())
    assert quality["ncc"]["after"] > 0.97 > quality["ncc"]["before"]
    assert imagecodecs.png_decode((tmp_path / "out.png").read_bytes()).std() > 10
    tifffile.imwrite(tmp_path / "black.tif", np.zeros_like(clean))
    with pytest.raises(DataError, match=r"black\.tif: cannot be aligned to .*clean\.tif: .*blank"):
        align(tmp_path / "black.tif", tmp_path / "clean.tif", tmp_path / "no.tif")
    with pytest.raises(ConfigError, match=r"choose a name that ends in \.tif"):
        align(tmp_path / "noisy.tif", tmp_path / "clean.tif", tmp_path / "no.png")
    assert not list(tmp_path.glob("*no.*"))


def test_separate_images_have_no_slices_to_align(medulla, tmp_path):
    values = np.stack([medulla[0], medulla[60, ::-1]])
    store = write_volume(tmp_path / "a.ome.zarr", values, (50, 4, 4), kind="images")
    assert "separate image" in run(store, tmp_path)["conclusion"]
    np.testing.assert_array_equal(open_volume(tmp_path / "out").array[:, :, :], values)


def test_one_image_is_no_volume_but_an_image(medulla, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", medulla[0])
    with pytest.raises(DataError, match="only one slice, but a volume needs two or more"):
        acquire(str(tmp_path / "a.tif"), (1, 1, 1), tmp_path / "a.ome.zarr", "a")
    acquire(str(tmp_path / "a.tif"), (1, 1, 1), tmp_path / "a.ome.zarr", "a", images=True)
    assert "1 separate image" in run(tmp_path / "a.ome.zarr", tmp_path)["conclusion"]
