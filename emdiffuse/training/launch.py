"""Run a training in this process, in several processes of this machine, or as the task of a SLURM job.

Conventions
-----------
* Before a job's time ends, SLURM sends it SIGUSR2: it saves its state and requeues itself, up to a limit.
  SIGTERM (preemption, scancel, scontrol requeue) makes it save and exit; SLURM decides whether it runs again.
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

if TYPE_CHECKING:  # submitit is installed for clusters alone
    import submitit


@dataclass(frozen=True)
class TrainingJob:
    """A training, as what a job is given: called in it, with the arguments of `training.train`."""

    store: Path
    model: Model
    name: str
    experiment: Path
    device: str = "auto"
    requeues: int = 0

    @property
    def run(self) -> Path:
        """Folder of what a resume needs."""
        return self.experiment / "run"

    @property
    def job_name(self) -> str:
        """Name of its job in SLURM's queue, whose answers set words apart by spaces."""
        return re.sub(r"[^\w.-]+", "_", f"emdiffuse-train-{self.name}")

    @property
    def identity(self) -> str:
        """Hash of the settings and data that a running job must have to be followed."""
        facts = parse_facts(PatchFacts, known_of(self.store), self.store)
        return training_link(self.model, self.name, require_made(facts, self.store)).hash

    def __call__(self) -> EmdiffuseError | None:
        """Train, as a task of a job; return the mistake that ended it, for who follows the job."""
        import submitit

        setup()
        environment = submitit.JobEnvironment()
        os.environ.update(rank_variables(environment))
        warning = signal.Signals[f"SIG{environment.USR_SIG}"]
        requeue = signal.getsignal(warning)  # what submitit does on it
        try:
            train(self, signal.SIGTERM, signal.SIGINT, warning)
        except Interrupted as interrupted:
            logger.info("%s", interrupted)
            if interrupted.number != warning:
                sys.exit(interrupted.exit_code)  # without a result: SLURM knows whether it runs again
            restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
            if restarts >= self.requeues:
                return LaunchError(
                    f"{self.run}: the training was requeued {restarts} times, which is its limit; its state "
                    "is saved, and it resumes from there when it is started again"
                )
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which SLURM ends a job that it requeues
            try:
                assert callable(requeue)
                requeue(warning, None)  # ends the first process, by scontrol
            except subprocess.CalledProcessError as error:
                if error.returncode >= 0:
                    raise
                # SLURM, requeueing, ended scontrol before this process: both belong to the job
            while True:  # until SLURM ends this one: a process that exits would end the job
                signal.pause()
        except EmdiffuseError as mistake:
            if environment.global_rank:  # of which no result is read
                raise
            return mistake
        return None

    def checkpoint(self) -> Any:
        """Return what a requeued job runs: the same, which resumes from its state."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def train(work: TrainingJob, *signals: int) -> None:
    """Train in this process; stop, with the state saved, when one of the signals comes."""
    from emdiffuse.training.train import train as run

    keep_freed_memory()
    try:
        with caught(*signals) as stop:
            run(work.store, work.model, work.name, work.experiment, work.device, stop)
    except OSError as error:  # so that other processes are told its cause in a sentence too
        if mistake := as_mistake(error):
            raise mistake from error
        raise


def train_here(work: TrainingJob, processes: int = 1) -> None:
    """Train on this machine, in one process or in several that share each batch.

    Raises
    ------
    Interrupted
        If SIGINT or SIGTERM came; the state is saved.
    EmdiffuseError
        As `training.train`, or if one of several processes died; the others are ended.
    ProcessRaisedException
        If one of them failed by a defect, with its traceback.
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
            # the others are ended by SIGTERM, or lose the one that died and say so: that is not the reason
            killed = next((n for n, code in enumerate(codes) if code < 0 and code != -signal.SIGTERM), None)
            if mistake is not None and not (isinstance(mistake, LaunchError) and killed is not None):
                raise mistake from None
            if error.exit_code == 128 + stop.number:
                message = f"{work.run}: the state is saved: start again to resume"
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
    """Train as one of several processes on this machine, and tell a mistake to the one that started them."""
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
    except EmdiffuseError as mistake:  # all else is a defect, and keeps its traceback
        mistakes.put(mistake)
        sys.exit(1)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_variables(environment: submitit.JobEnvironment) -> dict[str, str]:
    """Return the variables, those of torchrun, by which the processes of a job find each other."""
    return {
        "WORLD_SIZE": str(environment.num_tasks),
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        # the node that srun runs on, which is the first: an address, where a node's name may not be one
        "MASTER_ADDR": os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or environment.hostnames[0],
        "MASTER_PORT": str(20000 + int(environment.raw_job_id) % 12000),
    }
