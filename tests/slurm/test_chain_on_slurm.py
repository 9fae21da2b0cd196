"""The whole chain on a real cluster: each stage a job, workers on both nodes, the local volume."""

import re
import shutil

import pytest
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
    "evaluate",
    "report",
}


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def on_slurm(cluster, tmp_path_factory, medulla):
    """A finished run of the small project by the slurm profile."""
    project = Project(tmp_path_factory.mktemp("slurm") / "project", medulla)
    project.log = project.run("--slurm-init-seconds-before-status-checks", "3", profile="slurm").stderr
    return project


def test_each_stage_is_a_job_of_its_own(on_slurm):
    submitted = set(re.findall(r"submitted with SLURM jobid \d+ \(log: \S+/rule_(\w+?)/", on_slurm.log))
    assert submitted == STAGES


def test_the_training_is_a_job_that_emdiffuse_follows(on_slurm):
    log = (on_slurm.folder / "logs/train/gap3.log").read_text()
    assert re.search(r"job \d+ \(emdiffuse-train-gap3\) runs on n\d", log)
    assert "step 20 " in log


def test_workers_run_on_both_nodes(on_slurm):
    logs = sorted((on_slurm.folder / "logs/restore").glob("*.log"))
    assert len(logs) == 2
    assert {re.search(r"on node (n\d)", log.read_text())[1] for log in logs} == {"n1", "n2"}


def test_the_volume_is_identical_to_a_local_run_with_the_same_weights(on_slurm, tmp_path):
    restored = on_slurm.output / "restored.ome.zarr"
    shutil.copytree(restored, tmp_path / "restored.ome.zarr")
    shutil.rmtree(on_slurm.output)
    done = on_slurm.run("--forcerun", "plan", profile="local")
    assert "rule train" not in done.stderr and "rule restore" in done.stderr
    assert content(restored) == content(tmp_path / "restored.ome.zarr")
