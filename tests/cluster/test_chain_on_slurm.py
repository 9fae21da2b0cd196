"""The whole pipeline on a real cluster: one job per stage, workers on both nodes, the local volume."""

import re
import shutil
import subprocess

import pytest
from jobs import run, wait_until
from small_project import Project

STAGES = {
    "acquire",
    "keep_every",
    "register",
    "patches",
    "plan",
    "restore",
    "stitch",
    "pyramid",
    "baselines",
    "evaluate",
    "report",
}
OFTEN = ("--slurm-init-seconds-before-status-checks", "3")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def on_slurm(cluster, tmp_path_factory, medulla):
    """A finished run of the small project with the slurm profile."""
    project = Project(tmp_path_factory.mktemp("slurm") / "project", medulla)
    project.config["restorations"][0]["sampler"]["steps"] = 8  # long enough to lose a node meanwhile
    project.log = project.run(*OFTEN, profile="slurm").stderr
    return project


def test_each_stage_is_a_job_of_its_own(on_slurm):
    submitted = set(re.findall(r"submitted with SLURM jobid \d+ \(log: \S+/rule_(\w+?)/", on_slurm.log))
    assert submitted == STAGES


def test_the_training_is_a_job_that_emdiffuse_follows(on_slurm):
    log = (on_slurm.folder / "logs/train/gap v1.2.log").read_text()
    assert re.search(r"job \d+ \(emdiffuse-train-gap_v1\.2\) is running on n\d", log)
    assert "step 20 " in log


def test_workers_run_on_both_nodes(on_slurm):
    logs = sorted((on_slurm.folder / "logs/restore").glob("*.log"))
    assert len(logs) == 2
    assert {re.search(r"on node (n\d)", log.read_text())[1] for log in logs} == {"n1", "n2"}


def test_a_node_that_is_lost_during_a_restoration_changes_no_byte(cluster, on_slurm):
    """Its job moves to the other node and completes the remaining blocks."""
    undisturbed = content(on_slurm.output / "restored.ome.zarr")
    shutil.rmtree(on_slurm.output)
    logs = on_slurm.folder / "logs/restore"
    shutil.rmtree(logs)
    workflow = subprocess.Popen(
        on_slurm.command("--forcerun", "plan", "--until", "pyramid", *OFTEN, profile="slurm"),
        cwd=on_slurm.folder,
        env=on_slurm.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    first = on_slurm.output / "tiles.zarr/c"
    node = None
    try:
        wait_until(lambda: workflow.poll() is not None or any(first.rglob("[0-9]")), 600, "the first block")
        assert workflow.poll() is None, workflow.communicate()[1][-3000:]
        (node, *_) = (re.search(r"on node (n\d)", log.read_text())[1] for log in logs.glob("*.log"))
        run(cluster, "node", node, "stop")
        _, said = workflow.communicate(timeout=420)
    finally:
        workflow.kill()
        if node:
            run(cluster, "node", node, "start")
    assert workflow.returncode == 0, said[-3000:]
    assert re.search(r"Trying to restart job \d+", said) and "Error in rule restore" in said
    assert content(on_slurm.output / "restored.ome.zarr") == undisturbed


def test_the_volume_is_identical_to_a_local_run_with_the_same_weights(on_slurm, tmp_path):
    restored = on_slurm.output / "restored.ome.zarr"
    shutil.copytree(restored, tmp_path / "restored.ome.zarr")
    shutil.rmtree(on_slurm.output)
    done = on_slurm.run("--forcerun", "plan", profile="local")
    assert "rule train" not in done.stderr and "rule restore" in done.stderr
    assert content(restored) == content(tmp_path / "restored.ome.zarr")
