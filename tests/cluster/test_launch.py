"""Trainings as jobs of a real cluster: how they end, where they resume, and the launcher's messages."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_volume
from jobs import run, state, wait_until

from emdiffuse.config import Model
from emdiffuse.patches.cut import cut_patches
from emdiffuse.training.train import train

SETTINGS = {
    "task": "vemdiffuse-i",
    "datasets": ["a"],
    "factor": 3,
    "patches": {"size": 32, "validation": 0.25},
    "network": {"channels": 8, "multipliers": [1, 2], "blocks": 1},
    "training": {"steps": 10**6, "batch": 4, "warmup": 2, "validate_every": 50},
}


@pytest.fixture(scope="module")
def store(cluster, medulla, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    volume = write_volume(folder / "a.ome.zarr", medulla[:48, :64, :64], (10, 10, 10))
    cut_patches([volume], Model.model_validate(SETTINGS), folder / "p.zarr")
    return folder / "p.zarr"


class Launcher:
    """A process of `emdiffuse train --launcher submitit`, as started by a user."""

    def __init__(self, store: Path, folder: Path, training: dict, **resources) -> None:
        self.run, self.log = folder / "run", folder / "log.txt"
        settings = {**SETTINGS, "training": {**SETTINGS["training"], **training}}
        asked = {"partition": "gpu", "gpus": 1, "memory_mb": 1000, "minutes": 10, **resources}
        arguments = ["train", str(store), "m", str(folder), "--settings", json.dumps(settings)]
        how = ["--launcher", "submitit", "--resources", json.dumps(asked)]
        self.command = [sys.executable, "-m", "emdiffuse.cli", "--log", str(self.log), *arguments, *how]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)

    @property
    def job(self) -> str:
        return json.loads((self.run / "job.json").read_text())["job"]

    def said(self, pattern: str, seconds: float = 180) -> re.Match[str]:
        """Wait until the log has a line that matches."""

        def look():
            assert self.process.poll() in (None, 0), self.process.stderr.read()
            return self.log.exists() and re.search(pattern, self.log.read_text())

        return wait_until(look, seconds, f"'{pattern}' in {self.log}")

    def ended(self, seconds: float = 180) -> tuple[int, list[str]]:
        """Wait for its end; return its exit code and its errors."""
        try:
            _, text = self.process.communicate(timeout=seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                run("scancel", self.job)
        assert "Traceback" not in text or "error" in text
        return self.process.returncode, [line for line in text.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def out_of_time(store, tmp_path_factory):
    """A training on two nodes that takes longer than its job's one minute; other tests run meanwhile."""
    folder = tmp_path_factory.mktemp("timeout")
    return Launcher(store, folder, {"minutes": 1.0}, minutes=1, nodes=2, gpus=0)


def test_a_job_is_named_in_the_queue_and_its_log_is_followed(store, tmp_path, out_of_time):
    launcher = Launcher(store, tmp_path, {"steps": 200})
    launcher.said("is running on n")
    assert run("squeue", "--noheader", f"--jobs={launcher.job}", "--format=%j %P") == "emdiffuse-train-m gpu"
    launcher.said("step 100 .*validation PSNR")
    assert launcher.ended() == (0, [])
    assert (tmp_path / "best/model.safetensors").exists()


def test_a_job_that_is_requeued_goes_on_from_its_state(store, tmp_path):
    launcher = Launcher(store, tmp_path, {"minutes": 0.2})
    launcher.said("step 50 ")
    run("scontrol", "requeue", launcher.job)
    assert launcher.ended() == (0, [])
    assert re.search(r"the training resumes from step [1-9]", launcher.log.read_text())


def test_a_job_out_of_requeues_saves_its_state_and_fails(store, tmp_path):
    launcher = Launcher(store, tmp_path, {}, requeues=0)
    launcher.said("step 50 ")
    run("scancel", "--signal=USR2", launcher.job)
    code, (error,) = launcher.ended()
    assert code == 1 and "requeued 0 times, which is its limit; the state is saved" in error
    assert (launcher.run / "state.pt").exists()


def test_ctrl_c_cancels_the_job_which_saves_its_state(store, tmp_path):
    launcher = Launcher(store, tmp_path, {})
    launcher.said("step 50 ")
    launcher.process.send_signal(signal.SIGINT)
    code, (error,) = launcher.ended()
    assert code == 130 and f"job {launcher.job} (emdiffuse-train-m) is cancelled" in error
    assert state(launcher.job) == "CANCELLED"
    assert (launcher.run / "state.pt").exists()


def test_a_killed_launcher_finds_its_job_again(store, tmp_path):
    launcher = Launcher(store, tmp_path, {"minutes": 0.4})
    launcher.said("step 50 ")
    job = launcher.job
    launcher.process.kill()
    launcher.process.communicate()
    assert state(job) == "RUNNING"
    launcher.start()
    launcher.said("is already training; following it")
    assert launcher.ended() == (0, []) and launcher.job == job


def test_a_job_of_other_settings_is_cancelled(store, tmp_path):
    old = Launcher(store, tmp_path, {})
    old.said("is running on n")
    job = old.job
    old.process.kill()
    old.process.communicate()
    new = Launcher(store, tmp_path, {"steps": 30})
    assert new.ended() == (0, []) and new.job != job
    assert state(job) == "CANCELLED"


def test_a_failing_job_is_one_sentence(store, tmp_path):
    code, errors = Launcher(store, tmp_path / "nan", {"learning_rate": 1e30}).ended()
    assert code == 1 and len(errors) == 1 and "the loss is nan at step" in errors[0]
    code, errors = Launcher(store, tmp_path / "refused", {}, partition="nowhere").ended()
    assert code == 1 and len(errors) == 1 and "invalid partition specified: nowhere" in errors[0]


def test_a_job_that_dies_without_a_result_is_noticed(store, tmp_path):
    """One of two processes is killed, as if out of memory: the other does not wait for it."""
    launcher = Launcher(store, tmp_path, {}, nodes=2, gpus=0)
    launcher.said("step 50 ")
    os.kill(tasks(launcher)[-1], signal.SIGKILL)
    code, (error,) = launcher.ended()
    assert code == 1 and f"job {launcher.job} (emdiffuse-train-m)" in error
    assert state(launcher.job) in ("FAILED", "CANCELLED")


def tasks(launcher: Launcher) -> list[int]:
    """The processes of its job, in order of their start."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            words = (proc / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if (
            "submitit.core._submit" in words
            and str(launcher.run / "slurm") in words
            and "srun" not in words[0]
        ):
            found.append(int(proc.name))
    return sorted(found)


def test_two_nodes_train_as_one_process_does(store, tmp_path):
    training = {"steps": 40, "validate_every": 20}
    launcher = Launcher(store, tmp_path / "two", training, nodes=2)
    settings = Model.model_validate({**SETTINGS, "training": {**SETTINGS["training"], **training}})
    train(store, settings, "m", tmp_path / "one", "cpu")
    assert launcher.ended() == (0, [])
    assert "process 1 of 2" in launcher.log.read_text()
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)


def losses(experiment: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((experiment / "best/metrics.json").read_text())["history"]]


def test_a_job_that_runs_out_of_time_requeues_itself_and_goes_on(out_of_time):
    assert out_of_time.ended(300) == (0, [])
    text = out_of_time.log.read_text()
    assert "received SIGUSR2; the state after step" in text and "to run for time 2" in text
    saved = re.search(r"after step (\d+) is saved", text)[1]
    assert f"the training resumes from step {saved}" in text


def test_a_lost_node_is_noticed(cluster, store, tmp_path):
    launcher = Launcher(store, tmp_path, {})
    node = launcher.said(r"is running on (n\d)")[1]
    launcher.said("step 50 ")
    try:
        run(cluster, "node", node, "stop")
        code, (error,) = launcher.ended()
    finally:
        run(cluster, "node", node, "start")
    assert code == 1 and f"node {node} was lost" in error
    # failed if its task was seen to die before the node
    assert state(launcher.job) in ("CANCELLED", "FAILED")
