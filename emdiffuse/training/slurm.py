"""State of a SLURM job, from SLURM's commands, and the job's log.

Conventions
-----------
* ``scontrol show job`` lists a job until some minutes after its end (MinJobAge in slurm.conf).
* Accounting (sacct) is never used: many clusters have none, and it would wait forever.
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
    "DEADLINE": "its deadline passed",
    "FAILED": "it failed with exit code {code}",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "it ran out of memory; request more (`mem_mb` of the rule `train`)",
    "PREEMPTED": "another job took its place",
    "REVOKED": "it was revoked",
    "TIMEOUT": "its time limit passed before it could save; request more (`runtime` of the rule `train`)",
}
"""States of an ended job, and what they mean if it left no result."""
HELD = ("launch_failed_requeued_held", "JobHoldMaxRequeue")
"""Reasons why a pending job never starts by itself."""


@dataclass(frozen=True)
class JobState:
    """State of a job as reported by SLURM."""

    name: str
    state: str
    reason: str
    nodes: str
    exit_code: str
    restarts: int


def parse_job(text: str) -> JobState:
    """Parse a line of ``scontrol --oneliner show job``."""
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
    """Return the state of a job from SLURM, or None if unknown.

    Raises
    ------
    LaunchError
        If SLURM does not respond.
    """
    try:
        said = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"SLURM does not respond about job {job}: {error}") from None
    if said.returncode and "Invalid job id" in said.stderr:
        return None
    if said.returncode or "JobState=" not in said.stdout:
        raise LaunchError(f"SLURM does not respond about job {job}: {said.stderr.strip()}")
    return parse_job(said.stdout)


def nodes_down(nodes: str) -> list[str]:
    """Return the nodes of a job that SLURM has lost."""
    command = ["sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T"]
    said = subprocess.run(command, capture_output=True, text=True)
    states = dict(line.split()[:2] for line in said.stdout.splitlines())
    # an asterisk marks a node that does not respond; it is "down" only after its jobs are cleared
    return sorted(node for node, state in states.items() if state.startswith("down") or state[-1] == "*")


def parse_exit(text: str) -> tuple[int, int]:
    """Parse exit code and signal of "CODE:SIGNAL"; srun reports a signal by a code above 128."""
    code, number = (int(part) for part in re.findall(r"\d+", text)[:2] or (0, 0))
    return (0, code - 128) if code > 128 else (code, number)


def failure(state: JobState | None) -> str | None:
    """Return why a job without a result has ended, or None if it has not."""
    if state is None:
        return "SLURM no longer lists it, and it left no result"
    if state.state in FAILED:
        code, number = parse_exit(state.exit_code)
        if state.state == "FAILED" and number:
            return f"it was killed by signal {number}" + (", perhaps out of memory" if number == 9 else "")
        return FAILED[state.state].format(code=code)
    if state.state == "PENDING" and state.reason in HELD:
        return f"SLURM holds it ({state.reason})"
    return None


def cancel(job: str) -> None:
    """Cancel a job, which first saves its state, and wait for its end."""
    subprocess.run(["scancel", job], capture_output=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        state = ask(job)
        if state is None or state.state in FAILED:
            return
        time.sleep(0.5)


@contextmanager
def no_job_around() -> Iterator[None]:
    """Hide the job that this process runs in, whose settings sbatch and srun would inherit."""
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
    """The log of a job, copied to standard error and the log files of this process as it grows.

    Parameters
    ----------
    path : Path
        The file, which need not exist yet.
    whole : bool
        Whether to copy from the beginning, instead of only the last lines and new ones.
    """

    def __init__(self, path: Path, whole: bool) -> None:
        self.path = path
        size = path.stat().st_size if path.exists() else 0
        self.place = 0 if whole else max(size - 2000, 0)

    def drain(self) -> None:
        """Copy new complete lines."""
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
    """Yield the streams to which this process writes its messages."""
    for handler in logger.handlers:
        stream = getattr(handler, "stream", None)
        if stream is not None and hasattr(stream, "buffer"):
            yield stream.buffer
