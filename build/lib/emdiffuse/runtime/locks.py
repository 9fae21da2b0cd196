"""Locks that end with the process that holds them (flock), where the file system has any.

Conventions
-----------
* Some network shares have no locks: there work continues without, with one warning, and what needs a lock to
  be safe (to remove what another process may be using) is not done.
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
        What is locked, until it is closed.
    what : str
        What it is for, for a warning.
    wait : bool
        Whether to wait for another process that holds it.

    Returns
    -------
    bool
        Whether it is locked; False where the file system has no locks.

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
