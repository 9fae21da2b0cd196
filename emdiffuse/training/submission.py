"""Run a training as a SLURM job: submit it, or find it running, and follow it to its end.

Conventions
-----------
* A job is submitted by submitit (one task per GPU, or per node without GPUs) under the name
  ``emdiffuse-train-{model}``. Its files are in ``run/slurm/``, and ``run/job.json`` names it, so that a
  second start follows it instead of submitting another.
* The state is read from ``scontrol`` and from the job's result, because submitit relies on accounting
  (sacct), and without it never notices a dead job.
* SIGINT and SIGTERM cancel the job. SIGKILL and a lost connection do not: start again to follow it.
"""

from __future__ import annotations

import json
import shlex
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from emdiffuse.config.settings import Section
from emdiffuse.runtime.errors import ConfigError, EmdiffuseError, LaunchError
from emdiffuse.runtime.extras import require
from emdiffuse.runtime.interruption import Interrupted, Stop, caught
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.progress import logger
from emdiffuse.training.launch import TrainingJob
from emdiffuse.training.slurm import FAILED, JobState, Log, ask, cancel, failure, no_job_around, nodes_down

if TYPE_CHECKING:  # submitit is only installed for clusters
    pass

POLL_SECONDS = 10.0
"""Longest time between two queries to SLURM."""
GRACE_SECONDS = 15.0
"""Time that a result may take to appear on a shared file system after its job has ended."""


class Resources(Section):
    """Resources of a SLURM job."""

    partition: str | None = Field(None, description="Partition.")
    account: str | None = Field(None, description="Account to charge.")
    qos: str | None = Field(None, description="Quality of service.")
    constraint: str | None = Field(None, description="Required features of the nodes.")
    nodes: int = Field(1, ge=1, description="Nodes.")
    gpus: int = Field(0, ge=0, description="GPUs per node, with one process each.")
    gpu_model: str | None = Field(None, description="Type of GPU.")
    extra: str = Field(
        "", description="Further options of sbatch, such as `--mail-type=END --reservation=em`."
    )
    cpus: int = Field(1, ge=1, description="Cores per process.")
    memory_mb: int = Field(4000, ge=1, description="Memory per node, in MB.")
    minutes: int = Field(60, ge=1, description="Time limit, at which the job requeues itself.")
    requeues: int = Field(20, ge=0, description="Maximum number of requeues.")


def train_on_slurm(work: TrainingJob, resources: Resources) -> None:
    """Train as a SLURM job, new or already submitted by an earlier start, and follow it to its end.

    Parameters
    ----------
    work : TrainingJob
        The training.
    resources : Resources
        Resources of the job; a running job keeps its own.

    Raises
    ------
    Interrupted
        If interrupted by SIGINT or SIGTERM; the job is cancelled.
    LaunchError
        If the job cannot be submitted, fails, or is lost; one sentence.
    ConfigError
        If submitit is not installed.
    """
    require("submitit", "cluster", "Training as a SLURM job")
    from submitit.core.utils import JobPaths

    work = replace(
        work,
        store=work.store.resolve(),
        experiment=work.experiment.resolve(),
        requeues=resources.requeues,
    )
    with caught(signal.SIGINT, signal.SIGTERM) as stop:
        for _ in range(2):  # again, from its state, if it ended while Snakemake removed its outputs
            job, fresh = _attach_or_submit(work, resources)
            log = Log(JobPaths(work.run / "slurm", job, 0).stdout, fresh)
            try:
                _follow(job, work, log, stop)
            finally:
                log.drain()
            if (work.experiment / "best" / "metrics.json").exists():
                return
    raise LaunchError(f"job {job} ({work.job_name}) completed but left no {work.experiment / 'best'}")


def _attach_or_submit(work: TrainingJob, resources: Resources) -> tuple[str, bool]:
    """Return the job to follow, and whether it is new, under a lock."""
    from emdiffuse.runtime.checkpoints import only_one

    work.run.mkdir(parents=True, exist_ok=True)
    note = work.run / "job.json"
    with only_one(work.run / "launch.lock"):
        noted = json.loads(note.read_text()) if note.exists() else None
        state = ask(noted["job"]) if noted else None
        if noted and state and state.name == work.job_name and state.state not in FAILED:
            if noted["identity"] == work.identity:
                logger.info("job %s (%s) is already training; following it", noted["job"], work.job_name)
                return noted["job"], False
            logger.info("job %s is training with other settings or data; cancelling it", noted["job"])
            cancel(noted["job"])
        job = _submit(work, resources)
        write_json(note, {"job": job, "name": work.job_name, "identity": work.identity})
        logger.info("submitted job %s (%s); its files are in %s", job, work.job_name, work.run / "slurm")
        return job, True


def _submit(work: TrainingJob, resources: Resources) -> str:
    """Submit a job; return its number."""
    import submitit
    from submitit.core.utils import FailedJobError

    gpus = f"{resources.gpu_model}:{resources.gpus}" if resources.gpu_model else resources.gpus
    optional = {
        "slurm_partition": resources.partition,
        "slurm_account": resources.account,
        "slurm_qos": resources.qos,
        "slurm_constraint": resources.constraint,
        "slurm_gpus_per_node": gpus if resources.gpus else None,
    }
    with no_job_around():
        executor = submitit.AutoExecutor(
            work.run / "slurm", cluster="slurm", slurm_max_num_timeout=resources.requeues + 1
        )
        executor.update_parameters(
            name=work.job_name,
            nodes=resources.nodes,
            tasks_per_node=max(resources.gpus, 1),
            cpus_per_task=resources.cpus,
            mem_gb=resources.memory_mb / 1024,
            timeout_min=resources.minutes,
            stderr_to_stdout=True,
            slurm_signal_delay_s=signal_seconds(resources.minutes),
            slurm_additional_parameters={"requeue": True, **sbatch_options(resources.extra)},
            # srun inherits neither the cores nor the log mode from sbatch
            slurm_srun_args=[
                f"--cpus-per-task={resources.cpus}",
                "--open-mode=append",
                "--kill-on-bad-exit=1",
            ],
            slurm_setup=[f"export OMP_NUM_THREADS={resources.cpus} OMP_WAIT_POLICY=PASSIVE"],
            **{key: value for key, value in optional.items() if value is not None},
        )
        try:
            return str(executor.submit(work).job_id)
        except FailedJobError as error:
            said = " ".join(str(error).replace("sbatch: error:", "").split())
            raise LaunchError(f"{work.job_name}: sbatch refused the job: {said}") from None


def sbatch_options(text: str) -> dict[str, str | bool]:
    """Parse sbatch options, ``--name=value`` or ``--name``.

    Raises
    ------
    ConfigError
        If a word is not of that form.
    """
    options: dict[str, str | bool] = {}
    for word in shlex.split(text):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ConfigError(f"slurm_extra: '{word}' is not of the form --name=value")
        options[name] = value if equals else True
    return options


def signal_seconds(minutes: int) -> int:
    """Return how many seconds before its time limit a job is warned: two minutes, less for short jobs."""
    return min(120, 10 * minutes)


def _follow(job: str, work: TrainingJob, log: Log, stop: Stop) -> None:
    """Wait for the end of a job.

    Raises
    ------
    Interrupted, LaunchError
        As `train_on_slurm`.
    """
    from submitit.core.utils import JobPaths, pickle_load

    who = f"job {job} ({work.job_name})"
    result = JobPaths(work.run / "slurm", job, 0).result_pickle
    begin, asked, ended = time.monotonic(), -POLL_SECONDS, 0.0
    last: JobState | None = None
    ran: JobState | None = None  # last state seen running
    while not result.exists():
        if stop.number:
            cancel(job)
            came = signal.Signals(stop.number).name
            raise Interrupted(stop.number, f"received {came}: {who} is cancelled, its state is saved")
        log.drain()
        now = time.monotonic()
        if now - asked > min(1 + (now - begin) / 20, POLL_SECONDS):
            asked = now
            try:
                state = ask(job)
            except LaunchError as error:
                logger.warning("%s", error)
                continue
            _tell(who, last, state)
            if state and ran and (state.state == "PENDING" or state.restarts > ran.restarts):
                _end_if_lost(job, who, ran)
                ran = None
            ran = state if state and state.nodes else ran
            why = failure(state)
            ended = (ended or now) if why else 0.0
            if why and now - ended > GRACE_SECONDS:
                _end_if_lost(job, who, ran)  # its tasks may have been reported dead before the node was
                cancel(job)
                raise LaunchError(f"{who}: {why}; its log is {log.path}")
            last = state or last
        time.sleep(0.5)
    outcome, value = pickle_load(result)
    if outcome == "error":
        cancel(job)  # other processes of the job may still run
        raise RuntimeError(f"{who} failed because of a bug; its log is {log.path}\n{value}")
    if isinstance(value, EmdiffuseError):
        cancel(job)
        raise LaunchError(f"{who}: {value}; its log is {log.path}")


def _end_if_lost(job: str, who: str, ran: JobState | None) -> None:
    """If SLURM has lost a node of a job, cancel the job and raise LaunchError."""
    if ran and (lost := nodes_down(ran.nodes)):
        cancel(job)
        raise LaunchError(f"{who}: its node {', '.join(lost)} was lost; start again to resume")


def _tell(who: str, last: JobState | None, state: JobState | None) -> None:
    """Log changes in the state of a job."""
    if state is None or (last and (last.state, last.reason) == (state.state, state.reason)):
        return
    if state.state == "PENDING":
        again = f" to run for time {state.restarts + 1}" if state.restarts else ""
        logger.info("%s is waiting in the queue%s (%s)", who, again, state.reason)
    elif state.state == "RUNNING":
        logger.info("%s is running on %s", who, state.nodes)
