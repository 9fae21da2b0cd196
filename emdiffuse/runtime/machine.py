"""Resources of this machine and its cluster, found without importing torch.

Conventions
-----------
* Commands that may hang (SLURM's query a server) time out after `PATIENCE` seconds.
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
        Whether it is the default for jobs that name no partition.
    gpus : tuple of str
        Types of its GPUs; an empty name if SLURM does not know the type.
    minutes : int or None
        Time limit of a job; None if unlimited.
    """

    name: str
    default: bool
    gpus: tuple[str, ...]
    minutes: int | None


def ask(*command: str) -> str | None:
    """Return the output of a command, or None if it is missing, fails, or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> int:
    """Return the memory that this process may use, in bytes: that of the machine, or of its control group."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text().strip() if Path(limit).exists() else ""
        if text.isdecimal():
            found = min(found, int(text))
    return found


def gpus() -> list[str]:
    """Return the names of this machine's NVIDIA GPUs, as reported by the driver."""
    said = ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return said.split("\n")[:-1] if said else []


def partitions() -> list[Partition]:
    """Return the partitions of this machine's cluster; empty without SLURM."""
    return parse_partitions(ask("sinfo", "--noheader", "--format=%P|%l|%G") or "")


def parse_partitions(text: str) -> list[Partition]:
    """Parse the lines of ``sinfo --format=%P|%l|%G``; a partition with different nodes has several."""
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
    """Parse a SLURM time limit: "infinite", or [days-]hours:minutes:seconds with leading parts omitted."""
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
