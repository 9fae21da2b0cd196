"""A volume denoiser that sees the slices before and after, in training and restoration."""

from fractions import Fraction

import numpy as np
import pytest
import tifffile
import torch
from helpers import raw_file, write_pairs, write_volume
from restoring import run

from emdiffuse.config import Model
from emdiffuse.enhance.adapt import adapt
from emdiffuse.enhance.one_file import Enhancement, enhance
from emdiffuse.models.description import Description, NativeSpec
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.networks.build import build_network
from emdiffuse.models.networks.weights import save_model
from emdiffuse.models.processes import Batch
from emdiffuse.patches.cut import PatchStore, cut_patches
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.intensity import from_unit, shown
from emdiffuse.stores.neighbours import beside
from emdiffuse.stores.volume import open_volume


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small denoiser with context, as if learned from hidden pixels; random weights."""
    torch.manual_seed(0)
    spec = NativeSpec(
        conditions=3, channels=8, multipliers=(1, 2), blocks=1, residual_scale=0.2, blind_spot=(0, 2)
    )
    network = build_network(spec)
    torch.nn.init.normal_(network.head.exit.weight, std=0.1)
    folder = tmp_path_factory.mktemp("context") / "best"
    save_model(folder, network, Description(task="emdiffuse-n", network=spec, learned_from="hidden pixels"))
    return folder


def settings(**patches):
    return Model.model_validate(
        {
            "task": "emdiffuse-n",
            "datasets": ["a"],
            "patches": {"size": 32, "context": 1, "validation": 0.25, **patches},
            "network": {"channels": 8, "multipliers": [1, 2], "blocks": 1},
        }
    )


def test_a_slice_never_stands_beside_itself():
    assert [beside(z, 3) for z in range(3)] == [(1, 0, 1), (0, 1, 2), (1, 2, 1)]
    assert [beside(z, 5, missing=[1, 4]) for z in (0, 2, 3)] == [(2, 0, 2), (0, 2, 3), (2, 3, 2)]
    with pytest.raises(DataError, match="there is only one slice"):
        beside(0, 2, missing=[1])


def test_patches_hold_the_neighbours_and_share_no_slice_between_the_splits(medulla, tmp_path):
    values = medulla[:12, :64, :64]
    store = write_volume(tmp_path / "a.ome.zarr", values, (30, 10, 10), sources=[raw_file("x")], missing=[4])
    cut_patches([store], settings(), tmp_path / "p.zarr")
    patches = PatchStore(tmp_path / "p.zarr")
    condition, target = patches.read(np.arange(len(patches.origins)))
    assert condition.shape[1] == 3 and np.array_equal(condition[:, 1:2], target)
    unit = shown(values, open_volume(store).intensity.at(range(12))).astype(np.float16)
    good = [z for z in range(12) if z != 4]
    seen = {0: set(), 1: set()}  # of each split
    for row, (origin, stack) in enumerate(zip(patches.origins, condition, strict=True)):
        z = good[origin[1]]
        y, x = origin[3:5]
        slices = beside(z, 12, [4])
        assert np.array_equal(stack, unit[list(slices), y : y + 32, x : x + 32].astype(np.float32)), row
        seen[int(origin[6])] |= set(slices)
    assert seen[0] and seen[1] and not seen[0] & seen[1]


def test_tiles_read_the_neighbours(medulla, model, tmp_path):
    values = medulla[:4, :64, :64]
    store = write_volume(tmp_path / "a.ome.zarr", values, (30, 10, 10), missing=[2])
    plan = run(store, model, tmp_path / "r", samples=1, texture=None, steps=None, name=None)
    made = open_volume(plan.restored / "restored")
    opened = RestorationModel.load(model)
    unit = shown(values, open_volume(store).intensity.at(range(4)))
    for z in range(4):
        known = torch.from_numpy(unit[list(beside(z, 4, [2]))])[None]
        alone, _ = opened.restore(Batch.of_images(known), plan.sampler, lambda sample, step: None)
        wanted = from_unit(alone[0].numpy(), made.intensity.at([z]))
        inner = slice(24, 40)  # tiles reach past the edges, where the image is mirrored
        own = made.array[:, :, :][z, inner, inner].astype(float)
        assert np.abs(own - np.clip(np.rint(wanted[0]), 0, 255)[inner, inner]).max() <= 1, z
        turned = known.roll(1, 1)
        assert (opened.restore(Batch.of_images(turned), plan.sampler, None)[0] - alone).abs().max() > 0.01


def test_a_file_is_enhanced_in_context_and_its_gaps_are_filled_between(medulla, model, small_model, tmp_path):
    """Denoised slices as input of another restoration give the same as `real_slices`."""
    values = medulla[:13:3, :64, :64]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    context = Enhancement(model, factor=Fraction(3), device="cpu")
    enhance(tmp_path / "a.tif", tmp_path / "denoised.tif", context)
    denoised = tifffile.imread(tmp_path / "denoised.tif")
    assert denoised.shape == values.shape and (denoised != values).mean() > 0.5
    how = Enhancement(small_model, factor=Fraction(3), device="cpu")
    enhance(tmp_path / "denoised.tif", tmp_path / "filled.tif", how)
    filled = tifffile.imread(tmp_path / "filled.tif")
    assert len(filled) == 13 and np.array_equal(filled[::3], denoised)

    alone = {"samples": 1, "texture": None, "steps": None, "name": None}
    store = write_volume(tmp_path / "a.ome.zarr", values, (30, 10, 10))
    slices = run(store, model, tmp_path / "slices", by="denoise", **alone)
    plan = run(slices.restored, small_model, tmp_path / "gaps", real_slices="denoise", **alone)
    made = open_volume(plan.restored / "restored").array[:, :, :]
    assert np.array_equal(made[::3], open_volume(slices.restored / "restored").array[:, :, :])

    tifffile.imwrite(tmp_path / "one.tif", values[0], photometric="minisblack")
    for work in (enhance, adapt):
        with pytest.raises(DataError, match=r"one.tif: this model needs the neighbouring slices"):
            work(tmp_path / "one.tif", tmp_path / "o.tif", context)
    assert not (tmp_path / "o.tif").exists()


def test_images_without_neighbours_are_refused(medulla, model, tmp_path):
    images = write_volume(tmp_path / "i.ome.zarr", medulla[:4, :64, :64], (10, 10, 10), kind="images")
    words = "needs the neighbouring slices of a volume, but separate images have none"
    with pytest.raises(DataError, match=words):
        run(images, model, tmp_path / "r", samples=1, texture=None, steps=None, name=None)
    with pytest.raises(DataError, match=words):
        cut_patches([images], settings(), tmp_path / "p.zarr")
    pairs = [(medulla[z, :64, :64],) * 2 for z in range(4)]
    with pytest.raises(DataError, match=r"`patches.context` needs neighbouring slices"):
        cut_patches([write_pairs(tmp_path / "s.ome.zarr", pairs)], settings(), tmp_path / "p.zarr")
    degraded = write_pairs(tmp_path / "d.ome.zarr", pairs, degraded={"every": 1})
    cut_patches([degraded], settings(), tmp_path / "p.zarr")
    assert PatchStore(tmp_path / "p.zarr").condition.shape[1] == 3
