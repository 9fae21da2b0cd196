"""The workflow that the package carries: where it lies, and what a folder that uses it needs of it."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from emdiffuse.runtime.errors import ConfigError
from emdiffuse.runtime.locks import lock

PACKAGE = Path(__file__).parents[1]
LOCK = Path(".snakemake/emdiffuse.lock")
_held: list[IO[str]] = []


def snakefile() -> str:
    """Return the Snakefile of the installed workflow, which a Snakefile of one's own names in `module`."""
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
