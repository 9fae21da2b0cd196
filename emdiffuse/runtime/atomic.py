"""Final or absent: what is written appears whole, or not at all.

Conventions
-----------
* Everything is built beside its place and renamed; a reader sees the old or the new, never a part.
* A process holds a lock (flock) on what it builds, which ends with the process: what a killed one left behind
  is known by its lock being free, and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomically(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it: readers see all of it, or what was there before."""
    with replaced_file(path) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to write to; it takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to work in, which is removed at the end, also when the body fails.

    Every process works in a folder of its own and holds a lock on it, so that two of them do not mix; folders
    that a killed process left behind are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)
    with contextlib.ExitStack() as stack:
        partial = None
        while partial is None:  # until a new folder is ours, and not taken for a leftover by another process
            new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(_locked(new))
                partial = new if new.exists() else None
        partial.chmod(0o755)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` to build a store in; it takes the place of `path` when all went well."""
    with scratch(path) as partial:
        yield partial
        take_place(partial, path)


def take_place(partial: Path, path: Path) -> None:
    """Rename a folder to `path`, whatever lies there, also while other processes do the same."""
    while True:
        shutil.rmtree(path, ignore_errors=True)
        try:
            partial.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process; raise BlockingIOError when another holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG beside its place, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", metadata={"Software": None})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
