"""Where a training runs, without a cluster: local processes, signals, and SLURM's messages."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import submitit
import torch
from helpers import write_volume
from submitit.core.utils import DelayedSubmission

from emdiffuse.config import Model
from emdiffuse.config.settings import parse
from emdiffuse.patches.cut import cut_patches
from emdiffuse.registration.volumes import NotAligned
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.runtime.interruption import Interrupted
from emdiffuse.runtime.progress import setup
from emdiffuse.training import launch
from emdiffuse.training.launch import TrainingJob
from emdiffuse.training.parallel import Ranks
from emdiffuse.training.slurm import JobState, Log, failure, parse_job
from emdiffuse.training.submission import Resources, sbatch_options, signal_seconds
from emdiffuse.training.train import train

SETTINGS = {
    "task": "vemdiffuse-i",
    "datasets": ["a"],
    "factor": 3,
    "patches": {"size": 32, "validation": 0.25},
    "network": {"channels": 8, "multipliers": [1, 2], "blocks": 1},
    "training": {"steps": 30, "batch": 4, "warmup": 2, "validate_every": 10, "checkpoint_minutes": 1e-6},
}


@pytest.fixture(scope="module")
def store(medulla, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    volume = write_volume(folder / "a.ome.zarr", medulla[:48, :64, :64], (10, 10, 10))
    cut_patches([volume], Model.model_validate(SETTINGS), folder / "p.zarr")
    return folder / "p.zarr"


def start(store: Path, experiment: Path, *options: str, **training) -> subprocess.Popen[str]:
    settings = {**SETTINGS, "training": {**SETTINGS["training"], **training}}
    command = [
        sys.executable,
        "-m",
        "emdiffuse.cli",
        "--threads",
        "2",
        "train",
        str(store),
        "m",
        str(experiment),
    ]
    return subprocess.Popen(
        [*command, "--settings", json.dumps(settings), "--device", "cpu", *options],
        stderr=subprocess.PIPE,
        text=True,
    )


def run(store: Path, experiment: Path, *options: str, **training) -> str:
    process = start(store, experiment, *options, **training)
    _, text = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


def wait_for_state(process: subprocess.Popen[str], experiment: Path) -> None:
    while not (experiment / "run/state.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def weights(experiment: Path) -> bytes:
    return (experiment / "best/model.safetensors").read_bytes()


def losses(experiment: Path) -> list[float]:
    return [e["loss"] for e in json.loads((experiment / "best/metrics.json").read_text())["history"]]


def test_two_processes_train_as_one_does_and_go_on_after_one_was_killed(store, tmp_path):
    train(store, Model.model_validate(SETTINGS), "m", tmp_path / "one", "cpu")
    run(store, tmp_path / "two", "--processes", "2")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)

    process = start(store, tmp_path / "killed", "--processes", "2")
    wait_for_state(process, tmp_path / "killed")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
    os.kill(ranks[1], signal.SIGKILL)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in text
    assert re.search(r"error: .*process 2 of 2 ended with SIGKILL; start again", text)
    again = run(store, tmp_path / "killed", "--processes", "2")
    assert re.search(r"resumes from step [1-9]", again)
    assert weights(tmp_path / "killed") == weights(tmp_path / "two")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_terminated_training_saves_its_state_and_goes_on(store, tmp_path, processes):
    options = ("--processes", processes)
    process = start(store, tmp_path / "stopped", *options, steps=10**6, checkpoint_minutes=60)
    while not (tmp_path / "stopped/run/best.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 143 and "Traceback" not in text
    assert len(re.findall("^error: ", text, re.MULTILINE)) == 1 and "start again to resume" in text
    assert torch.load(tmp_path / "stopped/run/state.pt", weights_only=True)["step"] >= 10
    assert not (tmp_path / "stopped/best").exists()


def test_a_mistake_in_one_of_two_processes_is_one_sentence(store, tmp_path):
    process = start(store, tmp_path, "--processes", "3")
    _, text = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in text
    assert "error: training.batch: 4 is not a multiple of the number of processes, 3" in text


def test_the_parts_of_a_batch_are_the_batch():
    parts = [Ranks(torch.device("cpu"), rank, 3).part(12) for rank in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(12)) and {len(part) for part in parts} == {4}


def job(state: str, why: str = "None", code: str = "0:0") -> JobState:
    return JobState("emdiffuse-train-m", state, why, "n1", code, 0)


def test_slurms_words_about_a_job_are_read():
    line = (
        "JobId=7 JobName=emdiffuse-train-m UserId=r(0) JobState=PENDING Reason=BeginTime Dependency=(null) "
        "Requeue=1 Restarts=2 BatchFlag=1 ExitCode=0:9 ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] "
        "BatchHost=n1 NumNodes=2 StdErr=/x/NodeList=y"
    )
    assert parse_job(line) == JobState("emdiffuse-train-m", "PENDING", "BeginTime", "n[1-2]", "0:9", 2)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "SLURM no longer lists it"),
        (job("FAILED", "NonZeroExitCode", "3:0"), "exit code 3"),
        (job("FAILED", "NonZeroExitCode", "137:0"), "killed by signal 9, perhaps out of memory"),
        (job("FAILED", "RaisedSignal:15", "0:15"), "killed by signal 15"),
        (job("OUT_OF_MEMORY", "OutOfMemory", "0:125"), "ran out of memory; request more (`mem_mb`"),
        (job("NODE_FAIL", "NodeDown", "1:0"), "its node was lost"),
        (job("TIMEOUT", "TimeLimit", "0:15"), "`runtime`"),
        (job("PENDING", "launch_failed_requeued_held"), "SLURM holds it"),
    ],
)
def test_how_a_job_ended_is_said_in_words(state, said):
    assert said in failure(state)


@pytest.mark.parametrize(
    "state", ["PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"]
)
def test_a_job_that_has_not_ended_has_not_failed(state):
    assert failure(job(state, "Resources")) is None


class Waiting(Exception):
    """Raised instead of waiting for the end."""


@pytest.mark.parametrize(
    ("scontrol", "outcome"),
    [("kill -TERM $$", Waiting), ("exit 1", subprocess.CalledProcessError), ("exit 0", SystemExit)],
)
def test_a_requeue_that_ends_scontrol_is_waited_for(tmp_path, monkeypatch, scontrol, outcome):
    """SLURM ends the whole job that it requeues, including the requesting scontrol."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in (
        ("SUBMITIT_EXECUTOR", "slurm"),
        ("SUBMITIT_FOLDER", str(tmp_path)),
        ("SLURM_JOB_ID", "7"),
    ):
        monkeypatch.setenv(name, value)
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    }

    def stopped(*_):
        raise Interrupted(signal.SIGUSR2, "saved")

    def pause():
        raise Waiting

    monkeypatch.setattr(launch, "train", stopped)
    monkeypatch.setattr(signal, "pause", pause)
    work = TrainingJob(tmp_path, Model.model_validate(SETTINGS), "m", tmp_path, requeues=1)
    submission = DelayedSubmission(work)
    submission.set_timeout(60, 1)
    environment = submitit.JobEnvironment()
    environment._handle_signals(environment.paths, submission)
    try:
        with pytest.raises(outcome):
            work()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        setup()


@pytest.mark.parametrize(
    "mistake",
    [
        DataError("p.zarr is empty; cut it again", Path("p.zarr")),
        NotAligned("a: odd", "slice 3 by 2"),
    ],
)
def test_a_mistake_travels_between_processes_with_all_that_it_knows(mistake):
    other = pickle.loads(pickle.dumps(mistake))
    assert (type(other), str(other), vars(other)) == (type(mistake), str(mistake), vars(mistake))


def test_a_job_is_told_early_enough_and_not_at_once():
    assert [signal_seconds(m) for m in (1, 6, 12, 1440)] == [10, 60, 120, 120]


def test_more_options_of_sbatch_are_passed_on():
    assert sbatch_options("--mail-type=END --exclusive '--comment=a b'") == {
        "mail-type": "END", "exclusive": True, "comment": "a b",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="'-w' is not of the form --name=value"):
        sbatch_options("-w n1")


def test_an_unknown_resource_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"--resources: partitoin: unknown key; did you mean 'partition'"):
        parse(Resources, {"partitoin": "gpu"}, "--resources")


def test_a_log_is_passed_on_in_whole_lines_and_once(tmp_path):
    source, copy = tmp_path / "job.out", tmp_path / "rule.log"
    setup(copy)
    log = Log(source, whole=True)
    log.drain()
    for text, expected in (("one\ntw", ["one"]), ("o\n", ["one", "two"]), ("", ["one", "two"])):
        with source.open("a") as file:
            file.write(text)
        log.drain()
        assert copy.read_text().splitlines()[1:] == expected
    setup()
