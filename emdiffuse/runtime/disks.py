"""What to say of troubles with files and disks: the true cause, the disk, and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
_REMEDIES = {
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "close other programs, or allow the machine more open files",
    errno.ENOMEM: "free memory, or ask for more",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a place that can be written to",
    errno.EIO: "check the disk or the network share",
    errno.ESTALE: "check the network share",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def trouble(path: Path | str, what: str, number: int, said: str = "") -> str:
    """Return one sentence on a file that could not be used, for a reason that lies in the machine.

    Parameters
    ----------
    path : Path
        The file or folder.
    what : str
        What could not be done with it: "read" or "written".
    number : int
        The operating system's error number, 0 if it gave none.
    said : str
        What was said where there is no number.
    """
    cause = os.strerror(number) if number else said or "the reason is not known"
    if number in FULL:
        where = disk_of(Path(path))
        return f"{path}: cannot be {what}: the disk of {where} is full; make room there and start again"
    remedy = _REMEDIES.get(number, "check the disk")
    return f"{path}: cannot be {what}: {cause}; nothing was deleted; {remedy}, and start again"


def disk_of(path: Path) -> Path:
    """Return the mount point of the file system on which a path lies, or would lie."""
    there = path.absolute()
    while not os.path.ismount(there):
        there = there.parent
    return there
