"""Aligned tissue passes, whatever its direction; misaligned slices do not. On real data with added shifts."""

import errno
import json
import os

import numpy as np
import pytest
import tifffile
from helpers import ROOT, raw_file, write_volume

from emdiffuse.config import Alignment
from emdiffuse.registration.volumes import MeasuredAlignment, check_alignment, judge, measure
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.facts import VolumeFacts
from emdiffuse.stores.volume import Volume, open_volume

MARGIN = 8


@pytest.fixture(scope="module")
def train():
    return tifffile.imread(ROOT / "resources/demo/medulla_train.tif")


def shifted(values, shifts):
    """Return slices with tissue shifted by (y, x), mirrored at the edges."""
    _, height, width = values.shape
    padded = np.pad(values, [(0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)], mode="reflect")
    corners = [(MARGIN - y, MARGIN - x) for y, x in shifts]
    return np.stack([padded[z, y : y + height, x : x + width] for z, (y, x) in enumerate(corners)])


def looked_at(values, distance, pairs=64, tolerance=1.0):
    """Measure and judge an array as a volume with 10 nm pixels."""
    measured = measure(Volume("memory", values, (10.0 * distance, 10.0, 10.0), VolumeFacts()), pairs)
    return measured, judge(measured, (10.0 * distance, 10.0, 10.0), tolerance)


@pytest.mark.parametrize("distance", [1, 6])
@pytest.mark.parametrize("name", ["train", "medulla"])
def test_real_tissue_is_aligned(request, name, distance):
    values = request.getfixturevalue(name)[::distance][:24]
    _, report = looked_at(values, distance)
    assert report["aligned"], report["conclusion"]
    assert report["jitter"]["largest"] < (0.4 if distance == 1 else 2.0)


@pytest.mark.parametrize("size", [(0, 3), (-4, 0), (3, -4)])
def test_one_slice_that_is_off_is_found_and_measured(medulla, size):
    shifts = np.zeros((12, 2), int)
    shifts[5] = size
    measured, report = looked_at(shifted(medulla[:12], shifts), 1)
    assert not report["aligned"]
    np.testing.assert_allclose(measured.jitter[5], size, atol=0.4)
    # its neighbours appear off by half, in the opposite direction
    np.testing.assert_allclose(measured.jitter[4], np.array(size) / -2, atol=0.4)
    assert report["exceeding"] == [4, 5, 6]
    assert "slice 5 by" in report["reason"].split(",")[0]


@pytest.mark.parametrize("name", ["train", "medulla"])
def test_jitter_is_found_sixty_nanometers_apart(request, name):
    values = request.getfixturevalue(name)[::6][:11]
    shifts = np.zeros((len(values), 2), int)
    shifts[[2, 5, 8]] = (4, 2), (-3, 4), (0, -5)
    _, report = looked_at(shifted(values, shifts), 6)
    assert not report["aligned"]
    assert {2, 5, 8} & set(report["exceeding"])


def test_a_step_and_a_steady_drift_are_found(medulla):
    step = np.zeros((12, 2), int)
    step[6:] = (3, 0)
    measured, report = looked_at(shifted(medulla[:12], step), 1)
    assert report["exceeding"] == [5, 6]
    assert measured.shifts[5][0] - report["drift"]["y"] == pytest.approx(3, abs=0.6)
    plain, _ = looked_at(medulla[:5], 1)
    steady = [(3 * z - 6, 0) for z in range(5)]
    measured, report = looked_at(shifted(medulla[:5], steady), 1)
    assert not report["aligned"]
    assert "a steady drift of" in report["reason"]
    for z in range(4):
        np.testing.assert_allclose(measured.shifts[z] - plain.shifts[z], (3, 0), atol=0.4)


def test_a_jump_beyond_what_is_looked_for_is_not_taken_for_alignment(medulla):
    values = medulla[:12].copy()
    values[5] = np.roll(values[5], 40, axis=1)
    _, report = looked_at(values, 1)
    assert not report["aligned"]
    assert report["ncc"]["smallest"] < 0.5 < report["ncc"]["median"]


def test_the_judgement_follows_the_distance_of_the_slices():
    """The tolerance grows with the root of the distance for jitter, with the distance for steady drift."""
    measured = MeasuredAlignment(
        (200, 200),
        {z: np.array([0.0, 3.0]) for z in range(3)},
        dict.fromkeys(range(3), 0.5),
        {1: np.array([1.5, 0.0])},
        [],
    )
    report = judge(measured, (10.0, 10.0, 10.0), 1.0)
    assert report["limits"] == {"drift": 1.0, "jitter": 1.0}
    assert report["exceeding"] == [1]
    assert "slice 1 by 1.5 pixels" in report["reason"]
    assert "a steady drift of 3.0 pixels" in report["reason"]
    report = judge(measured, (40.0, 10.0, 10.0), 1.0)
    assert report["limits"] == {"drift": 4.0, "jitter": 2.0}
    assert report["aligned"]
    assert judge(measured, (10.0, 10.0, 10.0), 3.5)["aligned"]


def test_long_volumes_are_looked_at_in_some_places(medulla):
    measured, report = looked_at(medulla[:, :64, :64], 1, pairs=6)
    assert sorted(measured.shifts) == [0, 1, 29, 30, 58, 59]
    assert {1, 30, 59} <= set(measured.jitter)
    assert report["aligned"]


def test_blank_slices_are_left_out_and_said(medulla):
    values = medulla[:8, :120, :120].copy()
    values[4] = 0
    measured, report = looked_at(values, 1)
    assert report["aligned"]
    assert report["blank"] == [4]
    assert sorted(measured.shifts) == [0, 1, 2, 5, 6]
    assert sorted(measured.jitter) == [1, 2, 6]
    values[::2] = 0
    with pytest.raises(DataError, match="no two neighbouring slices"):
        looked_at(values, 1)


@pytest.mark.parametrize(("shape", "distance"), [((2, 40, 50), 1), ((3, 5, 7), 1), ((11, 180, 184), 6)])
def test_small_fields_are_not_judged(medulla, shape, distance):
    values = medulla[::distance][tuple(slice(n) for n in shape)].copy()
    values[1] = np.roll(values[1], shape[1] // 2, axis=0)
    measured, report = looked_at(values, distance)
    assert len(measured.shifts) == shape[0] - 1
    assert report["aligned"]
    assert not report["conclusive"]
    assert "too few to judge" in report["conclusion"]


def test_two_slices_are_judged_by_their_drift(medulla):
    measured, report = looked_at(medulla[:2], 1)
    assert (measured.jitter, report["aligned"], report["conclusive"]) == ({}, True, True)
    _, report = looked_at(shifted(medulla[:2], [(0, 0), (5, 0)]), 1)
    assert not report["aligned"]


@pytest.fixture
def acquired(tmp_path, medulla):
    return write_volume(
        tmp_path / "sample.ome.zarr",
        medulla[:12],
        (10.0, 10.0, 10.0),
        stage="acquire",
        sources=[raw_file("a")],
    )


def paths(folder):
    return folder / "registered.ome.zarr", folder / "quality.json", folder / "quality.png"


def chunks(path):
    return [file for file in sorted((path / "0" / "c").rglob("*")) if file.is_file()]


def test_an_aligned_volume_is_passed_on_without_a_copy(tmp_path, acquired, medulla):
    out, quality, figure = paths(tmp_path)
    check_alignment(acquired, Alignment(), out, quality, figure)
    volume, before = open_volume(out), open_volume(acquired)
    np.testing.assert_array_equal(volume.array[:, :, :], medulla[:12])
    assert volume.voxel_size == before.voxel_size
    for key in ("dataset", "sources", "intensity"):
        assert getattr(volume.facts, key) == getattr(before.facts, key)
    assert volume.facts.stage == "register"
    assert volume.facts.alignment["aligned"] is True
    assert "pairs" not in volume.facts.alignment
    for one, other in zip(chunks(acquired), chunks(out), strict=True):
        assert one.samefile(other)
    assert not (acquired / "0/zarr.json").samefile(out / "0/zarr.json")
    report = json.loads(quality.read_text())
    assert report["conclusion"].startswith("The slices are aligned: ")
    assert [pair["slice"] for pair in report["pairs"]] == list(range(11))
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quality.json", "quality.png", "registered.ome.zarr", "sample.ome.zarr",
    ]  # fmt: skip


def test_another_file_system_gets_copies(tmp_path, acquired, medulla, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    out, quality, figure = paths(tmp_path)
    check_alignment(acquired, Alignment(), out, quality, figure)
    np.testing.assert_array_equal(open_volume(out).array[:, :, :], medulla[:12])
    assert not chunks(acquired)[0].samefile(chunks(out)[0])


def test_the_registered_volume_outlives_the_acquired_one(tmp_path, acquired, medulla):
    out, quality, figure = paths(tmp_path)
    check_alignment(acquired, Alignment(), out, quality, figure)
    write_volume(acquired, medulla[:12] // 2, (10.0, 10.0, 10.0))
    np.testing.assert_array_equal(open_volume(out).array[:, :, :], medulla[:12])


def test_a_volume_that_is_not_aligned_is_not_passed_on(tmp_path, medulla):
    shifts = np.zeros((12, 2), int)
    shifts[7] = (4, -3)
    volume = write_volume(tmp_path / "bad.ome.zarr", shifted(medulla[:12], shifts), (10.0, 10.0, 10.0))
    out, quality, figure = paths(tmp_path)
    with pytest.raises(DataError) as caught:
        check_alignment(volume, Alignment(), out, quality, figure)
    sentence = str(caught.value)
    assert sentence.startswith(f"{volume}: the slices are not aligned: slice 7 by ")
    assert "`alignment.tolerance`" in sentence
    assert "\n" not in sentence
    assert not out.exists()
    assert json.loads(quality.read_text())["aligned"] is False
    assert figure.exists()
    check_alignment(volume, Alignment(tolerance=8), out, quality, figure)
    assert open_volume(out).facts.alignment["tolerance"] == 8


def test_a_full_disk_leaves_nothing(tmp_path, acquired, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    out, quality, figure = paths(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        check_alignment(acquired, Alignment(), out, quality, figure)
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
