"""The files of numbers that a report reads and writes.

Conventions
-----------
* What a stage did not write is left out; what is there and cannot be read stops the report in one sentence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emdiffuse.config import Restoration
from emdiffuse.runtime.errors import StoreError

NEEDED = (
    "dataset",
    "model",
    "truth",
    "estimator",
    "methods",
    "reference",
    "gain",
    "best",
    "units",
    "interval",
)
"""Keys of an evaluation without which nothing can be said of it."""


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what a stage wrote, or None when it did not run.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # UnicodeDecodeError is one
        raise StoreError(f"{path}: this file is damaged; delete it and start again") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: this file holds something else; delete it and start again")
    return content


def read_evaluation(results: Path, item: Restoration) -> dict[str, Any] | None:
    """Return the evaluation of a restoration, or None when it has no truth.

    Raises
    ------
    StoreError
        If the file is damaged, or of another version.
    """
    path = results / "evaluation" / item.dataset / f"{item.model}.json"
    found = read_json(path)
    if found is not None and (missing := [key for key in NEEDED if key not in found]):
        raise StoreError(f"{path}: it lacks {', '.join(missing)}; delete it and start again")
    return found
