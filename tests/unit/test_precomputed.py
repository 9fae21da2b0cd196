"""Volumes for other programs: Neuroglancer precomputed, and OME-Zarr 0.4 by others."""

import numpy as np
import pytest
import tensorstore as ts
import zarr
from helpers import write_volume

from emdiffuse.readers import open_source
from emdiffuse.runtime.errors import DataError, EmdiffuseError, StoreError
from emdiffuse.viewing.images import find_images, napari_layers
from emdiffuse.viewing.precomputed import export_precomputed

VALUES = np.random.default_rng(0).integers(0, 256, (70, 90, 530), np.uint8)
FINE, COARSE = (40.0, 8.0, 8.0), (40.0, 16.0, 16.0)


def write_old(folder, units=("nanometer",) * 3, values=VALUES):
    """Write an image of two levels as OME-Zarr 0.4, in Zarr 2."""
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    levels = {"s0": values, "s1": values[:, ::2, ::2]}
    for name, level in levels.items():
        array = group.create_array(name, shape=level.shape, dtype=level.dtype, chunks=(64, 64, 64))
        array[...] = level
    datasets = [
        {"path": name, "coordinateTransformations": [{"type": "scale", "scale": list(size)}]}
        for name, size in zip(levels, (FINE, COARSE), strict=True)
    ]
    axes = [{"name": name, "type": "space", "unit": unit} for name, unit in zip("zyx", units, strict=True)]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return folder


def opened(folder, scale=0):
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/", "scale_index": scale}
    return ts.open(spec, open=True).result()


def test_an_image_of_zarr_2_is_looked_at(tmp_path):
    write_old(tmp_path / "old.ome.zarr")
    (image,) = find_images(tmp_path / "old.ome.zarr")
    assert (image.name, image.levels, image.scale) == ("old", ("s0", "s1"), FINE)
    (layer,) = napari_layers(tmp_path / "old.ome.zarr")
    np.testing.assert_array_equal(layer["data"][1][:], VALUES[:, ::2, ::2])
    assert layer["units"] == ("nanometer",) * 3


def test_every_level_is_written_voxel_for_voxel(tmp_path):
    source = write_old(tmp_path / "old.ome.zarr")
    export_precomputed(source, tmp_path / "out")
    for scale, (values, size) in enumerate([(VALUES, FINE), (VALUES[:, ::2, ::2], COARSE)]):
        found = opened(tmp_path / "out", scale)
        np.testing.assert_array_equal(found[..., 0].read().result().transpose(2, 1, 0), values)
        assert [unit.multiplier for unit in found.dimension_units[:3]] == list(size[::-1])


def test_what_is_written_is_read_again(tmp_path):
    volume = write_volume(tmp_path / "a.ome.zarr", VALUES[:, :64, :64], FINE)
    export_precomputed(volume, tmp_path / "out")
    source = open_source(f"precomputed://{tmp_path}/out")
    assert source.voxel_size == FINE
    np.testing.assert_array_equal(source.read(0, 70), VALUES[:, :64, :64])


def test_one_image_of_several_must_be_named(tmp_path):
    for name in ("restored", "uncertainty"):
        write_volume(tmp_path / "a.ome.zarr" / name, VALUES[:2, :64, :64], FINE)
    zarr.open_group(tmp_path / "a.ome.zarr", mode="a")
    with pytest.raises(
        StoreError, match=r"several images \(restored, uncertainty\); name one, such as .*a.ome.zarr/restored"
    ):
        export_precomputed(tmp_path / "a.ome.zarr", tmp_path / "out")
    export_precomputed(tmp_path / "a.ome.zarr/restored", tmp_path / "out")
    assert opened(tmp_path / "out").shape == (64, 64, 2, 1)


@pytest.mark.parametrize("values", [VALUES[:4, :8, :8].astype(np.float64), None])
def test_what_cannot_be_written_is_refused_and_leaves_nothing(values, tmp_path):
    if values is None:
        write_old(tmp_path / "a.zarr", ("nanometer", "nanometer", "pixel"), VALUES[:4, :8, :8])
    else:
        write_old(tmp_path / "a.zarr", values=values)
    with pytest.raises(DataError):
        export_precomputed(tmp_path / "a.zarr", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_ours_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(EmdiffuseError):
        export_precomputed(write_old(tmp_path / "a.zarr", values=VALUES[:4, :8, :8]), tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "mine"


def test_a_restored_volume_says_so_in_words(reference):
    """In the standard place of OME-Zarr, beside the record of all settings and sources."""
    for group in (reference.restored, reference.restored / "restored"):
        attributes = zarr.open_group(group, mode="r").attrs
        words = attributes["ome"]["multiscales"][0]["metadata"]["description"]
        facts = attributes["emdiffuse"]
        assert words.startswith("restored from the dataset 'a' by emdiffuse") and "not measured" in words
        assert all(facts[key] in words for key in ("version", "weights", "estimator", "model"))
        assert {"sources", "training_sources", "sampler", "made"} <= facts.keys() and facts["made"]["hash"]
