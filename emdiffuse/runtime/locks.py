"""Locks that end with the process that holds them (flock), if the file system supports them.

Conventions
-----------
* Some network shares have no locks. Work then continues without, after one warning, but operations that are
  only safe with a lock (removing files that another process may be using) are skipped.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from typing import IO, Any

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_warned: set[str] = set()
logger = logging.getLogger(__name__)


def lock(held: int | IO[Any], what: str, wait: bool = False) -> bool:
    """Lock an open file or folder.

    Parameters
    ----------
    held : int or file
        File or folder to lock, until it is closed.
    what : str
        Purpose of the lock, for a warning.
    wait : bool
        Whether to wait if another process holds it.

    Returns
    -------
    bool
        Whether it is locked; False if the file system has no locks.

    Raises
    ------
    BlockingIOError
        If another process holds it, and `wait` is false.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        if what not in _warned:
            _warned.add(what)
            logger.warning(
                "this file system has no locks (%s); do not start the same work twice at once (%s)",
                error.strerror,
                what,
            )
        return False
    return True
