"""What SLURM says about a job, by its own commands, and what the job itself says.

Conventions
-----------
* ``scontrol show job`` knows a job until some minutes after its end (MinJobAge in slurm.conf).
* Accounting (sacct) is never asked: many clusters have none, and there it waits for ever.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from emdiffuse.runtime.errors import LaunchError
from emdiffuse.runtime.progress import logger

FAILED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it ended without a result",
    "DEADLINE": "its deadline came",
    "FAILED": "it failed with exit code {code}",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "it ran out of memory; ask for more (`mem_mb` of the rule `train`)",
    "PREEMPTED": "another job took its place",
    "REVOKED": "it was revoked",
    "TIMEOUT": "its time ended before it could save; ask for more (`runtime` of the rule `train`)",
}
"""States in which a job has ended, and what they mean where it left no result."""
HELD = ("launch_failed_requeued_held", "JobHoldMaxRequeue")
"""Reasons for which a pending job never starts by itself."""


@dataclass(frozen=True)
class JobState:
    """What SLURM says about a job."""

    name: str
    state: str
    reason: str
    nodes: str
    exit_code: str
    restarts: int


def parse_job(text: str) -> JobState:
    """Read a line of ``scontrol --oneliner show job``."""
    found = dict(re.findall(r"(?:^|\s)(JobName|JobState|Reason|NodeList|ExitCode|Restarts)=(\S*)", text))
    return JobState(
        found["JobName"],
        found["JobState"],
        found.get("Reason", ""),
        found.get("NodeList", "").replace("(null)", ""),
        found.get("ExitCode", ""),
        int(found.get("Restarts", 0)),
    )


def ask(job: str) -> JobState | None:
    """Return what SLURM knows of a job; None if nothing (any more).

    Raises
    ------
    LaunchError
        If SLURM does not answer.
    """
    try:
        said = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"SLURM does not answer about job {job}: {error}") from None
    if said.returncode and "Invalid job id" in said.stderr:
        return None
    if said.returncode or "JobState=" not in said.stdout:
        raise LaunchError(f"SLURM does not answer about job {job}: {said.stderr.strip()}")
    return parse_job(said.stdout)


def nodes_down(nodes: str) -> list[str]:
    """Return those of a job's nodes that SLURM has lost."""
    command = ["sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T"]
    said = subprocess.run(command, capture_output=True, text=True)
    states = dict(line.split()[:2] for line in said.stdout.splitlines())
    # an asterisk means that a node does not answer; while its jobs are cleared away it is not yet "down"
    return sorted(node for node, state in states.items() if state.startswith("down") or state[-1] == "*")


def parse_exit(text: str) -> tuple[int, int]:
    """Return the exit code and the signal of "CODE:SIGNAL"; srun tells a signal by a code above 128."""
    code, number = (int(part) for part in re.findall(r"\d+", text)[:2] or (0, 0))
    return (0, code - 128) if code > 128 else (code, number)


def failure(state: JobState | None) -> str | None:
    """Return why a job that left no result has ended; None while it has not."""
    if state is None:
        return "SLURM knows it no more and it left no result"
    if state.state in FAILED:
        code, number = parse_exit(state.exit_code)
        if state.state == "FAILED" and number:
            return f"it was killed by signal {number}" + (", for want of memory?" if number == 9 else "")
        return FAILED[state.state].format(code=code)
    if state.state == "PENDING" and state.reason in HELD:
        return f"SLURM holds it ({state.reason})"
    return None


def cancel(job: str) -> None:
    """Cancel a job, and wait until it has ended: it saves its state first."""
    subprocess.run(["scancel", job], capture_output=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        state = ask(job)
        if state is None or state.state in FAILED:
            return
        time.sleep(0.5)


@contextmanager
def no_job_around() -> Iterator[None]:
    """Hide that this process runs in a job itself, whose settings sbatch and srun would inherit."""
    hidden = {
        key: os.environ.pop(key)
        for key in list(os.environ)
        if key.startswith(("SLURM_", "SBATCH_", "SRUN_")) and key != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


class Log:
    """The log of a job, passed on to standard error and the log files of this process as it grows.

    Parameters
    ----------
    path : Path
        The file, which may not exist yet.
    whole : bool
        From its beginning; otherwise only the last lines of what is there, and what follows.
    """

    def __init__(self, path: Path, whole: bool) -> None:
        self.path = path
        size = path.stat().st_size if path.exists() else 0
        self.place = 0 if whole else max(size - 2000, 0)

    def drain(self) -> None:
        """Pass on what is new, in whole lines."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.place += len(whole)
        if whole:
            for stream in _streams():
                stream.write(whole)
                stream.flush()


def _streams() -> Iterator[BinaryIO]:
    """Yield where this process writes what it says."""
    for handler in logger.handlers:
        stream = getattr(handler, "stream", None)
        if stream is not None and hasattr(stream, "buffer"):
            yield stream.buffer
