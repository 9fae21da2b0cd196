"""The workflow that the package carries: where it lies, and what a folder that uses it needs of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from emdiffuse.runtime.errors import ConfigError
from emdiffuse.runtime.locks import lock

PACKAGE = Path(__file__).parents[1]
LOCK = Path(".snakemake/emdiffuse.lock")
_held: list[IO[str]] = []


def snakefile() -> str:
    """Return the Snakefile of the installed workflow, for the `module` of another Snakefile."""
    return str(PACKAGE / "workflow" / "Snakefile")


def profile(name: str) -> str:
    """Return the text of a profile that comes with the package: "local" or "slurm"."""
    return (PACKAGE / "profiles" / name / "profile.yaml").read_text()


def only_one_run() -> None:
    """Refuse a second run in the folder that the process is in, as long as this process lives.

    Snakemake's own lock outlives a run that was killed or lost its machine, and would ask for ``--unlock``
    where starting again is what resumes; the kernel frees this one. So the profiles say ``nolock``.

    Raises
    ------
    ConfigError
        If there is another run.
    """
    LOCK.parent.mkdir(exist_ok=True)
    held = LOCK.open("w")
    try:
        lock(held, "the workflow")
    except BlockingIOError:
        held.close()
        raise ConfigError("another run is under way in this folder; wait for it, or stop it") from None
    _held.append(held)


def mistakes_in(logs: Path, since: float) -> list[str]:
    """Return the mistakes that ended jobs, from the last lines of their logs: one sentence each.

    Parameters
    ----------
    logs : Path
        Folder of the logs.
    since : float
        Time of the start (`time.time`): older logs are of other runs.
    """
    found = []
    for log in sorted(logs.rglob("*.log")):
        if log.stat().st_mtime < since:
            continue
        lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
        said = re.fullmatch(r"[\d:]{8} ERROR (.*)", lines[-1]) if lines else None
        found += [f"{said[1]} (see {log})"] if said else []
    return found


def state_of(paths: Iterable[Path | str]) -> str:
    """Return what tells whether raw files may have changed: nothing is read but their directory entries.

    A file's time can be set back, but not the time of its change of status; and of two files that changed
    names, each has the inode of the other. A rule takes this as a parameter, so that its job runs again where
    it differs; the job then compares the content, and does nothing where that is the same.

    Parameters
    ----------
    paths : iterable of path
        Files, and folders with all that is in them; what is not on this disk does not count.
    """
    known = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in (file for file in files if file.is_file()):
            facts = file.stat()
            entry = (str(file), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
            known.update(repr(entry).encode())
    return known.hexdigest()[:16]
