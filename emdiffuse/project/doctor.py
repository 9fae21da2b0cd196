"""`emdiffuse doctor`: check what this machine can do, and what to change.

Conventions
-----------
* A check changes nothing; files written to measure the speed of a disk are removed.
* A check is *wrong* if the package cannot work at all. Anything else that could be better has advice.
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
"""Python versions that the tests run with."""
TRIAL_BYTES = 64 * 2**20
TRIAL_FILES = 200
SLOW_BYTES, SLOW_FILES = 50e6, 200
"""Bytes and small files per second below which a disk slows workers down."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox", "safari", "microsoft-edge")
PURPOSES = {
    "workflow": "the whole pipeline, with training",
    "cluster": "SLURM",
    "formats": "HDF5, MRC and microscope formats",
    "napari": "the plugin, and `view --napari`",
    "bioimageio": "packages of the BioImage Model Zoo",
    "lpips": "the metric LPIPS",
    "bm3d": "the baseline BM3D, licensed for non-commercial use",
}


@dataclass(frozen=True)
class Check:
    """Result of a check.

    Attributes
    ----------
    what, found : str
        What was checked, and the finding.
    advice : str
        What to change; empty if nothing.
    wrong : bool
        Whether nothing works until it is changed.
    """

    what: str
    found: str
    advice: str = ""
    wrong: bool = False


def examine(folder: Path) -> Iterator[Check]:
    """Yield all checks; `folder` will contain the results, and the speed of its disk is measured."""
    yield Check("emdiffuse", __version__)
    yield _python()
    yield from _torch()
    yield Check("machine", f"{machine.cores()} cores, {machine.memory() / 2**30:.0f} GiB of memory")
    yield from _disk(folder)
    yield from _slurm()
    yield _browser()
    yield from _extras()


def text(checks: list[Check]) -> str:
    """Return checks as lines of text, each followed by its advice."""
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
        return Check("Python", found, f"install Python {known}", wrong=True)
    return Check("Python", found, f"the tests run with {known} only" if version > NEWEST else "")


def _torch() -> Iterator[Check]:
    """Check PyTorch, and the GPUs that it finds or should find."""
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
            advice = "this PyTorch has no CUDA support; install one for your driver, as pytorch.org describes"
        elif there:
            advice = f"PyTorch cannot use it: the driver may be too old for CUDA {cuda}; update the driver"
        yield Check("GPU", ", ".join(there) or "none: networks run on the CPU", advice)
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        kind = "bfloat16" if half else "float16 only"
        yield Check("GPU", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, half precision: {kind}")


def _disk(folder: Path) -> Iterator[Check]:
    """Measure the disk of the results by writing a large and many small files."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".emdiffuse-doctor-") as name:
            rate, files = _write_rate(Path(name)), _file_rate(Path(name))
    except OSError as error:
        reason = error.strerror or str(error)
        yield Check("disk", f"{folder} is not writable ({reason})", "choose a writable folder: --folder")
        return
    free = shutil.disk_usage(folder).free
    found = (
        f"{folder}: {free / 1e9:.0f} GB free, writes {rate / 1e6:.0f} MB and {files:.0f} small files per "
        "second"
    )
    slow = rate < SLOW_BYTES or files < SLOW_FILES
    advice = (
        "slow: keep results on another disk, or write fewer, larger files (`tiling.block`)" if slow else ""
    )
    yield Check("disk", found, advice)


def _write_rate(folder: Path) -> float:
    """Return the rate of writing one large file to disk, in bytes per second."""
    block = os.urandom(2**20)
    begin = time.perf_counter()
    with (folder / "large").open("wb") as file:
        for _ in range(TRIAL_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return TRIAL_BYTES / (time.perf_counter() - begin)


def _file_rate(folder: Path) -> float:
    """Return the rate of writing small files, in files per second."""
    begin = time.perf_counter()
    for number in range(TRIAL_FILES):
        (folder / str(number)).write_bytes(b"x" * 1000)
    return TRIAL_FILES / (time.perf_counter() - begin)


def _slurm() -> Iterator[Check]:
    """Check the cluster, if this machine belongs to one."""
    if shutil.which("sinfo") is None:
        yield Check("SLURM", "none: the workflow runs on this machine (profiles/local)")
        return
    partitions = machine.partitions()
    if not partitions:
        advice = "sinfo does not respond; ask your administrator, or see `systemctl status slurmctld`"
        yield Check("SLURM", "installed, but it lists no partition", advice)
        return
    told = [f"{one.name} ({'GPUs, ' if one.gpus else ''}{_limit(one.minutes)})" for one in partitions]
    yield Check("SLURM", f"partitions {', '.join(told)}")
    settings = machine.ask("scontrol", "show", "config") or ""
    storage = re.search(r"AccountingStorageType\s*=\s*(\S+)", settings)
    age = re.search(r"MinJobAge\s*=\s*(\d+)", settings)
    if storage and "slurmdbd" in storage[1]:
        yield Check("accounting", "yes: sacct lists finished jobs")
    else:
        short = age is not None and int(age[1]) < 60
        advice = "raise MinJobAge in slurm.conf to 300: squeue must still list finished jobs" if short else ""
        yield Check("accounting", "none: jobs are tracked with squeue, as set in the profile", advice)


def _limit(minutes: int | None) -> str:
    if minutes is None:
        return "no time limit"
    return f"up to {minutes / 60:g} h"


def _browser() -> Check:
    found = [name for name in BROWSERS if shutil.which(name)]
    if found or sys.platform == "darwin":
        return Check("browser", found[0] if found else "Safari")
    advice = "use your own: ssh -L 9000:localhost:9000 HERE emdiffuse view VOLUME --port 9000"
    return Check("browser", "none on this machine", advice)


def _extras() -> Iterator[Check]:
    """Check which extras are installed."""
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if not _installed(module)]
        found = f"[{extra}] {'missing: ' + ', '.join(missing) if missing else 'installed'}"
        advice = f"for {PURPOSES[extra]}: pip install 'emdiffuse[{extra}]'" if missing else ""
        yield Check("extra", found, advice)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
