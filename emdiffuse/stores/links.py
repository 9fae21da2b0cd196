"""Copies of arrays that share their chunks by hard links."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from emdiffuse.stores.array import Array


def link(source: Path, target: Path) -> None:
    """Create an array from the chunks of another: hard links, or copies on another file system.

    Raises
    ------
    DamagedError
        If a chunk of the source is missing.
    """
    Array(source).require_whole()

    def place(origin: str, copy: str) -> None:
        if Path(origin).name != "zarr.json":
            try:
                os.link(origin, copy)
                return
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
                    raise
        shutil.copyfile(origin, copy)

    shutil.copytree(source, target, copy_function=place)
