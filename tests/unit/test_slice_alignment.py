"""Misaligned slices are moved back; slanted tissue stays, and aligned volumes are unchanged."""

import json

import cv2
import numpy as np
import pytest
from helpers import write_volume

from emdiffuse.config import Alignment
from emdiffuse.registration.raft import Flow
from emdiffuse.registration.register import register
from emdiffuse.registration.slices import corrections
from emdiffuse.registration.warping import identity, warp
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.volume import open_volume


def original(medulla):
    return medulla[:10, 20:156, 20:156]


def run(volume, folder, method):
    register(volume, Alignment(method=method), folder / "out.ome.zarr", folder / "q.json", folder / "q.png")
    return json.loads((folder / "q.json").read_text()), open_volume(folder / "out.ome.zarr")


@pytest.fixture(scope="module")
def jittered(medulla):
    """Ten real slices, two of them shifted and one distorted."""
    rng = np.random.default_rng(1)
    moves = np.zeros((10, 2, 136, 136), np.float32)
    moves[4] += np.array([3.0, -4.0])[:, None, None]
    moves[8] += np.array([-3.5, 2.0])[:, None, None]
    knots = rng.standard_normal((2, 3, 3))
    moves[8] += [cv2.resize(part, (136, 136), interpolation=cv2.INTER_CUBIC) for part in knots]
    moved = np.stack(
        [
            warp(image, identity((136, 136)) + move)
            for image, move in zip(original(medulla), moves, strict=True)
        ]
    )
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def test_slices_that_are_off_are_moved_back(medulla, jittered, tmp_path):
    values = jittered
    volume = write_volume(tmp_path / "v.ome.zarr", values, (10, 10, 10))
    with pytest.raises(DataError, match=r"set `alignment: {method: warp}`"):
        run(volume, tmp_path, "check")
    report, aligned = run(volume, tmp_path, "warp")
    assert report["aligned"] and "They were moved by up to" in report["conclusion"]
    assert aligned.facts.slices_moved["largest"] > 3
    result = aligned.array[:, :, :].astype(float)
    inner = np.s_[16:-16, 16:-16]
    for z in (4, 8):
        before, after = (
            np.abs(v[z][inner].astype(float) - original(medulla)[z][inner]).mean()
            for v in (values.astype(float), result)
        )
        assert after < 0.5 * before
    np.testing.assert_allclose(result[0][inner].mean(), values[0][inner].mean(), rtol=0.02)


def test_tissue_that_slants_is_kept(medulla, tmp_path):
    slant = np.stack([medulla[0, 2 * z : 2 * z + 128, 8:136] for z in range(10)])  # 2 pixels a slice, exactly
    volume = open_volume(write_volume(tmp_path / "v.ome.zarr", slant, (10, 10, 10)))
    assert np.abs(corrections(volume, Flow())).max() < 0.3


def test_an_aligned_volume_is_passed_on_to_the_bit(medulla, tmp_path):
    volume = write_volume(tmp_path / "v.ome.zarr", medulla[:8], (10, 10, 10))
    report, passed = run(volume, tmp_path, "warp")
    assert report["aligned"] and passed.facts.slices_moved is None
    np.testing.assert_array_equal(passed.array[:, :, :], medulla[:8])
