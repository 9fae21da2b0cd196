"""User data are never deleted or overwritten: a stage replaces only the program's own outputs, and no input.

Every function that writes a folder or files is given every kind of place where it must not write; afterwards
not a byte differs.
"""

import os
import shutil

import pytest
import tifffile
from helpers import write_pairs, write_volume
from learning import model_settings
from restoring import image_model, settings

from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.acquisition.degradation import degrade
from emdiffuse.acquisition.image_pairs import acquire_pairs
from emdiffuse.config import Alignment, Degrade, Sampler
from emdiffuse.enhance.one_file import Enhancement, enhance
from emdiffuse.enhance.watch import watch
from emdiffuse.models.importing import import_model
from emdiffuse.models.sharing import export_torch
from emdiffuse.patches.cut import cut_patches
from emdiffuse.registration.align import align
from emdiffuse.registration.raft_training import Recipe, read_sources, train_raft
from emdiffuse.registration.register import register
from emdiffuse.restoration.planning import make_plan
from emdiffuse.runtime import atomic
from emdiffuse.runtime.atomic import replaced, take_place
from emdiffuse.runtime.errors import OutputError
from emdiffuse.stores.volume import write_group

NOISE = Degrade(dataset="a", noise={"electrons": 20})
SIZE = (10.0, 10.0, 10.0)


def snapshot(folder):
    """Return the contents of a folder: the bytes of files, and the targets of links."""
    return {
        path.relative_to(folder): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory, medulla):
    """A folder with one of every kind of input."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "slices").mkdir()
    for z in range(4):
        tifffile.imwrite(folder / f"slices/{z:02d}.tif", medulla[z, :48, :48])
    tifffile.imwrite(folder / "stack.tif", medulla[:4, :48, :48], photometric="minisblack")
    tifffile.imwrite(folder / "scan.tif", medulla[0, :48, :48])
    (folder / "pairs/cell_1/noise_level_1").mkdir(parents=True)
    for name in ("wf_image1.tif", "gt_image1.tif"):
        tifffile.imwrite(folder / "pairs/cell_1/noise_level_1" / name, medulla[0, :48, :48])
    write_volume(folder / "volume.ome.zarr", medulla[:24, :64, :64], SIZE)
    write_volume(folder / "thin.ome.zarr", medulla[:24:6, :64, :64], (60.0, 10.0, 10.0))
    write_volume(folder / "images.ome.zarr", medulla[:2, :48, :48], SIZE, kind="images")
    write_pairs(folder / "pairs.ome.zarr", [(medulla[0, :48, :48], medulla[0, :48, :48])])
    image_model(folder / "model")
    return folder


@pytest.fixture
def place(samples, tmp_path):
    shutil.copytree(samples, tmp_path / "w")
    return tmp_path / "w"


VOLUME = "volume.ome.zarr"
FOLDERS = {
    "acquire slices": ("slices", lambda w, out: acquire(str(w / "slices"), SIZE, out, "a")),
    "acquire a stack": ("stack.tif", lambda w, out: acquire(str(w / "stack.tif"), SIZE, out, "a")),
    "acquire a store": (VOLUME, lambda w, out: acquire(str(w / VOLUME), SIZE, out, "a")),
    "acquire pairs": ("pairs", lambda w, out: acquire_pairs(str(w / "pairs"), SIZE, out, "a")),
    "keep every": (VOLUME, lambda w, out: keep_every(w / VOLUME, 2, out, "a")),
    "degrade": (VOLUME, lambda w, out: degrade(w / VOLUME, NOISE, out, "b", False)),
    "register": (VOLUME, lambda w, out: register_to(w, VOLUME, out)),
    "register images": ("images.ome.zarr", lambda w, out: register_to(w, "images.ome.zarr", out)),
    "register pairs": ("pairs.ome.zarr", lambda w, out: register_to(w, "pairs.ome.zarr", out)),
    "patches": (VOLUME, lambda w, out: cut_patches([w / VOLUME], model_settings(), out)),
    "enhance": ("slices/00.tif", lambda w, out: enhance(w / "slices/00.tif", out, Enhancement(w / "model"))),
}  # fmt: skip


def register_to(place, name, out):
    beside = place.parent / "beside"
    register(place / name, Alignment(), out, beside / "q.json", beside / "q.png")


def foreign(place, source):
    folder = place / "mine.zarr"
    shutil.copytree(place / "slices", folder)
    (folder / "notes.txt").write_text("years of work")
    return folder


def foreign_store(place, source):
    folder = place / "mine.zarr"
    shutil.copytree(place / "volume.ome.zarr", folder)
    return folder


def notes_in_our_own(place, source):
    with replaced(place / "mine.zarr") as partial:
        write_group(partial, {})
    (place / "mine.zarr/notes.txt").write_text("years of work")
    return place / "mine.zarr"


def a_file(place, source):
    (place / "mine.zarr").write_text("years of work")
    return place / "mine.zarr"


def a_link_to_a_foreign_folder(place, source):
    (place / "link.zarr").symlink_to(foreign(place, source))
    return place / "link.zarr"


def the_input(place, source):
    return place / source


def a_link_to_the_input(place, source):
    (place / "link.zarr").symlink_to(place / source)
    return place / "link.zarr"


def what_holds_the_input(place, source):
    place.rename(place.with_name("w.zarr"))
    place.symlink_to(place.with_name("w.zarr"))
    return place.with_name("w.zarr")


def a_place_in_the_input(place, source):
    return place / source / "new.zarr" if (place / source).is_dir() else place / source


VICTIMS = [
    foreign, foreign_store, notes_in_our_own, a_file, a_link_to_a_foreign_folder, the_input,
    a_link_to_the_input, what_holds_the_input, a_place_in_the_input,
]  # fmt: skip


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.__name__)
@pytest.mark.parametrize("maker", FOLDERS)
def test_a_folder_is_replaced_only_if_it_is_ours_and_no_input(place, maker, victim):
    source, make = FOLDERS[maker]
    out = victim(place, source)
    before = snapshot(place.parent)
    with pytest.raises(OutputError, match=out.name):
        make(place, out)
    shutil.rmtree(place.parent / "beside", ignore_errors=True)
    assert snapshot(place.parent) == before


@pytest.mark.parametrize("name", ["restored.ome.zarr", "tiles.zarr"])
@pytest.mark.parametrize("victim", [foreign, foreign_store, notes_in_our_own, a_file])
def test_a_plan_wipes_nothing_that_is_not_its_own(place, small_model, victim, name):
    (place / "plans").mkdir()
    victim(place, "").rename(place / "plans" / name)
    before = snapshot(place)
    with pytest.raises(OutputError, match=name):
        make_plan(place / "thin.ome.zarr", small_model, settings(), place / "plans/plan.json")
    assert snapshot(place).items() >= before.items()


def test_a_plan_does_not_wipe_the_restored_volume_that_it_restores(place, small_model):
    shutil.copytree(place / "thin.ome.zarr", place / "plans/restored.ome.zarr")
    before = snapshot(place)
    with pytest.raises(OutputError, match="this is the input"):
        make_plan(place / "plans/restored.ome.zarr", small_model, settings(), place / "plans/plan.json")
    assert snapshot(place) == before


def train_flow(place, out):
    stack = place / "stack.tif"
    train_raft(read_sources([stack], []), out, Recipe(minutes=0.001, batch=1, updates=1), [stack])


ONE_CALL = Sampler(steps=1)
TASK = "emdiffuse-n"
FILES = {
    "enhance": ("scan.tif", lambda w, out: enhance(w / "scan.tif", out, Enhancement(w / "model", ONE_CALL))),
    "align, moving": ("scan.tif", lambda w, out: align(w / "scan.tif", w / "slices/00.tif", out)),
    "align, fixed": ("slices/01.tif", lambda w, out: align(w / "scan.tif", w / "slices/01.tif", out)),
    "import": ("model/model.safetensors", lambda w, out: import_model(w / "model", TASK, out.parent)),
    "export": ("model/model.json", lambda w, out: export_torch(w / "model", out, side=64)),
    "train-raft": ("stack.tif", train_flow),
}  # fmt: skip
WRITTEN = {"import": "model.safetensors", "export": "out.pt2", "train-raft": "out.safetensors"}


@pytest.mark.parametrize("maker", FILES)
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_a_file_that_is_an_input_is_not_replaced(place, maker, link):
    source, make = FILES[maker]
    out = place / source
    if link is not None:
        (place / "new").mkdir()
        out = place / "new" / WRITTEN.get(maker, "out.tif")
        link(place / source, out)
    elif maker == "train-raft":
        out = (place / source).rename(place / "stack.safetensors")
        out.rename(place / "stack.tif")
        os.link(place / "stack.tif", out)
    before = snapshot(place)
    with pytest.raises(OutputError, match=out.name):
        make(place, out)
    assert snapshot(place) == before


@pytest.mark.parametrize("maker", FILES)
def test_a_file_of_somebody_else_is_not_replaced(place, maker):
    _, make = FILES[maker]
    (place / "new").mkdir()
    out = place / "new" / WRITTEN.get(maker, "out.tif")
    for content in ("years of work", (place / "scan.tif").read_bytes().decode("latin-1"), ""):
        out.write_text(content, encoding="latin-1")
        before = snapshot(place)
        with pytest.raises(OutputError, match=r"add `--overwrite`"):
            make(place, out)
        assert snapshot(place) == before


@pytest.mark.parametrize("name", ["out.json", "out.png", "out.flow.tif", "out.mask.tif"])
def test_align_replaces_nothing_beside_its_output(place, name):
    (place / name).write_text("years of work")
    before = snapshot(place)
    with pytest.raises(OutputError, match=name):
        align(place / "scan.tif", place / "slices/01.tif", place / "out.tif")
    assert snapshot(place) == before


def test_what_the_program_wrote_is_replaced(place):
    made = {
        name: place / "made" / WRITTEN.get(name, f"{name}.tif") for name in FILES if name != "align, fixed"
    }
    for name, out in made.items():
        out.parent.mkdir(exist_ok=True)
        FILES[name][1](place, out)
        first = out.stat().st_ino
        FILES[name][1](place, out)
        assert out.stat().st_ino != first, name
    enhance(place / "scan.tif", place / "a.zarr", Enhancement(place / "model", ONE_CALL))
    enhance(place / "scan.tif", place / "a.zarr", Enhancement(place / "model", ONE_CALL))


def test_overwrite_replaces_a_file_but_never_an_input(place):
    how = Enhancement(place / "model", ONE_CALL)
    enhance(place / "scan.tif", place / "stack.tif", how, overwrite=True)
    assert tifffile.imread(place / "stack.tif").shape == (48, 48)
    with pytest.raises(OutputError, match="this is the input"):
        enhance(place / "scan.tif", place / "scan.tif", how, overwrite=True)


def test_a_folder_of_slices_gets_no_new_slice(place):
    for name in ("2.tif", "clean.tif"):
        with pytest.raises(OutputError, match="is inside the input"):
            enhance(place / "slices", place / "slices" / name, Enhancement(place / "model", ONE_CALL))


def test_watch_sets_aside_what_would_replace_a_foreign_file(place):
    (place / "out").mkdir()
    (place / "out/01.tif").write_text("years of work")
    (place / "out/02.tif").symlink_to(place / "slices/02.tif")
    before = snapshot(place)
    watch(
        place / "slices", place / "out", Enhancement(place / "model", ONE_CALL), once=True, settle=0, poll=0
    )
    assert snapshot(place).items() >= before.items()
    reasons = {path.name: path.read_text() for path in (place / "out/failed").iterdir()}
    assert "not written by emdiffuse" in reasons["01.tif.txt"] and "is the input" in reasons["02.tif.txt"]
    assert (place / "out/00.tif").exists() and (place / "out/03.tif").exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_the_old_stands_until_the_new_does(tmp_path, monkeypatch, exchange):
    """Also if the file system cannot exchange paths: the old one is restored if the new one fails."""
    if not exchange:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    for number in "12":
        with replaced(tmp_path / "a.zarr") as partial:
            (partial / "c").mkdir()
            (partial / "c" / number).touch()
    assert [path.name for path in (tmp_path / "a.zarr/c").iterdir()] == ["2"]
    with pytest.raises(FileNotFoundError):
        take_place(tmp_path / "nothing", tmp_path / "a.zarr")
    assert [path.name for path in (tmp_path / "a.zarr/c").iterdir()] == ["2"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_of_the_umask(place, umask):
    before = os.umask(umask)
    try:
        image_model(place / "best")
        enhance(place / "scan.tif", place / "out/out.tif", Enhancement(place / "model", ONE_CALL))
        with replaced(place / "a.zarr") as partial:
            atomic.write_atomically(partial / "zarr.json", "{}")
    finally:
        os.umask(before)
    for path in (*(place / "best").iterdir(), place / "out/out.tif", place / "a.zarr/zarr.json"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path
    assert (place / "a.zarr").stat().st_mode & 0o777 == 0o777 & ~umask
