"""One file restored without a workflow: the pipeline's voxels, the file's metadata, no partial output."""

import hashlib
import html

import numpy as np
import pytest
import tifffile
import torch

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.config import Restoration, Sampler, Tiling
from emdiffuse.enhance.one_file import Enhancement, enhance
from emdiffuse.enhance.tiff import tiff_facts
from emdiffuse.enhance.tiling import economical_tiling
from emdiffuse.models.description import Description
from emdiffuse.models.networks.build import NativeNetwork
from emdiffuse.models.networks.weights import save_model
from emdiffuse.restoration.geometry import TileAxis
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.runtime.errors import DataError, EmdiffuseError
from emdiffuse.stores.volume import open_volume

SAMPLER = Sampler(steps=2, samples=2, seed=3)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def image_models(tmp_path_factory):
    """A small denoiser and a small upsampler with random weights."""
    folder = tmp_path_factory.mktemp("models")
    for task in ("emdiffuse-n", "emdiffuse-r"):
        torch.manual_seed(0)
        spec = {"conditions": 1, "channels": 8, "multipliers": [1, 2], "blocks": 1}
        network = NativeNetwork(**spec, residual_scale=0.2)
        torch.nn.init.normal_(network.head.exit.weight, std=0.05)
        spec |= {"architecture": "native", "residual_scale": 0.2}
        save_model(folder / task, network, Description(task=task, network=spec))
    return folder


def test_a_volume_has_the_voxels_of_the_chain(medulla, small_model, tmp_path):
    raw = tmp_path / "raw.tif"
    tifffile.imwrite(raw, medulla[:19:6, :70, :90], photometric="minisblack")
    acquire(str(raw), (60, 10, 10), tmp_path / "a.ome.zarr", "a")
    settings = Restoration(dataset="a", model="m", sampler=SAMPLER)
    plan = make_plan(tmp_path / "a.ome.zarr", small_model, settings, tmp_path / "plan.json")
    for worker in (1, 2, 3):
        restore(tmp_path / "plan.json", worker, 3, "cpu")
    stitch(tmp_path / "plan.json", 1, 1)
    pyramid(tmp_path / "plan.json")
    chain = open_volume(plan.restored).array[:, :, :]
    spread = open_volume(plan.restored / "uncertainty").array[:, :, :]

    how = Enhancement(small_model, SAMPLER, voxel_size=(60, 10, 10), device="cpu")
    enhance(raw, tmp_path / "out.tif", how, tmp_path / "spread.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), chain)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "spread.tif"), spread)
    enhance(raw, tmp_path / "out.ome.zarr", how)
    volume = open_volume(tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(volume.array[:, :, :], chain)
    assert volume.voxel_size == (10, 10, 10)
    left = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in left if name.startswith(".")]


@pytest.mark.parametrize("sides", [(100, 100), (256, 300), (768, 1024), (1024, 1024), (3000, 5000)])
def test_tiles_suit_the_image(sides):
    """Tiles overlap little and fit into memory; a published network keeps its own size."""
    for task, factor, conditions, largest in (("emdiffuse-n", 1, 1, 1024), ("vemdiffuse-i", 6, 4, 640)):
        network = {"architecture": "native", "conditions": conditions}
        native = Description(task=task, factors=(factor,), network=network)
        tiling = economical_tiling(*sides, native)
        axes = [TileAxis(side, tiling.tile, tiling.halo, tiling.blend) for side in sides]
        computed = np.prod([axis.tile * len(axis.starts) for axis in axes])
        least = np.prod([-(-side // 16) * 16 for side in sides])
        assert computed <= 1.5 * least and tiling.tile <= largest
        assert tiling.model_copy(update={"tile": Tiling().tile}) == Tiling()
    published = Description(task="emdiffuse-n", network={"architecture": "unet", "in_channels": 2})
    assert economical_tiling(*sides, published) == Tiling()


def test_the_factor_comes_from_the_file_or_must_be_said(medulla, small_model, tmp_path):
    raw = tmp_path / "raw.tif"
    tifffile.imwrite(raw, medulla[:3, :40, :40], photometric="minisblack")
    how = Enhancement(small_model, Sampler(steps=1), device="cpu")
    with pytest.raises(
        DataError, match=r"raw.tif: the file does not state its slice spacing; add `--factor`"
    ):
        enhance(raw, tmp_path / "out.tif", how)
    metadata = {"axes": "ZYX", "spacing": 0.045, "unit": "um"}
    tifffile.imwrite(raw, medulla[:3, :40, :40], imagej=True, resolution=(125, 125), metadata=metadata)
    enhance(raw, tmp_path / "out.tif", how)  # 45 nm slices of 8 nm pixels: a factor of 45/8
    assert tifffile.imread(tmp_path / "out.tif").shape == (12, 40, 40)
    facts = tiff_facts(tmp_path / "out.tif")
    assert facts.kind == "imagej" and (facts.pixel, facts.spacing) == pytest.approx((8, 8))


@pytest.mark.parametrize(("task", "scale"), [("emdiffuse-n", 1), ("emdiffuse-r", 2)])
@pytest.mark.parametrize("kind", ["plain", "imagej", "ome"])
def test_an_image_keeps_what_its_file_says(medulla, image_models, tmp_path, task, scale, kind):
    raw = tmp_path / "raw.tif"
    image = medulla[0, :40, :56].astype(np.uint16) * 100
    options = {
        "plain": {
            "resolution": (2e6, 2e6), "resolutionunit": "CENTIMETER", "description": "a cell",
            "metadata": None,
            "extratags": [(34680, "s", 0, "[Beam] HV=2000", True), (315, "s", 0, "somebody", True)],
        },
        "imagej": {"imagej": True, "resolution": (200, 200), "metadata": {"unit": "um", "Info": "a cell"}},
        "ome": {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 5.0, "PhysicalSizeXUnit": "nm"}},
    }[kind]  # fmt: skip
    tifffile.imwrite(raw, image, **options)
    assert tiff_facts(raw).pixel == pytest.approx(5)
    enhance(raw, tmp_path / "out.tif", Enhancement(image_models / task, Sampler(steps=2), device="cpu"))
    restored = tifffile.imread(tmp_path / "out.tif")
    assert restored.shape == (40 * scale, 56 * scale) and restored.dtype == np.uint16
    assert np.corrcoef(restored[::scale, ::scale].ravel(), image.ravel())[0, 1] > 0.5
    facts = tiff_facts(tmp_path / "out.tif")
    assert facts.kind == kind and facts.pixel == pytest.approx(5 / scale)
    if kind == "plain":
        assert facts.description == "a cell"
        # the microscope's metadata describe the original pixels; the operator is always kept
        assert {tag[0] for tag in facts.tags} == ({315, 34680} if scale == 1 else {315})
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        history = tif.pages.first.tags["ImageHistory"].value
        seen = {"imagej": facts.imagej.get("Info", ""), "ome": tif.ome_metadata or "", "plain": history}[kind]
    weights = hashlib.sha256((image_models / task / "model.safetensors").read_bytes()).hexdigest()
    source = hashlib.sha256(raw.read_bytes()).hexdigest()
    for words in ("restored from the dataset 'raw' by emdiffuse", weights, f"raw.tif SHA-256 {source}"):
        assert words in history and words in html.unescape(seen)
    if kind == "imagej":
        assert facts.imagej["Info"].startswith("a cell\n")


def test_pixels_of_unknown_size_stay_so(medulla, image_models, tmp_path):
    tifffile.imwrite(tmp_path / "raw.tif", medulla[0, :40, :40], resolution=(72, 72), resolutionunit="INCH")
    enhance(
        tmp_path / "raw.tif", tmp_path / "out.tif", Enhancement(image_models / "emdiffuse-n", device="cpu")
    )
    assert tiff_facts(tmp_path / "out.tif").pixel is None


MISTAKES = {
    "ending": ({"output": "out.png"}, {}, "choose the format"),
    "itself": ({"output": "raw.tif"}, {}, "this is the input"),
    "one sample": ({"uncertainty": "u.tif"}, {}, "`--samples` to 2 or more"),
    "one call": ({"uncertainty": "u.tif"}, {"sampler": Sampler(steps=1, samples=4)}, "do not differ"),
    "two sizes": ({}, {"voxel_size": (60, 10, 10)}, "not both"),
    "factor": ({}, {"factor": 14}, "must be between 2 and 12"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_and_leaves_nothing(medulla, small_model, tmp_path, name):
    paths, settings, message = MISTAKES[name]
    tifffile.imwrite(tmp_path / "raw.tif", medulla[:3, :40, :40], photometric="minisblack")
    paths = {key: tmp_path / value for key, value in {"output": "out.tif", **paths}.items()}
    with pytest.raises(EmdiffuseError, match=message):
        enhance(tmp_path / "raw.tif", how=Enhancement(small_model, **{"factor": 6, **settings}), **paths)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tif"]


def test_the_shape_of_the_old_pixels_is_not_copied(medulla, image_models, tmp_path):
    """tifffile writes it into the description, and warns if it does not fit; other text is kept."""
    said = {"metadata": {"operator": "a person"}, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "raw.tif", medulla[:3, :40, :40], **said)
    assert '"shape"' in tifffile.TiffFile(tmp_path / "raw.tif").pages.first.description
    enhance(
        tmp_path / "raw.tif", tmp_path / "out.tif", Enhancement(image_models / "emdiffuse-r", device="cpu")
    )
    said = tiff_facts(tmp_path / "out.tif").description or ""
    assert "a person" in said and "shape" not in said
    assert tifffile.imread(tmp_path / "out.tif").shape == (3, 80, 80)
