"""Messages for failures of files and disks: the true cause, the disk, and the remedy."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from pathlib import Path

from emdiffuse.runtime.errors import AccessError, EmdiffuseError

FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = 2**20
"""A disk with fewer free bytes is full."""
_REMEDIES = {
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "close other programs, or raise the system's limit of open files",
    errno.ENOMEM: "free memory, or request more",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "move the existing file, or choose another name",
    errno.EFBIG: "allow larger files (`ulimit -f`)",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a writable location",
    errno.EIO: "check the disk or the network share",
    errno.ESTALE: "check the network share",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def trouble(path: Path | str, what: str, number: int, said: str = "") -> str:
    """Return one sentence on a file that could not be used because of the machine.

    Parameters
    ----------
    path : Path
        The file or folder.
    what : str
        The failed operation: "read" or "written".
    number : int
        The operating system's error number, 0 if it gave none.
    said : str
        Cause to report if there is no number.
    """
    cause = os.strerror(number) if number else said or "the cause is unknown"
    if number in FULL:
        where = disk_of(Path(path))
        return f"{path}: cannot be {what}: the disk at {where} is full; free space there and start again"
    remedy = _REMEDIES.get(number, "check the disk")
    kept = "; nothing was deleted" if what == "read" else ""
    return f"{path}: cannot be {what}: {cause}{kept}; {remedy}, and start again"


def as_mistake(error: BaseException) -> EmdiffuseError | None:
    """Return the sentence for an error that is not a defect of this program, or None if it may be.

    A user's mistake is already a sentence. Failures of the operating system (a full disk, a missing
    permission, no memory) are reported with their true cause. All other errors keep their traceback.
    """
    if isinstance(error, EmdiffuseError):
        return error
    if isinstance(error, MemoryError):
        return AccessError(
            "there is not enough memory; free some, request more, or use smaller tiles or blocks"
        )
    if isinstance(error, UnicodeEncodeError):
        return AccessError(
            f"{error.object!r}: this name is not valid text (UTF-8), which libraries need; rename it"
        )
    if isinstance(error, OSError) and error.errno is not None:
        known = error.errno in _REMEDIES or error.errno in FULL
        if known or error.filename is not None:
            place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
            what = "written" if error.errno in (*FULL, errno.EROFS, errno.EEXIST) else "used"
            return AccessError(trouble(place, what, error.errno))
    return None


def full_disk(path: Path, error: BaseException) -> AccessError | None:
    """Return the sentence for an error caused by a full disk, however a library reports it."""
    said = re.search(r"os error (\d+)", str(error))
    number = int(said[1]) if said else getattr(error, "errno", None) or 0
    if number in FULL or (not isinstance(error, EmdiffuseError) and _free(path) < ROOM):
        return AccessError(trouble(path, "written", number if number in FULL else errno.ENOSPC))
    return None


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return ROOM


def read_plain(path: Path, limit: int = 2**28) -> bytes:
    """Read a whole regular file that is not too large; a pipe or a device may never end.

    Raises
    ------
    AccessError
        If it is not a regular file, or larger than `limit` bytes.
    OSError
        As `Path.read_bytes`.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise AccessError(f"{path}: this is not a regular file; give a regular file")
    if facts.st_size > limit:
        raise AccessError(
            f"{path}: {facts.st_size} bytes are too many for this kind of file; is it the right one?"
        )
    return path.read_bytes()


def disk_of(path: Path) -> Path:
    """Return the mount point of the file system of a path, which need not exist."""
    there = path.absolute()
    while not os.path.ismount(there):
        there = there.parent
    return there
