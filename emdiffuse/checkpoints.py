"""Checkpoints of a training: written whole or not at all, and taken up only where they belong.

Conventions
-----------
* A checkpoint is a dictionary of tensors and plain values, read with ``weights_only=True``: nothing in it is
  executed.
* Its ``identity`` is the hash of the settings and data that it belongs to.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emdiffuse.progress import logger


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, and rename it."""
    temporary = path.with_suffix(".partial")
    torch.save(content, temporary)
    temporary.replace(path)


def read(path: Path, identity: str) -> dict[str, Any] | None:
    """Return a checkpoint, on the CPU; None, with the reason in the log, where there is none to go on from.

    Parameters
    ----------
    path : Path
        The file; it may be missing, torn, or of another training.
    identity : str
        What it must belong to.
    """
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["identity"]
    except Exception as error:
        logger.warning("%s is damaged (%s); the training begins anew", path, type(error).__name__)
        return None
    if found != identity:
        logger.info("%s was made with other settings or data; the training begins anew", path)
        return None
    return saved


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold a lock while training: a second process waits, and then finds the work done."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process trains here (%s); waiting for it", lock)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
