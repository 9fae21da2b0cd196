"""The packaged workflow: its files, and helpers for folders that use it."""

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
    """Return the path of the installed Snakefile, for the `module` of another Snakefile."""
    return str(PACKAGE / "workflow" / "Snakefile")


def profile(name: str) -> str:
    """Return the text of a packaged profile: "local" or "slurm"."""
    return (PACKAGE / "profiles" / name / "profile.yaml").read_text()


def only_one_run() -> None:
    """Refuse a second run in the working directory while this process lives.

    Snakemake's own lock survives a run that was killed or whose machine failed, and would then demand
    ``--unlock`` instead of resuming; the kernel frees this one. So the profiles set ``nolock``.

    Raises
    ------
    ConfigError
        If another run is active.
    """
    LOCK.parent.mkdir(exist_ok=True)
    held = LOCK.open("w")
    try:
        lock(held, "the workflow")
    except BlockingIOError:
        held.close()
        raise ConfigError("another run is active in this folder; wait for it, or stop it") from None
    _held.append(held)


def mistakes_in(logs: Path, since: float) -> list[str]:
    """Return the mistakes that made jobs fail, from the last lines of their logs, one sentence each.

    Parameters
    ----------
    logs : Path
        Folder of the logs.
    since : float
        Time of the start (`time.time`); older logs belong to other runs.
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
    """Return a fingerprint of raw files, from their directory entries only, to detect possible changes.

    It uses the time of status change, which unlike the modification time cannot be set back, and the inode,
    which reveals swapped names. A rule takes it as a parameter, so that its job runs again if it differs; the
    job then compares the content, and does nothing if that is the same.

    Parameters
    ----------
    paths : iterable of path
        Files, and folders with all their content; URLs are ignored.
    """
    known = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in (file for file in files if file.is_file()):
            facts = file.stat()
            entry = (str(file), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
            known.update(repr(entry).encode())
    return known.hexdigest()[:16]
