"""Fine-tuning: the starting model is scored first, and kept if nothing better is learned."""

import filecmp
import json
import multiprocessing
import os
import re
import shutil
import signal
from fractions import Fraction

import numpy as np
import pytest
import tifffile
import torch
import yaml
from dying import adapt_and_die
from helpers import ROOT, write_volume
from learning import model_settings, weights
from typer.testing import CliRunner

from emdiffuse.cli import app
from emdiffuse.config import Model
from emdiffuse.config.shipped import model_folder
from emdiffuse.enhance.adapt import FILES, adapt, settings_for
from emdiffuse.enhance.one_file import Enhancement
from emdiffuse.models.description import read_description
from emdiffuse.models.inference import RestorationModel
from emdiffuse.patches import gaps
from emdiffuse.patches.cut import ORIGIN_COLUMNS, PatchStore, cut_patches
from emdiffuse.patches.origins import TRAINING, VALIDATION
from emdiffuse.runtime.errors import EmdiffuseError, OutputError
from emdiffuse.runtime.interruption import Interrupted
from emdiffuse.stores.intensity import shown
from emdiffuse.stores.volume import open_volume
from emdiffuse.training import train as training
from emdiffuse.training.state import network_spec
from emdiffuse.training.train import train


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def thin(medulla, tmp_path):
    """A TIFF of five slices, 60 nm apart."""
    file = tmp_path / "thin.tif"
    tifffile.imwrite(file, medulla[:25:6, :100, :84], photometric="minisblack")
    return file


def test_a_volume_adapts_a_model_which_restores_it(thin, small_model, tmp_path):
    out = tmp_path / "mine"
    run = CliRunner()
    arguments = ["adapt", str(thin), "--model", str(small_model), "--factor", "6", "--minutes", "0.05"]
    done = run.invoke(app, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    facts = json.loads((out / "metrics.json").read_text())
    scores = {entry["step"]: entry["validation_psnr"] for entry in facts["history"]}
    assert min(scores) == 0 < max(scores)
    assert scores[facts["outlook"]["kept_step"]] == max(scores.values()) >= scores[0]
    assert "minutes was reached" in facts["outlook"]["ended"]
    told = run.invoke(app, ["provenance", str(out)]).output
    assert all(f"  {stage} " in told for stage in ("train", "patches", "acquire", "raw"))
    assert "the starting model" in (out / "README.md").read_text()
    arguments = ["enhance", str(thin), str(tmp_path / "out.tif"), "--model", str(out), "--factor", "6"]
    assert run.invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert tifffile.imread(tmp_path / "out.tif").shape == (25, 100, 84)
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_adaptation_resumes(thin, small_model, tmp_path, monkeypatch, caplog):
    how = Enhancement(small_model, voxel_size=(60, 10, 10), device="cpu")
    update = training._update

    def interrupted(state, *rest):
        update(state, *rest)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "_update", interrupted)
    monkeypatch.setattr("emdiffuse.enhance.adapt.MOST_STEPS", 6)
    with pytest.raises(Interrupted, match="after step 4 is saved"):
        adapt(thin, tmp_path / "mine", how)
    assert not (tmp_path / "mine").exists() and (tmp_path / ".mine.adapting").is_dir()
    monkeypatch.setattr(training, "_update", update)
    monkeypatch.setattr("emdiffuse.runtime.progress.logger.propagate", True)
    caplog.set_level("INFO", "emdiffuse")
    adapt(thin, tmp_path / "mine", how)
    assert "resumes from step 4" in caplog.text and "nothing to do" in caplog.text
    assert read_description(tmp_path / "mine").task == "vemdiffuse-a"


PLACES = ["acquire", "cut_patches", "train_here", "step 3", "earlier", "mine", "adapting-done", "removal"]


@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
def test_wherever_it_is_killed_no_model_is_broken_and_the_same_call_completes_it(
    thin, small_model, tmp_path, monkeypatch, before
):
    """`earlier`, `mine` and `-done` are renamings of the previous model, the new one, and the work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emdiffuse.training.train", "emdiffuse.enhance.adapt"])
    out = tmp_path / "mine"
    monkeypatch.setattr("emdiffuse.enhance.adapt.MOST_STEPS", 6)
    if before:
        shutil.copytree(small_model, out)
    for place in PLACES if before else ("step 3", "mine"):
        process = context.Process(target=adapt_and_die, args=(thin, out, small_model, place))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, place
        new = place in ("adapting-done", "removal")
        earlier = before and place != "mine" and not new
        assert out.exists() == (new or earlier)
        assert not earlier or not filecmp.dircmp(small_model, out).diff_files
        assert not new or RestorationModel.load(out)
    adapt(thin, out, Enhancement(small_model, voxel_size=(60, 10, 10), device="cpu"))
    assert read_description(out).task == "vemdiffuse-a" and RestorationModel.load(out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert not list(tmp_path.glob(".mine*"))


@pytest.mark.parametrize("foreign", ["model.json", "metrics.json", "notes.txt", None])
def test_a_foreign_folder_is_refused_and_stays(thin, small_model, tmp_path, foreign):
    out = tmp_path / "mine"
    if foreign is None:
        out.write_text("mine")
    elif foreign == "notes.txt":
        shutil.copytree(small_model, out)  # beside a model of this program's
    else:
        out.mkdir()
    if foreign is not None:
        (out / foreign).write_text("{}")
    with pytest.raises(OutputError, match=foreign or "a file is in the way"):
        adapt(thin, out, Enhancement(small_model, voxel_size=(60, 10, 10), device="cpu"))
    assert (out / (foreign or "")).read_text() in ("{}", "mine") and not list(tmp_path.glob(".*"))


def test_a_configuration_can_say_the_same():
    """The configuration in the documentation does what `adapt` does with a volume of this size."""
    page = (ROOT / "docs/tutorials/adapt.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (said,) = yaml.safe_load(text)["models"].values()
    written = Model.model_validate({**said, "training": {**said["training"], "init_from": None}})
    known = read_description(model_folder("vemdiffuse"))
    how = Enhancement(model_folder("vemdiffuse"))
    done = settings_for(known, Fraction(6), (20, 400, 400), how, minutes=10)
    assert network_spec(written, 1, known.network) == network_spec(done, 1, known.network)
    own = {"datasets": True, "network": True, "factor": True, "training": {"init_from"}}
    assert written.factors == done.factors
    assert written.model_dump(exclude=own) == done.model_dump(exclude=own)


@pytest.mark.parametrize(
    ("shape", "task", "message"),
    [
        ((5, 24, 84), None, "24 x 84 pixels are too few to train on"),
        ((5, 100, 84), "emdiffuse-r", "cannot be adapted without ground truth"),
        ((5, 100, 84), "emdiffuse-n", "noisy images alone cannot show whether another is better"),
    ],
)
def test_what_cannot_be_adapted_is_refused(medulla, small_model, tmp_path, shape, task, message):
    model = small_model if task is None else image_model(tmp_path / "model", task)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, medulla[tuple(slice(n) for n in shape)], photometric="minisblack")
    how = Enhancement(model, voxel_size=(60, 10, 10), device="cpu")
    with pytest.raises(EmdiffuseError, match=message):
        adapt(file, tmp_path / "mine", how, 0.01)
    assert not (tmp_path / "mine").exists()


def test_a_denoiser_that_learned_from_noisy_images_adapts_to_others(medulla, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).normal(0, 20, (3, 100, 84))
    noisy = np.clip(medulla[:3, :100, :84] + noise, 0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "noisy.tif", noisy, photometric="minisblack")
    monkeypatch.setattr("emdiffuse.enhance.adapt.MOST_STEPS", 3)
    model = image_model(tmp_path / "model", "emdiffuse-n", (0, 1))
    adapt(tmp_path / "noisy.tif", tmp_path / "mine", Enhancement(model, device="cpu"))
    history = json.loads((tmp_path / "mine/metrics.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [0, 3] and "validation_loss" in history[0]
    found = read_description(tmp_path / "mine")
    assert found.network.blind_spot == (0, 1) and found.learned_from == "hidden pixels"


def image_model(folder, task, blind_spot=None):
    from emdiffuse.models.description import Description, NativeSpec
    from emdiffuse.models.networks.build import build_network
    from emdiffuse.models.networks.weights import save_model

    spec = NativeSpec(conditions=1, channels=8, multipliers=(1, 2), blocks=1, blind_spot=blind_spot)
    learned = "hidden pixels" if blind_spot else None
    save_model(folder, build_network(spec), Description(task=task, network=spec, learned_from=learned))
    return folder


GAPS = model_settings().model_dump()
ANISOTROPIC = {
    **GAPS,
    "task": "vemdiffuse-a",
    "patches": {"size": 32, "validation": 0.25, "left_out_slices": True},
}


@pytest.mark.parametrize("settings", [GAPS, ANISOTROPIC], ids=["vemdiffuse-i", "vemdiffuse-a"])
def test_no_fine_tuning_is_worse_than_the_model_that_it_began_from(
    settings, store, medulla, small_model, tmp_path
):
    """At this learning rate every step is harmful: the starting model is kept."""
    if settings is ANISOTROPIC:
        volume = write_volume(tmp_path / "a.ome.zarr", medulla[:25:3, :100, :64], (30, 10, 10))
        store = tmp_path / "p.zarr"
        cut_patches([volume], Model.model_validate(settings), store)
    rate = {"learning_rate": 10.0, "ema": 0.0, "validate_every": 1, "init_from": str(small_model)}
    model = Model.model_validate({**settings, "training": {"steps": 3, "batch": 2, "warmup": 0, **rate}})
    train(store, model, "m", tmp_path, "cpu")
    facts = json.loads((tmp_path / "best/metrics.json").read_text())
    assert [entry["step"] for entry in facts["history"]] == [0, 1, 2, 3]
    assert facts["outlook"]["kept_step"] == 0 and facts["outlook"]["gain"] == 0
    before, after = RestorationModel.load(small_model).network.state_dict(), weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    known, kept = read_description(small_model), read_description(tmp_path / "best")
    assert (kept.factors, kept.network) == (known.factors, known.network)
    assert "whose weights are kept unchanged" in (tmp_path / "best/README.md").read_text()


@pytest.fixture
def left_out(medulla, tmp_path):
    """A volume of nine slices, and its patches with omitted slices."""

    def cut(size=32, **facts):
        settings = {**ANISOTROPIC, "patches": {**ANISOTROPIC["patches"], "size": size}}
        volume = write_volume(tmp_path / "a.ome.zarr", medulla[:25:3, :100, :64], (30, 10, 10), **facts)
        cut_patches([volume], Model.model_validate(settings), tmp_path / "p.zarr")
        patches = PatchStore(tmp_path / "p.zarr")
        axis, z, y, split = (patches.origins[:, ORIGIN_COLUMNS.index(n)] for n in ("axis", "z", "y", "split"))
        return open_volume(volume), patches, axis == 0, z, y, split

    return cut


def test_a_left_out_slice_is_the_target_between_its_neighbours(left_out):
    volume, patches, axial, z, y, split = left_out()
    assert axial.any() and not axial.all() and set(patches.factor[axial]) == {6}
    unit = shown(volume.array[:, :, :], volume.intensity.at(range(9)))
    for row in np.flatnonzero(axial):
        (condition,), (target,) = patches.read(np.array([row]))
        x = patches.origins[row, ORIGIN_COLUMNS.index("x")]
        images = unit[:, y[row] : y[row] + 32, x : x + 32]
        middle = z[row] + 1
        first = middle - 3 if middle >= 3 else middle - 1
        last = middle + 3 if middle + 3 < 9 else middle + 1
        np.testing.assert_allclose(condition, images[[first, z[row], middle + 1, last]], atol=2e-3)
        np.testing.assert_allclose(target[0], images[middle], atol=2e-3)
        assert np.isnan(target[1:]).all() and patches.positions[row, 0] == 0.5
    trained = axial & (split == TRAINING)
    assert y[trained].max() + 32 + 3 <= y[split == VALIDATION].min()


def test_no_left_out_slice_is_missing_or_thick(left_out):
    _, _, axial, z, _, _ = left_out(size=16, missing=[8])
    assert set(z[axial] + 1) == {1, 2, 3, 4, 5, 6}
    assert not left_out(thickness=1.0)[2].any()


def test_of_a_huge_volume_places_are_drawn_and_not_listed():
    """A terabyte has a billion; all are equally likely, and the draw depends only on the seed."""
    sides = (range(2000), range(0, 60000, 6), range(0, 60000, 32))
    places, again = (np.array(list(gaps._some(*sides, [1, 2]))) for _ in range(2))
    np.testing.assert_array_equal(places, again)
    assert gaps.MOST_PLACES * 0.99 < len(places) == len(np.unique(places, axis=0)) <= gaps.MOST_PLACES
    means = [np.mean(side) for side in sides]
    np.testing.assert_allclose(places.mean(0), means, rtol=0.01)
    assert all(set(column) <= set(side) for column, side in zip(places.T.tolist(), sides, strict=True))
    few = (range(3), range(0, 8, 4), [5])
    assert list(gaps._some(*few, [1])) == [(z, y, 5) for z in range(3) for y in (0, 4)]
