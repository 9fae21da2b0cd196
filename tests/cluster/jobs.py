"""Helpers for running commands and jobs on the cluster."""

import subprocess
import time
from pathlib import Path

FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def run(*command: str | Path, cwd: Path | None = None, timeout: float = 180) -> str:
    """Return a command's output; if it fails, fail the test with its last lines."""
    done = subprocess.run(command, cwd=cwd, timeout=timeout, text=True, capture_output=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout.strip()


def submit(script: str, folder: Path, *options: str) -> str:
    """Submit a job that writes its output to JOB.log in `folder`; return its number."""
    return run("sbatch", "--parsable", "--output=%j.log", *options, f"--wrap={script}", cwd=folder)


def state(job: str) -> str:
    return run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")


def wait_until(condition, seconds: float, what: str):
    """Return the result of `condition()` once it is true; fail after a number of seconds."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return answer


def finished(job: str, seconds: float = 180) -> str:
    """Return the final state of the job."""
    wait_until(lambda: state(job) in FINISHED, seconds, f"the end of job {job}")
    return state(job)
