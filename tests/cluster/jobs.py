"""What the tests of this folder ask of the cluster."""

import subprocess
import time
from pathlib import Path

FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def run(*command: str | Path, cwd: Path | None = None, timeout: float = 180) -> str:
    """Return what the command printed; a command that fails fails the test with its last words."""
    done = subprocess.run(command, cwd=cwd, timeout=timeout, text=True, capture_output=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout.strip()


def submit(script: str, folder: Path, *options: str) -> str:
    """Submit a job that writes what it prints to JOB.log in `folder`; return its number."""
    return run("sbatch", "--parsable", "--output=%j.log", *options, f"--wrap={script}", cwd=folder)


def state(job: str) -> str:
    return run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")


def wait_until(condition, seconds: float, what: str):
    """Return what `condition()` gives once that is true; fail when it is not after so many seconds."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return answer


def finished(job: str, seconds: float = 180) -> str:
    """Return the state that the job ended in."""
    wait_until(lambda: state(job) in FINISHED, seconds, f"the end of job {job}")
    return state(job)
