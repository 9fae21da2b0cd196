"""Training checkpoints: written atomically, and used only with matching settings and data.

Conventions
-----------
* A checkpoint is a dictionary of tensors and plain values, read with ``weights_only=True``: nothing in it is
  executed.
* Its ``identity`` is the hash of its settings and data.
* It is flushed to disk before it is renamed, so that a kill or a power cut leaves the previous one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emdiffuse.runtime.atomic import replaced_file
from emdiffuse.runtime.locks import lock
from emdiffuse.runtime.progress import logger


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())  # on disk before renaming, even if power fails


def read(path: Path, identity: str) -> dict[str, Any] | None:
    """Return a checkpoint, on the CPU, or None, with the reason in the log, if it cannot be used."""
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["identity"]
    except Exception as error:
        logger.warning("%s is damaged (%s) and will not be used", path, type(error).__name__)
        return None
    if found != identity:
        logger.warning("%s was made with other settings or data and will not be used", path)
        return None
    return saved


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a lock while training; a second process waits, and then finds the work done."""
    with path.open("w") as file:
        try:
            lock(file, "training")
        except BlockingIOError:
            logger.warning("another process is training here (%s); waiting for it", path)
            lock(file, "training", wait=True)
        yield
