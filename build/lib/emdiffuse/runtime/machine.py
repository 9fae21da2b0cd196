"""What this machine and its cluster have, found without loading torch.

Conventions
-----------
* Commands that may hang (those of SLURM ask a server) have `PATIENCE` seconds.
* Memory is in bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10.0


@dataclass(frozen=True)
class Partition:
    """A partition of SLURM.

    Attributes
    ----------
    name : str
        Its name.
    default : bool
        Whether jobs go there that name none.
    gpus : tuple of str
        Types of its GPUs; an empty name where SLURM knows none.
    minutes : int or None
        Longest time of a job; None where there is no limit.
    """

    name: str
    default: bool
    gpus: tuple[str, ...]
    minutes: int | None


def ask(*command: str) -> str | None:
    """Return what a command prints; None where it is not there, fails, or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> int:
    """Return how much memory this process may use: that of the machine, or of its control group."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text().strip() if Path(limit).exists() else ""
        if text.isdecimal():
            found = min(found, int(text))
    return found


def gpus() -> list[str]:
    """Return the names of this machine's NVIDIA GPUs, as their driver gives them."""
    said = ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return said.split("\n")[:-1] if said else []


def partitions() -> list[Partition]:
    """Return the partitions of the cluster that this machine belongs to; none where there is no SLURM."""
    return parse_partitions(ask("sinfo", "--noheader", "--format=%P|%l|%G") or "")


def parse_partitions(text: str) -> list[Partition]:
    """Read lines of ``sinfo --format=%P|%l|%G``, of which a partition of unlike nodes has several."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        marked, limit, resources = line.strip().split("|")
        name = marked.removesuffix("*")
        kinds = [gres.split("(")[0].split(":") for gres in resources.split(",") if gres.startswith("gpu")]
        types = {parts[1] if len(parts) == 3 else "" for parts in kinds}
        before = found[name].gpus if name in found else ()
        found[name] = Partition(name, marked.endswith("*"), tuple(sorted({*before, *types})), _minutes(limit))
    return list(found.values())


def _minutes(limit: str) -> int | None:
    """Read a limit of SLURM's: "infinite", or [days-]hours:minutes:seconds with leading parts left out."""
    days, dash, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in (*parts, days or "0")):
        return None
    numbers = [int(part) for part in parts]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes = (*numbers, 0)[:2]
    else:  # [hours:]minutes:seconds
        hours, minutes = (0, *numbers)[-3:-1] if len(numbers) < 3 else numbers[:2]
    return int(days or 0) * 1440 + hours * 60 + minutes
