"""The whole pipeline: its outputs, and that only affected stages rerun."""

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import tifffile
import zarr
from helpers import ROOT
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import Image
from restoring import content, flip
from small_project import Project

from emdiffuse.restoration.plan import read_plan
from emdiffuse.stores.array import Array
from emdiffuse.stores.volume import open_volume

RESTORATION = {
    "plan -5deg gap v1.2",
    "restore -5deg gap v1.2",
    "stitch -5deg gap v1.2",
    "pyramid -5deg gap v1.2",
    "evaluate -5deg gap v1.2",
    "report",
}


def test_a_run_leaves_what_the_readme_says(finished):
    restored = open_volume(finished.output / "restored.ome.zarr")
    assert restored.array.shape == (31, 84, 84) and restored.voxel_size == (10, 10, 10)
    truth = tifffile.imread(finished.folder / "test.tif")
    values = restored.array[:, :, :]
    np.testing.assert_array_equal(values[::3], truth[::3])
    assert not np.array_equal(values[1], truth[1])
    numbers = json.loads((finished.folder / "results/evaluation/-5deg/gap v1.2.json").read_text())
    assert {"nearest", "linear", "cubic", "restored"} <= set(numbers["methods"])
    assert (finished.folder / "results/report.html").stat().st_size > 10_000
    quality = json.loads((finished.folder / "results/registered/-5deg.quality.json").read_text())
    assert quality["aligned"] is True


def test_no_file_of_a_run_holds_a_number_that_json_has_not(finished):
    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    files = [path for path in finished.folder.rglob("*.json*") if path.suffix in (".json", ".jsonl")]
    assert {"plan.json", "zarr.json", "metrics.json", "report.json", "stats.jsonl"} <= {f.name for f in files}
    for path in files:
        text = path.read_text()
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(part, parse_constant=refuse)


def test_every_volume_is_ome_zarr_0_5(finished):
    images = [p for p in (finished.folder / "results").rglob("*.ome.zarr") if p.is_dir()]
    images += [finished.output / "restored.ome.zarr" / name for name in ("restored", "uncertainty")]
    assert len(images) == 9
    for path in images:
        model = Image.from_zarr(zarr.open_group(path, mode="r"))
        for image in model.ome_attributes.multiscales:
            assert [(axis.name, axis.unit) for axis in image.axes] == [(name, "nanometer") for name in "zyx"]
            for level in image.datasets:
                assert zarr.open_array(path / level.path, mode="r").shards is not None
        (node,) = Reader(parse_url(str(path)))()
        assert node.data[0].shape == open_volume(path).array.shape


def test_nothing_runs_after_a_finished_run(project):
    assert project.pending() == set()


def test_other_sampler_steps_redo_the_restoration_alone(project):
    project.config["restorations"][0]["sampler"]["steps"] = 1
    assert project.pending() == RESTORATION
    project.run()
    assert project.pending() == set()
    assert (
        open_volume(project.output / "restored.ome.zarr").facts.estimator == "posterior mean in one network evaluation"
    )


def test_another_learning_rate_redoes_the_training_and_what_follows(project):
    project.config["models"]["gap v1.2"]["training"]["learning_rate"] = 5e-4
    assert project.pending() == RESTORATION | {"train gap v1.2"}


def test_other_patches_redo_the_patches_and_what_follows(project):
    project.config["models"]["gap v1.2"]["patches"]["overlap"] = 0.25
    assert project.pending() == RESTORATION | {"train gap v1.2", "patches gap v1.2"}


def test_a_changed_raw_file_redoes_its_own_chain_alone(project):
    raw = project.own("test.tif")
    values = tifffile.imread(raw)
    values[4, 10:20] = 255 - values[4, 10:20]
    tifffile.imwrite(raw, values)
    own = {"acquire test", "keep_every -5deg", "register test", "register -5deg", "baselines -5deg"}
    assert project.pending() == RESTORATION | own


def test_a_second_dataset_adds_its_own_jobs_alone(project, medulla):
    tifffile.imwrite(project.folder / "second.tif", medulla[30:41, 100:184, 100:184])
    project.config["datasets"]["second"] = {"source": "second.tif", "voxel_size": {"z": 30, "y": 10, "x": 10}}
    project.config["restorations"].append({**project.config["restorations"][0], "dataset": "second"})
    stages = ("plan", "restore", "stitch", "pyramid")
    own = {"acquire second", "register second"} | {f"{stage} second gap v1.2" for stage in stages}
    assert project.pending() == own | {"report"}
    project.run()
    assert open_volume(project.folder / "results/restored/second/gap v1.2/restored.ome.zarr").array.shape == (
        31,
        84,
        84,
    )


def test_a_model_begun_from_another_waits_for_it(project):
    first = project.config["models"]["gap v1.2"]
    begun = {**first, "training": {**first["training"], "steps": 1, "init_from": "gap v1.2"}}
    project.config["models"]["begun"] = begun
    project.config["restorations"].append({**project.config["restorations"][0], "model": "begun"})
    stages = ("plan", "restore", "stitch", "pyramid", "evaluate")
    own = {"patches begun", "train begun", "report"} | {f"{stage} -5deg begun" for stage in stages}
    assert project.pending() == own, "what is known of the other restoration, and the baselines, stays"
    project.config["models"]["gap v1.2"] = {**first, "training": {**first["training"], "learning_rate": 5e-4}}
    assert project.pending() == own | RESTORATION | {"train gap v1.2"}


def test_gaps_are_filled_between_slices_that_another_model_denoised(project):
    """And denoising them differently redoes both, but not the training of the gap model."""
    gaps, item = project.config["models"]["gap v1.2"], project.config["restorations"][0]
    images = {key: value for key, value in gaps.items() if key != "factor"}
    project.config["datasets"]["noisy"] = {"degrade": {"dataset": "mon volume", "every": 4, "noise": {"gaussian": 0.1}}}
    project.config["models"]["denoise"] = {**images, "task": "emdiffuse-n", "datasets": ["noisy"]}
    slices = {**item, "model": "denoise"}
    project.config["restorations"] = [slices, {**item, "real_slices": "denoise"}]
    project.run()
    assert project.pending() == set()
    denoised = open_volume(project.output.parent / "denoise/restored.ome.zarr")
    restored = open_volume(project.output / "restored.ome.zarr")
    assert denoised.voxel_size == (30, 10, 10)
    values, known = restored.array[:, :, :], denoised.array[:, :, :]
    np.testing.assert_array_equal(values[::3], known)
    assert (known != tifffile.imread(project.folder / "test.tif")[::3]).mean() > 0.1
    assert restored.facts.real_slices.model == "denoise"
    report = (project.folder / "results/report.html").read_text()
    first = restored.facts.real_slices.estimator
    assert "mean" in first and f"first restored by the model denoise ({first})" in report
    slices["sampler"] = {"name": "dpm++", "steps": 3, "samples": 2}
    stages = {f"{stage} -5deg denoise" for stage in ("plan", "restore", "stitch", "pyramid")}
    assert project.pending() == RESTORATION | stages | {"baselines -5deg"}


def test_the_title_redoes_the_report_alone(project):
    project.config["title"] = "Another"
    assert project.pending() == {"report"}


def test_the_profile_says_how_the_network_is_run(tmp_path, medulla, commands):
    project = Project(tmp_path / "project", medulla, commands)
    options = ("--set-resources", "restore:batch=2", "restore:compile=reduce-overhead")
    for given, told in (((), "--batch auto --precision auto\n"), (options, "--batch 2 --precision auto --compile reduce-overhead\n")):
        done = project.run("--dry-run", "--printshellcmds", *given)
        assert (done.stdout + done.stderr).count(told) == 2  # workers


def test_a_mistake_in_the_config_is_one_line(project):
    project.config["models"]["gap v1.2"]["training"]["learning_rat"] = 1
    done = project.run("--dry-run", check=False)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert text.splitlines()[-1] == (
        "error: config: models.gap v1.2.training.learning_rat: unknown key; did you mean 'learning_rate'?"
    )
    assert "Traceback" not in text


def test_bad_data_is_one_error_and_leaves_nothing(project):
    raw = project.own("test.tif")
    raw.write_bytes(raw.read_bytes()[:5000])
    done = project.run(check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0 and "test.tif" in text and 'File "' not in text
    assert not (project.folder / "results/acquired/test.ome.zarr/zarr.json").exists()
    assert not list((project.folder / "results/acquired").glob(".*partial*"))


def test_a_killed_run_goes_on_without_redoing_finished_blocks(project):
    sampler = project.config["restorations"][0]["sampler"]
    sampler["steps"], sampler["samples"] = 8, 6  # slow enough to be killed in the midst of it
    run = subprocess.Popen(
        project.command(), cwd=project.folder, env=project.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    chunks = project.output / "tiles.zarr" / "c"
    deadline = time.monotonic() + 600
    done = []
    while len(done) < 4:
        assert run.poll() is None and time.monotonic() < deadline
        done = (
            [p for p in chunks.rglob("*") if p.is_file() and "__lock" not in p.name]
            if _restoring(project)
            else []
        )
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    os.killpg(run.pid, signal.SIGKILL)  # and its workers
    run.wait()
    total = math.prod(Array(project.output / "tiles.zarr").grid)
    before = {p: p.stat().st_mtime_ns for p in chunks.rglob("*") if p.is_file() and "__lock" not in p.name}
    assert 4 <= len(before) < total
    project.run()
    assert all(p.stat().st_mtime_ns == time_ for p, time_ in before.items())
    assert project.pending() == set()


def _restoring(project):
    """Whether the tile store is that of the new plan."""
    plan = project.output / "plan.json"
    return plan.exists() and read_plan(plan).sampler.steps == 8


def test_a_damaged_block_is_made_again_when_the_workflow_is_started_again(project):
    restored = project.output / "restored.ome.zarr"
    before = content(restored)
    for mark in (restored / "zarr.json", *project.output.glob("stitched-*.done")):  # as before it is finished
        mark.unlink()
    shutil.rmtree(restored / "restored/0/c")
    flip(Array(project.output / "tiles.zarr").chunk_path((0, 1, 0, 0)))
    wanted = str((restored / "zarr.json").relative_to(project.folder))
    done = project.run(wanted, check=False)
    assert done.returncode != 0 and "start again; only those blocks are recomputed" in done.stdout + done.stderr
    project.run(wanted)
    assert content(restored) == before


def verify(project, path, *options):
    command = ["emdiffuse", "verify", path, *options]
    return subprocess.run(command, cwd=project.folder, env=project.commands, capture_output=True, text=True)


def test_what_of_a_restoration_is_lost_is_found_and_repaired_by_the_next_run(project):
    restored, plan = project.output / "restored.ome.zarr", "results/restored/-5deg/gap v1.2/plan.json"
    before = content(restored)
    assert verify(project, plan).returncode == 0
    shard = restored / "restored/0/c/0/0/0"
    flip(shard)
    shutil.rmtree(restored / "uncertainty/1")
    found = verify(project, plan)
    assert found.returncode == 1 and project.pending() == set()
    for lost in ("restored/0/c/0/0/0: damaged", "uncertainty/1/zarr.json: missing"):
        assert lost in found.stderr
    assert verify(project, plan, "--repair").returncode == 0
    assert project.pending() == {"stitch -5deg gap v1.2", "pyramid -5deg gap v1.2", "evaluate -5deg gap v1.2", "report"}
    project.run()
    assert content(restored) == before and verify(project, plan).returncode == 0
    assert project.pending() == set()


def test_a_damaged_store_is_made_again_by_the_next_run_once_verify_repaired_it(project):
    """The chunk shares its file with that of the acquired volume: both are rewritten."""
    store = "results/registered/mon volume.ome.zarr"
    values = open_volume(project.folder / store).array[:, :, :]
    chunk = project.folder / store / "0/c/0/0/0"
    chunk.unlink()
    os.link(project.folder / "results/acquired/mon volume.ome.zarr/0/c/0/0/0", chunk)  # as before it was copied
    flip(chunk)
    assert verify(project, store).returncode == 1
    assert verify(project, store, "--repair").returncode == 0
    assert {"acquire mon volume", "register mon volume"} <= project.pending()
    project.run()
    assert verify(project, store).returncode == 0
    np.testing.assert_array_equal(open_volume(project.folder / store).array[:, :, :], values)
    assert project.pending() == set()


def test_a_restoration_that_was_deleted_is_made_again(project):
    shutil.rmtree(project.folder / "results/restored")
    assert RESTORATION - {"report"} <= project.pending()


def test_two_runs_in_one_folder_are_refused(project):
    project.config["title"] = "Another title"
    with (project.folder / ".snakemake/emdiffuse.lock").open("w") as held:  # as a run under way holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        second = project.run(check=False)
        assert second.returncode != 0 and "another run is active" in second.stdout + second.stderr
        assert project.pending() == {"report"}  # looking is allowed
    project.run()


def test_the_workflow_is_clean():
    for command in (["snakemake", "--lint"], ["snakefmt", "--check", "workflow"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
