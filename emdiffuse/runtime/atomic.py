"""Final or absent: what is written appears whole, or not at all.

Conventions
-----------
* Everything is built beside its place and renamed; a reader sees the old or the new, never a part.
* What is replaced was made by this program, and is no input (see `outputs`).
* Files and folders have the permissions that the user's umask gives them.
* A process holds a lock (flock) on what it builds, which ends with the process: what a killed one left behind
  is known by its lock being free, and is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from emdiffuse.runtime.disks import full_disk
from emdiffuse.runtime.errors import OutputError
from emdiffuse.runtime.locks import lock
from emdiffuse.runtime.outputs import PROGRAM, mark, require_own_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BREATH = 0.5
"""Seconds that what is under way has to end, when the process is asked to."""
STALE_SECONDS = 60
"""Age after which a file without a lock counts as left by a killed process."""
LONGEST_NAME = 200
"""Bytes of a name that others are made of: file systems take 255."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux: paths as they are, and what lets two of them change places."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it: readers see all of it, or what was there before."""
    with replaced_file(path) as temporary, _text(temporary) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _text(path: Path) -> TextIO:
    """Open a text file to write; a path in the text may hold bytes that are no UTF-8."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to write to; it takes the place of `path` when all went well."""
    if not path.name:
        raise OutputError(f"'{path}': this is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    temporary = _beside(path)
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less the user's umask
    try:
        lock(handle, "writing", wait=True)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        try:
            yield temporary
        except Exception as error:  # libraries have their own words for a full disk
            if sentence := full_disk(temporary, error):
                raise sentence from error
            raise
        temporary.chmod(mode)  # a library may have put a file of its own there
        temporary.replace(path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """Return a new name beside a path, for what is to take its place."""
    return path.with_name(f".{short(path.name)}.partial-{secrets.token_hex(4)}")


def short(name: str) -> str:
    """Return a name that can be extended and passed to any library: the name itself, or a hash of it."""
    encoded = os.fsencode(name)
    plain = name.isprintable() and len(encoded) <= LONGEST_NAME  # which bytes that are no UTF-8 are not
    return name if plain else hashlib.sha256(encoded).hexdigest()


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of outputs in a folder: of all, or of that name.

    A file that was touched lately stays: its lock may be lost where a library put another in its place.
    """
    stem = ".+" if name is None else re.escape(short(name))
    pattern = re.compile(rf"\.{stem}\.partial-[0-9a-f]{{8}}")
    for left in folder.iterdir():
        if not pattern.fullmatch(left.name) or left.is_symlink():
            continue
        with contextlib.suppress(OSError), _locked(left) as held:
            if not held:  # it may be in use
                continue
            if left.is_dir():
                shutil.rmtree(left)
            elif time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to work in, which is removed at the end, also when the body fails.

    Every process works in a folder of its own and holds a lock on it, so that two of them do not mix; folders
    that a killed process left behind are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    with contextlib.ExitStack() as stack:
        partial = None
        while partial is None:  # until a new folder is ours, and not taken for a leftover by another process
            new = _beside(path)
            new.mkdir()
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(_locked(new))
                partial = new if new.exists() else None
        try:
            yield partial
        except (KeyboardInterrupt, SystemExit):
            time.sleep(BREATH)  # a thread of a library may be writing a file, and would write it again
            raise
        except Exception as error:
            if sentence := full_disk(path, error):
                raise sentence from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replaced(path: Path, inputs: Iterable[Path | str] = ()) -> Iterator[Path]:
    """Yield a folder beside `path` to build a store in; it takes the place of `path` when all went well.

    Parameters
    ----------
    path : Path
        The store; where it is a link, what that leads to.
    inputs : iterable of path
        What is read to make it: it must not be, hold or lie in any of these.

    Raises
    ------
    OutputError
        If what lies there is not this program's; it is left as it is.
    """
    require_own_folder(path, inputs)
    path = path.resolve()
    with scratch(path) as partial:
        mark(partial)
        yield partial
        take_place(partial, path)


def take_place(partial: Path, path: Path) -> None:
    """Give a folder the place `path`, also while other processes do the same.

    At every moment the old or the new stands there whole. The old one is then at `partial`, to be removed by
    whoever made that.

    Raises
    ------
    OutputError
        If what lies there is not this program's; it is left as it is.
    """
    while True:
        require_own_folder(path)
        try:
            if path.exists():
                _exchange(partial, path)
            else:
                partial.rename(path)
        except FileNotFoundError:
            if not partial.exists():
                raise  # else another process took away what lay there
        except OSError as error:  # another process was quicker
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places, at once where the file system can do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(one.absolute()), os.fsencode(other.absolute())
        if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(other))
    aside = _beside(other)
    other.rename(aside)
    try:
        one.rename(other)
    except BaseException:
        aside.rename(other)
        raise
    aside.rename(one)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process; raise BlockingIOError when another holds it.

    Yields whether it is held: some file systems have no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield lock(handle, "writing")
    finally:
        os.close(handle)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG beside its place, and rename it."""
    with replaced_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": PROGRAM})
