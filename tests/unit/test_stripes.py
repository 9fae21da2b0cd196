"""Stripes and line jitter: reported with their amount, and removed only where present."""

import numpy as np
import pytest
import tifffile
from helpers import ROOT

from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.acquisition.stripes import SMALLEST, artefacts, destripe
from emdiffuse.config import Dataset
from emdiffuse.config.settings import parse
from emdiffuse.evaluation.metrics import psnr
from emdiffuse.report.restorations import _artefacts
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.stores.facts import Artefact
from emdiffuse.stores.volume import open_volume

SIZE = (10.0, 10.0, 10.0)
AMOUNT = 12


@pytest.fixture(scope="module")
def clean():
    """Real slices of medulla, (6, 184, 184), and of brain, (1, 256, 384)."""
    medulla = tifffile.imread(ROOT / "resources/demo/medulla_test.tif")[::10][:6]
    brain = tifffile.imread(ROOT / "resources/demo/brain_test_clean.tif")[None]
    return {"medulla": medulla, "brain": brain}


def striped(images, axis, amount=AMOUNT, width=1):
    """Add offsets to columns (axis 0) or lines (axis 1) that vary slowly along them, like curtaining."""
    rng = np.random.default_rng(axis)
    count = images.shape[2 - axis]
    offsets = np.convolve(np.repeat(rng.normal(0, 1, count), width)[:count], [0.25, 0.5, 0.25], "same")
    along = 1 + 0.3 * np.sin(np.arange(images.shape[1 + axis]) / 60)
    pattern = np.outer(along, offsets * (amount / offsets.std()))
    return np.clip(np.rint(images + (pattern if axis == 0 else pattern.T)), 0, 255).astype(np.uint8)


def jittered(images, pixels):
    rng = np.random.default_rng(0)
    places = np.arange(images.shape[2])
    return np.array(
        [[np.interp(places + rng.normal(0, pixels), places, line) for line in image] for image in images]
    )


def told(images):
    low, high = np.percentile(images, [0.5, 99.5])
    return {found.kind: found.amount for found in artefacts([i.astype(float) for i in images], high - low)}


@pytest.mark.parametrize("tissue", ["medulla", "brain"])
@pytest.mark.parametrize(
    ("axis", "kind", "width"),
    [(0, "vertical stripes", 1), (1, "horizontal stripes", 1), (1, "brightness bands", 10)],
)
def test_stripes_are_found_measured_and_removed(clean, tissue, axis, kind, width):
    images = clean[tissue]
    spoilt = striped(images, axis, width=width)
    assert told(spoilt) == {kind: pytest.approx(AMOUNT, rel=0.3 if width == 1 else 0.5)}
    mended = [destripe(image, [Artefact(kind=kind, amount=AMOUNT, unit="grey levels")]) for image in spoilt]
    before, after = (
        np.mean([psnr(a.astype(float), b.astype(float), 255.0) for a, b in zip(these, images, strict=True)])
        for these in (spoilt, mended)
    )
    assert after > before + (3 if width == 1 else 0.5)  # what is coarse in bands looks like tissue, and stays


@pytest.mark.parametrize("tissue", ["medulla", "brain"])
def test_data_without_stripes_lose_nothing(clean, tissue):
    images = clean[tissue]
    found = artefacts([image.astype(float) for image in images], 130.0)
    assert found == ()
    assert all(destripe(image, found) is image for image in images)


def test_jitter_is_found_and_measured(clean):
    assert told(jittered(clean["brain"], 0.7)) == {"line jitter": pytest.approx(0.7, rel=0.25)}


def test_padding_and_what_is_no_number_stay(clean):
    image = striped(clean["brain"], 0)[0].astype(np.float32)
    image[:40] = 0
    image[100, 100:120] = np.nan
    found = [Artefact(kind="vertical stripes", amount=AMOUNT, unit="grey levels")]
    mended = destripe(image, found)
    assert not mended[:40].any() and np.isnan(mended[100, 100:120]).all()
    assert np.isfinite(mended).sum() == image.size - 20


@pytest.mark.filterwarnings("error")
def test_spikes_hide_no_stripes_and_spread_to_no_neighbours(clean, tmp_path):
    spoilt = striped(clean["medulla"], 0).astype(np.float32)
    spikes = spoilt.copy()
    spikes[:, 50, 50], spikes[0, 9, 9:11] = np.finfo(np.float32).max, -1e38
    found, mended = [], []
    for name, values in (("plain", spoilt), ("spikes", spikes)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="minisblack")
        acquire(str(tmp_path / f"{name}.tif"), SIZE, tmp_path / f"{name}.ome.zarr", name, stripes=True)
        volume = open_volume(tmp_path / f"{name}.ome.zarr")
        found.append(volume.facts.artefacts[0])
        mended.append(volume.array[:, :, :])
    assert found[1].amount == pytest.approx(found[0].amount, rel=0.05)
    strange = spikes != spoilt
    np.testing.assert_array_equal(mended[1][strange], spikes[strange])
    away = np.ones_like(strange)
    away[0, :30, :30] = away[:, 30:70, 30:70] = False
    assert np.abs(mended[1] - mended[0])[away].max() < AMOUNT / 4


def test_acquisition_names_them_and_repairs_by_choice(clean, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("emdiffuse.runtime.progress.logger.propagate", True)
    spoilt = striped(clean["medulla"], 0)
    tifffile.imwrite(tmp_path / "a.tif", spoilt, photometric="minisblack")
    volumes = []
    for stripes in (False, True):
        store = tmp_path / f"{stripes}.ome.zarr"
        acquire(str(tmp_path / "a.tif"), SIZE, store, "a", stripes=stripes)
        volumes.append(open_volume(store))
    plain, mended = volumes
    assert "a.tif: vertical stripes, 1" in caplog.text
    (found,) = mended.facts.artefacts
    assert found.kind == "vertical stripes" and found.amount == pytest.approx(AMOUNT, rel=0.3)
    assert plain.facts.artefacts == mended.facts.artefacts and plain.made.hash != mended.made.hash
    np.testing.assert_array_equal(plain.array[:, :, :], spoilt)
    expected = np.stack([destripe(image, [found]) for image in spoilt])
    np.testing.assert_array_equal(mended.array[:, :, :], expected)
    assert "they were not removed" in _artefacts(plain.facts)[0]
    assert "stripes were removed" in _artefacts(mended.facts)[0]
    keep_every(mended.path, 2, tmp_path / "thin.ome.zarr", "thin")
    assert open_volume(tmp_path / "thin.ome.zarr").facts.destriped


def test_a_frame_around_the_field_is_no_stripe(clean, tmp_path):
    images = np.pad(clean["medulla"][:, :120, :120], [(0, 0), (40, 40), (60, 20)])
    small = np.pad(clean["medulla"][:, :50, :50], [(0, 0), (40, 40), (60, 20)])  # too little to tell
    for name, values in (("a", images), ("b", small)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="minisblack")
        acquire(str(tmp_path / f"{name}.tif"), SIZE, tmp_path / f"{name}.ome.zarr", name)
        assert open_volume(tmp_path / f"{name}.ome.zarr").facts.artefacts == ()


def test_clean_and_small_data_are_acquired_as_they_are(clean, tmp_path):
    small = clean["medulla"][:, : SMALLEST - 1]
    for name, values in (("clean", clean["medulla"]), ("small", small)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="minisblack")
        acquire(str(tmp_path / f"{name}.tif"), SIZE, tmp_path / f"{name}.ome.zarr", name, stripes=True)
        volume = open_volume(tmp_path / f"{name}.ome.zarr")
        np.testing.assert_array_equal(volume.array[:, :, :], values)
        assert volume.facts.artefacts == () and not volume.facts.destriped


@pytest.mark.parametrize(
    ("repair", "slices", "stripes"),
    [
        (False, False, False),
        (True, True, False),
        ("slices", True, False),
        ("stripes", False, True),
        (["slices", "stripes"], True, True),
    ],
)
def test_what_is_repaired_is_said_by_name(repair, slices, stripes):
    size = {"z": 60, "y": 10, "x": 10}
    dataset = parse(Dataset, {"source": "a.tif", "voxel_size": size, "repair": repair})
    assert (dataset.repairs_slices, dataset.repairs_stripes) == (slices, stripes)


def test_stripes_of_images_are_repaired_too_but_not_of_derived_data():
    images = {"source": "a.tif", "images": True, "voxel_size": {"z": 5, "y": 5, "x": 5}}
    assert parse(Dataset, {**images, "repair": "stripes"}).repairs_stripes
    with pytest.raises(ConfigError, match="`repair` applies only to the slices of a volume"):
        parse(Dataset, {**images, "repair": True})
    with pytest.raises(ConfigError, match="`repair: stripes` applies only to a `source`"):
        parse(Dataset, {"keep_every": {"dataset": "a", "factor": 2}, "repair": "stripes"})
