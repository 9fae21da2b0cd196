"""`emdiffuse doctor`: what this machine can do, and what to change.

Conventions
-----------
* A check looks, and changes nothing; what it writes to find the speed of a disk, it removes.
* *Wrong* is what keeps the package from working at all. Whatever else is less than it could be has an advice.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emdiffuse import __version__
from emdiffuse.runtime import machine
from emdiffuse.runtime.extras import EXTRAS

OLDEST, NEWEST = (3, 11), (3, 13)
"""Versions of Python that the tests run with."""
TRIAL_BYTES = 64 * 2**20
TRIAL_FILES = 200
SLOW_BYTES, SLOW_FILES = 50e6, 200
"""Bytes and small files a second below which a disk holds workers up."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox", "safari", "microsoft-edge")
PURPOSES = {
    "workflow": "the whole chain, with training",
    "cluster": "SLURM",
    "formats": "HDF5, MRC and the formats of microscopes",
    "napari": "the plugin, and `view --napari`",
    "bioimageio": "packages of the BioImage Model Zoo",
    "lpips": "the measure LPIPS",
    "bm3d": "the baseline BM3D, whose licence is non-commercial",
}


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes
    ----------
    what, found : str
        What was checked, and what was found.
    advice : str
        What to change; empty where all is well.
    wrong : bool
        Whether nothing works before it is changed.
    """

    what: str
    found: str
    advice: str = ""
    wrong: bool = False


def examine(folder: Path) -> Iterator[Check]:
    """Yield all checks; `folder` is where results are to lie, for the speed of its disk."""
    yield Check("emdiffuse", __version__)
    yield _python()
    yield from _torch()
    yield Check("machine", f"{machine.cores()} cores, {machine.memory() / 2**30:.0f} GiB of memory")
    yield from _disk(folder)
    yield from _slurm()
    yield _browser()
    yield from _extras()


def text(checks: list[Check]) -> str:
    """Return checks as lines, the advice below what it is about."""
    lines = []
    for check in checks:
        mark = "!!" if check.wrong else " >" if check.advice else "ok"
        lines.append(f"{mark} {check.what:<12}{check.found}")
        if check.advice:
            lines.append(f"{'':15}{check.advice}")
    return "\n".join(lines)


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    version = sys.version_info[:2]
    known = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if version < OLDEST:
        return Check("Python", found, f"install one of {known}", wrong=True)
    return Check("Python", found, f"the tests run with {known} only" if version > NEWEST else "")


def _torch() -> Iterator[Check]:
    """Look at PyTorch and the GPUs that it sees, or should."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("PyTorch", f"cannot be loaded ({error})", "run pip install torch torchvision", wrong=True)
        return
    cuda = torch.version.cuda
    yield Check(
        "PyTorch", f"{torch.__version__} (CUDA {cuda})" if cuda else f"{torch.__version__} (CPU only)"
    )
    there = machine.gpus()
    if not torch.cuda.is_available():
        advice = ""
        if there and not cuda:
            advice = "this PyTorch knows no CUDA; install one that does, as pytorch.org says for your driver"
        elif there:
            advice = f"PyTorch cannot use it: the driver may be too old for CUDA {cuda}; update the driver"
        yield Check("GPU", ", ".join(there) or "none: networks run on the CPU", advice)
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        kind = "bfloat16" if half else "float16 alone"
        yield Check("GPU", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, half precision: {kind}")


def _disk(folder: Path) -> Iterator[Check]:
    """Write a file, and many small ones, where results are to lie."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".emdiffuse-doctor-") as name:
            rate, files = _write_rate(Path(name)), _file_rate(Path(name))
    except OSError as error:
        reason = error.strerror or str(error)
        yield Check("disk", f"{folder} cannot be written to ({reason})", "choose a folder that can: --folder")
        return
    free = shutil.disk_usage(folder).free
    found = (
        f"{folder}: {free / 1e9:.0f} GB free, writes {rate / 1e6:.0f} MB and {files:.0f} small files a second"
    )
    slow = rate < SLOW_BYTES or files < SLOW_FILES
    advice = (
        "slow: keep results on another disk, or write fewer, larger files (`tiling.block`)" if slow else ""
    )
    yield Check("disk", found, advice)


def _write_rate(folder: Path) -> float:
    """Return bytes a second of one large file, until they are on the disk."""
    block = os.urandom(2**20)
    begin = time.perf_counter()
    with (folder / "large").open("wb") as file:
        for _ in range(TRIAL_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return TRIAL_BYTES / (time.perf_counter() - begin)


def _file_rate(folder: Path) -> float:
    """Return small files a second."""
    begin = time.perf_counter()
    for number in range(TRIAL_FILES):
        (folder / str(number)).write_bytes(b"x" * 1000)
    return TRIAL_FILES / (time.perf_counter() - begin)


def _slurm() -> Iterator[Check]:
    """Look at the cluster, where this machine belongs to one."""
    if shutil.which("sinfo") is None:
        yield Check("SLURM", "none: the workflow runs on this machine (profiles/local)")
        return
    partitions = machine.partitions()
    if not partitions:
        advice = "sinfo does not answer; ask whoever runs the cluster, or see `systemctl status slurmctld`"
        yield Check("SLURM", "installed, but it lists no partition", advice)
        return
    told = [f"{one.name} ({'GPUs, ' if one.gpus else ''}{_limit(one.minutes)})" for one in partitions]
    yield Check("SLURM", f"partitions {', '.join(told)}")
    settings = machine.ask("scontrol", "show", "config") or ""
    storage = re.search(r"AccountingStorageType\s*=\s*(\S+)", settings)
    age = re.search(r"MinJobAge\s*=\s*(\d+)", settings)
    if storage and "slurmdbd" in storage[1]:
        yield Check("accounting", "yes: sacct knows ended jobs")
    else:
        short = age is not None and int(age[1]) < 60
        advice = (
            "raise MinJobAge in slurm.conf to 300: squeue must still know jobs that ended" if short else ""
        )
        yield Check("accounting", "none: jobs are followed with squeue, as the profile says", advice)


def _limit(minutes: int | None) -> str:
    if minutes is None:
        return "no limit of time"
    return f"up to {minutes / 60:g} h"


def _browser() -> Check:
    found = [name for name in BROWSERS if shutil.which(name)]
    if found or sys.platform == "darwin":
        return Check("browser", found[0] if found else "Safari")
    advice = "look from your own: ssh -L 9000:localhost:9000 HERE emdiffuse view VOLUME --port 9000"
    return Check("browser", "none on this machine", advice)


def _extras() -> Iterator[Check]:
    """Tell which extras are installed."""
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if not _installed(module)]
        found = f"[{extra}] {'missing: ' + ', '.join(missing) if missing else 'installed'}"
        advice = f"for {PURPOSES[extra]}: pip install 'emdiffuse[{extra}]'" if missing else ""
        yield Check("extra", found, advice)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that a module lies in
        return False
