"""Any content of a file, an option or a key is handled, or refused in one sentence.

Everything runs in this process: thousands of tries in seconds. A try that hangs or uses all memory fails its
test through the time limit of `bounded`, or the limit of the process.
"""

import errno
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from helpers import ROOT, write_volume
from hostile import VALUES, as_text, bounded, damages, odd_files, variants
from restoring import image_model, settings

import emdiffuse.cli  # noqa: F401  (registers the commands)
from emdiffuse.config import Config
from emdiffuse.config.settings import parse
from emdiffuse.enhance.one_file import Enhancement, enhance
from emdiffuse.enhance.watch import watch
from emdiffuse.models.description import read_description
from emdiffuse.models.importing import import_model
from emdiffuse.models.inference import RestorationModel
from emdiffuse.readers import open_source
from emdiffuse.restoration.plan import read_plan
from emdiffuse.restoration.planning import make_plan
from emdiffuse.runtime.errors import AccessError, DataError
from emdiffuse.stores.volume import open_volume
from emdiffuse.viewing.images import find_images


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return image_model(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture
def image(tmp_path, medulla):
    tifffile.imwrite(tmp_path / "good.tif", medulla[0, :48, :48])
    return tmp_path / "good.tif"


def test_model_descriptions(model, tmp_path, attempt):
    good = json.loads((model / "model.json").read_text())
    for what, content in variants(good):
        (tmp_path / "model.json").write_text(as_text(content))
        attempt(what, lambda: read_description(tmp_path))


def test_model_files(model, tmp_path, attempt):
    copy = shutil.copytree(model, tmp_path / "m")
    for name in ("model.json", "model.safetensors"):
        good = (copy / name).read_bytes()
        for what, content in damages(good):
            (copy / name).write_bytes(content)
            attempt(f"{name}, {what}", lambda: RestorationModel.load(copy))
        (copy / name).write_bytes(good)


def test_plans(model, tmp_path, medulla, attempt):
    volume = write_volume(tmp_path / "a.ome.zarr", medulla[:2, :48, :48], (10.0, 10.0, 10.0))
    make_plan(volume, model, settings(), tmp_path / "plan.json")
    good = (tmp_path / "plan.json").read_bytes()
    for what, content in variants(json.loads(good)):
        (tmp_path / "plan.json").write_text(as_text(content))
        attempt(what, lambda: read_plan(tmp_path / "plan.json"))
    for what, content in damages(good):
        (tmp_path / "plan.json").write_bytes(content)
        attempt(what, lambda: read_plan(tmp_path / "plan.json"))


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_metadata_of_stores(tmp_path, medulla, name, attempt):
    """Opened by a stage, the viewer and a reader."""
    store = write_volume(tmp_path / "a.ome.zarr", medulla[:2, :48, :48], (10.0, 10.0, 10.0))
    good = (store / name).read_bytes()

    def as_a_stage():
        volume = open_volume(store)
        with bounded():
            volume.array[0:1, 0:4, 0:4]

    for what, content in [*variants(json.loads(good)), *damages(good)]:
        (store / name).write_bytes(content if isinstance(content, bytes) else as_text(content).encode())
        if "shape" in what and "million" in what:
            continue  # a store of a million shards is one: each is looked for, which takes its time
        attempt(f"stage: {what}", as_a_stage)
        attempt(f"viewer: {what}", lambda: find_images(store))
        with bounded():
            attempt(f"reader: {what}", lambda: open_source(str(store)).read(0, 1))


def test_damaged_images(image, tmp_path, attempt):
    bad = tmp_path / "bad.tif"
    for what, content in damages(image.read_bytes()):
        bad.write_bytes(content)
        with bounded():
            attempt(what, lambda: open_source(str(bad)).read(0, 1))


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]><OME>&c;</OME>'


@pytest.mark.parametrize("kind", ["external", "virtual", "linked"])
def test_a_file_is_not_made_to_read_another(tmp_path, kind):
    """HDF5 may name any file as the location of its pixels."""
    h5py = pytest.importorskip("h5py")
    secret = tmp_path / "secret.txt"
    secret.write_bytes(bytes(range(64)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", (2, 4, 8), np.uint8, external=[(str(secret), 0, 64)])
    if kind == "virtual":
        layout = h5py.VirtualLayout((2, 4, 8), np.uint8)
        layout[...] = h5py.VirtualSource(str(tmp_path / "a.h5"), "v", (2, 4, 8))
        with h5py.File(tmp_path / "b.h5", "w") as file:
            file.create_virtual_dataset("v", layout)
    elif kind == "linked":
        with h5py.File(tmp_path / "b.h5", "w") as file:
            file["v"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "v")
    name = tmp_path / ("a.h5" if kind == "external" else "b.h5")
    with pytest.raises(DataError, match="in another file"):
        open_source(f"{name}:/v")


ODD_TIFFS = {
    "a header of 65535 squared": {},
    "an entity bomb": {"description": BOMB},
    "a broken OME": {"description": "<OME><Image></OME>"},
    "a strange ImageJ": {"description": "ImageJ=1\nimages=999999999999\nunit=x\nspacing=nan\n"},
    "a strange resolution": {"resolution": (0, 0)},
    "a surrogate": {"description": "a\x00b"},
}  # fmt: skip


def test_a_watch_survives_all_of_it(image, model, tmp_path, attempt):
    """Every strange file is set aside with its reason, or restored; the good one is restored."""
    folder = tmp_path / "in"
    folder.mkdir()
    odd_files(folder, image.read_bytes(), ".tif")
    for number, options in enumerate(ODD_TIFFS.values()):
        file = folder / f"odd {number}.tif"
        tifffile.imwrite(file, np.full((16, 16), number, np.uint8), metadata=None, **options)
        if not options:
            with tifffile.TiffFile(file, mode="r+b") as tif:
                for tag in ("ImageWidth", "ImageLength"):
                    tif.pages.first.tags[tag].overwrite(65535)
    for number, (what, content) in enumerate(damages(image.read_bytes())):
        if number % 6 == 0:
            (folder / f"{what}.tif").write_bytes(content)
    (folder / "good.tif").write_bytes(image.read_bytes())
    before = {path: path.lstat().st_size for path in folder.iterdir()}
    out = tmp_path / "out"
    how = Enhancement(model, device="cpu")
    attempt("watch", lambda: watch(folder, out, how, once=True, settle=0, patience=0, poll=0.01))
    assert (out / "good.tif").exists() and (out / "-60.tif").exists()
    reasons = [path.read_text() for path in (out / "failed").iterdir()]
    assert reasons and not any("Traceback" in reason for reason in reasons), reasons
    assert {path: path.lstat().st_size for path in folder.iterdir()} == before
    again = {path.name: path.stat().st_ctime_ns for path in out.glob("*.tif")}
    watch(folder, out, how, once=True, settle=0, patience=0, poll=0.01)
    assert {path.name: path.stat().st_ctime_ns for path in out.glob("*.tif")} == again


def test_enhance_on_strange_files(image, model, tmp_path, attempt):
    for what, path in odd_files(tmp_path, image.read_bytes(), ".tif").items():
        with bounded():
            out = tmp_path / "out" / "clean.tif"
            attempt(what, lambda path=path, out=out: enhance(path, out, Enhancement(model, device="cpu")))


def test_every_key_of_the_configuration(attempt):
    """The demo's configuration, with each key replaced by every hostile value."""
    config = parse(Config, (ROOT / "config/config.yaml").read_text())
    full = config.model_dump(mode="json", exclude_none=True)
    for section in ("datasets", "models"):  # one of each is enough: they have the same keys
        kept = list(full[section])
        full[section] = {name: full[section][name] for name in kept}
    full["restorations"] = full["restorations"][:2]
    for what, content in variants(full):
        attempt(what, lambda content=content: parse(Config, as_text(content)))
    for name, value in VALUES.items():
        attempt(f"all: {name}", lambda value=value: parse(Config, value))


def test_checkpoints_of_unknown_origin(tmp_path, attempt):
    torch.save({"a": torch.zeros(4), "b": torch.ones(2, 3)}, tmp_path / "good.pth")
    for what, content in damages((tmp_path / "good.pth").read_bytes()):
        (tmp_path / "bad.pth").write_bytes(content)
        attempt(what, lambda: import_model(tmp_path / "bad.pth", "emdiffuse-n", tmp_path / "out"))
    for what, path in odd_files(tmp_path, (tmp_path / "good.pth").read_bytes(), ".pth").items():
        with bounded():
            attempt(what, lambda path=path: import_model(path, "emdiffuse-n", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(image, model, tmp_path, monkeypatch, number):
    """Whatever library writes, and whatever that makes of it."""

    def full(*_, **__):
        raise RuntimeError(f"PytorchStreamWriter failed writing file data/0 (os error {number})")

    monkeypatch.setattr("emdiffuse.models.networks.weights.save_file", full)
    with pytest.raises(AccessError, match=r"the disk at .* is full; free space there"):
        import_model(model, "emdiffuse-n", tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())
