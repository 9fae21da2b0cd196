"""Run a training in this process, in several processes on this machine, or as the task of a SLURM job.

Conventions
-----------
* Before a job's time limit, SLURM sends it SIGUSR2: it saves its state and requeues itself, up to a limit.
  On SIGTERM (preemption, scancel, scontrol requeue) it saves and exits; SLURM decides whether it runs again.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emdiffuse.config import Model
from emdiffuse.runtime.allocator import keep_freed_memory
from emdiffuse.runtime.disks import as_mistake
from emdiffuse.runtime.errors import EmdiffuseError, LaunchError
from emdiffuse.runtime.interruption import Interrupted, caught
from emdiffuse.runtime.progress import logger, setup
from emdiffuse.stores.facts import PatchFacts, parse_facts, require_made
from emdiffuse.stores.volume import known_of
from emdiffuse.training.identity import training_link

if TYPE_CHECKING:  # submitit is only installed for clusters
    import submitit


@dataclass(frozen=True)
class TrainingJob:
    """A training as a callable for jobs, with the arguments of `training.train`."""

    store: Path
    model: Model
    name: str
    experiment: Path
    device: str = "auto"
    requeues: int = 0

    @property
    def run(self) -> Path:
        """Folder of the state to resume from."""
        return self.experiment / "run"

    @property
    def job_name(self) -> str:
        """Name of its job in SLURM's queue, without spaces, which separate words in SLURM's output."""
        return re.sub(r"[^\w.-]+", "_", f"emdiffuse-train-{self.name}")

    @property
    def identity(self) -> str:
        """Hash of settings and data that a running job must match to be followed."""
        facts = parse_facts(PatchFacts, known_of(self.store), self.store)
        return training_link(self.model, self.name, require_made(facts, self.store)).hash

    def __call__(self) -> EmdiffuseError | None:
        """Train as a task of a job; return the mistake that ended it, for the process following the job."""
        import submitit

        setup()
        environment = submitit.JobEnvironment()
        os.environ.update(rank_variables(environment))
        warning = signal.Signals[f"SIG{environment.USR_SIG}"]
        requeue = signal.getsignal(warning)  # submitit's handler
        try:
            train(self, signal.SIGTERM, signal.SIGINT, warning)
        except Interrupted as interrupted:
            logger.info("%s", interrupted)
            if interrupted.number != warning:
                sys.exit(interrupted.exit_code)  # without a result: SLURM decides whether it runs again
            restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
            if restarts >= self.requeues:
                return LaunchError(
                    f"{self.run}: the training was requeued {restarts} times, which is its limit; the state "
                    "is saved; start again to resume"
                )
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM ends a requeued job by SIGTERM
            try:
                assert callable(requeue)
                requeue(warning, None)  # ends the first process through scontrol
            except subprocess.CalledProcessError as error:
                if error.returncode >= 0:
                    raise
                # while requeueing, SLURM ended scontrol, which belongs to the job, before this process
            while True:  # wait for SLURM to end this process; exiting would end the job
                signal.pause()
        except EmdiffuseError as mistake:
            if environment.global_rank:  # only the result of rank 0 is read
                raise
            return mistake
        return None

    def checkpoint(self) -> Any:
        """Return the work of a requeued job: the same, which resumes from its state."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def train(work: TrainingJob, *signals: int) -> None:
    """Train in this process; save the state and stop when one of the signals arrives."""
    from emdiffuse.training.train import train as run

    keep_freed_memory()
    try:
        with caught(*signals) as stop:
            run(work.store, work.model, work.name, work.experiment, work.device, stop)
    except OSError as error:  # so that other processes also learn the cause in a sentence
        if mistake := as_mistake(error):
            raise mistake from error
        raise


def train_here(work: TrainingJob, processes: int = 1) -> None:
    """Train on this machine, in one process or several that share each batch.

    Raises
    ------
    Interrupted
        If interrupted by SIGINT or SIGTERM; the state is saved.
    EmdiffuseError
        As `training.train`, or if one of several processes died; the others are terminated.
    ProcessRaisedException
        If a process failed because of a defect, with its traceback.
    """
    if processes == 1:
        train(work, signal.SIGINT, signal.SIGTERM)
        return
    from torch.multiprocessing import ProcessExitedException, get_context, start_processes

    cores = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    os.environ["OMP_NUM_THREADS"] = str(max(cores // processes, 1))
    log = next((Path(h.baseFilename) for h in logger.handlers if isinstance(h, logging.FileHandler)), None)
    mistakes = get_context("spawn").SimpleQueue()
    with caught(signal.SIGINT, signal.SIGTERM) as stop:
        arguments = (work, processes, free_port(), log, mistakes)
        started = start_processes(_train_as, arguments, processes, join=False, start_method="spawn")
        told = False
        try:
            while not started.join(0.5, grace_period=30):
                if stop.number and not told:
                    told = True
                    for process in started.processes:
                        os.kill(process.pid, stop.number)
        except ProcessExitedException as error:
            mistake = None if mistakes.empty() else mistakes.get()
            codes = [process.exitcode or 0 for process in started.processes]
            # the others end by SIGTERM, or report that they lost the dead one, which is not the cause
            killed = next((n for n, code in enumerate(codes) if code < 0 and code != -signal.SIGTERM), None)
            if mistake is not None and not (isinstance(mistake, LaunchError) and killed is not None):
                raise mistake from None
            if error.exit_code == 128 + stop.number:
                message = f"{work.run}: the state is saved; start again to resume"
                raise Interrupted(stop.number, message) from None
            number = error.error_index if killed is None else killed
            code = codes[number]
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise LaunchError(
                f"{work.run}: process {number + 1} of {processes} ended with {ended}; start again "
                "to resume from the last saved state"
            ) from None


def _train_as(
    rank: int,
    work: TrainingJob,
    processes: int,
    port: int,
    log: Path | None,
    mistakes: SimpleQueue[Exception],
) -> None:
    """Train as one of several processes on this machine, and report a mistake to the parent process."""
    setup(log if rank == 0 else None)
    os.environ.update(
        WORLD_SIZE=str(processes),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        train(work, signal.SIGINT, signal.SIGTERM)
    except Interrupted as interrupted:
        logger.info("%s", interrupted)
        sys.exit(interrupted.exit_code)
    except EmdiffuseError as mistake:  # anything else is a defect, and keeps its traceback
        mistakes.put(mistake)
        sys.exit(1)


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_variables(environment: submitit.JobEnvironment) -> dict[str, str]:
    """Return torchrun's environment variables, by which the processes of a job find each other."""
    return {
        "WORLD_SIZE": str(environment.num_tasks),
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        # address of the first node, on which srun runs; node names may not resolve
        "MASTER_ADDR": os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or environment.hostnames[0],
        "MASTER_PORT": str(20000 + int(environment.raw_job_id) % 12000),
    }
