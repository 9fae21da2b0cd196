"""Atomic writes: an output appears complete, or not at all.

Conventions
-----------
* Everything is built beside its final path and renamed; a reader sees the old or the new version, never a
  part.
* Only files made by this program are replaced, and never an input (see `outputs`).
* Files and folders have the permissions given by the user's umask.
* A process holds a lock (flock) on what it builds, which ends with the process: leftovers of a killed process
  are recognized by their free lock, and removed.
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
"""Seconds granted to writes in progress when the process is asked to stop."""
STALE_SECONDS = 60
"""Age in seconds after which a file without a lock counts as left by a killed process."""
LONGEST_NAME = 200
"""Maximum bytes of a name that will be extended; file systems allow 255."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Linux constants: relative to the working directory, and exchange two paths (renameat2)."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the complete new or the old version."""
    with replaced_file(path) as temporary, _text(temporary) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _text(path: Path) -> TextIO:
    """Open a text file for writing; paths in the text may contain bytes that are not UTF-8."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to write to; it replaces `path` if the body succeeds."""
    if not path.name:
        raise OutputError(f"'{path}': this is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    temporary = _beside(path)
    with _naming(path):
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # minus the user's umask
    try:
        lock(handle, "writing", wait=True)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        try:
            yield temporary
        except Exception as error:  # libraries report a full disk in their own words
            if sentence := full_disk(temporary, error):
                raise sentence from error
            raise
        temporary.chmod(mode)  # a library may have replaced the file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # first, as a signal may interrupt here
        os.close(handle)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make errors name the user's path, not the hidden temporary one beside it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _beside(path: Path) -> Path:
    """Return a new name beside a path, for its replacement."""
    return path.with_name(f".{short(path.name)}.partial-{secrets.token_hex(4)}")


def short(name: str) -> str:
    """Return a name that can be extended and passed to any library: the name, or its hash."""
    encoded = os.fsencode(name)
    plain = name.isprintable() and len(encoded) <= LONGEST_NAME  # excludes bytes that are not UTF-8
    return name if plain else hashlib.sha256(encoded).hexdigest()


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove leftovers of killed processes in a folder: of all outputs, or of the one named `name`.

    Recently modified files are kept: a library may have replaced a locked file, and the lock with it.
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
    """Yield an empty folder beside `path` to work in, which is removed at the end, even on failure.

    Every process works in its own locked folder, so that processes do not interfere; folders left by a killed
    process are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    with contextlib.ExitStack() as stack:
        partial = None
        while partial is None:  # retry if another process took the new, still unlocked folder for a leftover
            new = _beside(path)
            with _naming(path):
                new.mkdir()
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(_locked(new))
                partial = new if new.exists() else None
        try:
            yield partial
        except (KeyboardInterrupt, SystemExit):
            # a library thread may be writing a file, and would recreate it after its removal
            time.sleep(BREATH)
            raise
        except Exception as error:
            if sentence := full_disk(path, error):
                raise sentence from error
            raise
        finally:
            _remove(partial)


def _remove(folder: Path) -> None:
    """Remove a folder completely, even if the process is asked to stop meanwhile."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def replaced(path: Path, inputs: Iterable[Path | str] = ()) -> Iterator[Path]:
    """Yield a folder beside `path` to build a store in; it replaces `path` if the body succeeds.

    Parameters
    ----------
    path : Path
        The store; if it is a link, its target is replaced.
    inputs : iterable of path
        Inputs of the store, which it must not be, contain or be inside of.

    Raises
    ------
    OutputError
        If the path exists and was not made by emdiffuse; it is left unchanged.
    """
    require_own_folder(path, inputs)
    path = path.resolve()
    with scratch(path) as partial:
        mark(partial)
        yield partial
        take_place(partial, path)


def take_place(partial: Path, path: Path) -> None:
    """Move a folder to `path`, safely even while other processes do the same.

    At every moment `path` is either the complete old or the complete new folder. Afterwards the old one is at
    `partial`, for the caller to remove.

    Raises
    ------
    OutputError
        If the path exists and was not made by emdiffuse; it is left unchanged.
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
                raise  # otherwise another process has just removed it
        except OSError as error:  # another process was faster
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders, atomically if the file system supports it."""
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
    """Hold a folder's lock, which ends with the process; raise BlockingIOError if another holds it.

    Yields whether the lock is held: some file systems have no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield lock(handle, "writing")
    finally:
        os.close(handle)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with replaced_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": PROGRAM})
