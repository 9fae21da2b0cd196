"""Logging and progress: a bar on a terminal, plain lines in a log.

Conventions
-----------
* All messages of a stage go through `logging` (logger ``emdiffuse``): to standard error, and to the log file
  of its rule.
* Progress lines state how much is done, the total, the rate and the time left; at most one every
  `LINE_SECONDS`.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from emdiffuse import __version__
from emdiffuse.runtime.errors import printable

LINE_SECONDS = 10.0
logger = logging.getLogger("emdiffuse")
Item = TypeVar("Item")


def setup(log: Path | None = None) -> None:
    """Send log records to standard error and, if given, to a file."""
    logger.handlers.clear()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log, mode="a", encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    if log is None:
        return
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    logger.info("emdiffuse %s on node %s, process %d", __version__, node, os.getpid())


def fail(error: BaseException) -> None:
    """Report a user's mistake in one line: as ``error: ...`` on standard error, and in the log."""
    said = printable(str(error))
    print(f"error: {said}", file=sys.stderr)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, said, (), None))


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def progress(
    items: Iterable[Item],
    total: int,
    what: str,
    unit: str,
    done: int = 0,
    seconds: float = math.inf,
    voxels: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Yield items and report progress.

    Parameters
    ----------
    items : iterable
        Items to process; the body of the loop is the work.
    total : int
        Total number, including items done before.
    what, unit : str
        Label of the work, and name of one item.
    done : int
        Number of items done before this run, which are ignored in the time left.
    seconds : float
        Time limit of the work; the reported time left never exceeds it.
    voxels : callable
        Returns the number of voxels of an item; their rate is then reported too.
    """
    watched = sys.stderr is not None and sys.stderr.isatty()  # stderr is None if the job's terminal is gone
    bar = tqdm(total=total, initial=done, desc=what, unit=unit, disable=not watched, leave=False)
    start = last = time.monotonic()
    made = 0
    with bar:
        for count, item in enumerate(items, 1):
            yield item
            bar.update()
            made += voxels(item) if voxels else 0
            now = time.monotonic()
            if now - last >= LINE_SECONDS or done + count == total:
                last = now
                passed = max(now - start, 1e-9)
                rate = count / passed
                speed = f" ({made / passed:.3g} voxels)" if voxels else ""
                left = clock(max(min((total - done - count) / rate, seconds - (now - start)), 0))
                _line(
                    f"{what}: {done + count} of {total} {unit}s, {rate:.3g} per second{speed}, {left} left",
                    bar,
                )


def _line(text: str, bar: tqdm) -> None:
    """Write a line without breaking a progress bar on a terminal."""
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None)
    for handler in logger.handlers:
        if bar.disable or isinstance(handler, logging.FileHandler):
            handler.handle(record)
