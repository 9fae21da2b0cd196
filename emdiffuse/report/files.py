"""The result files that the report reads and writes.

Conventions
-----------
* Missing results are omitted; a result that cannot be read stops the report with one sentence.
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
"""Keys that every evaluation must have."""


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON that a stage wrote, or None if it did not run.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # includes UnicodeDecodeError
        raise StoreError(f"{path}: this file is damaged; delete it and start again") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: not a file of this kind; delete it and start again")
    return content


def read_evaluation(results: Path, item: Restoration) -> dict[str, Any] | None:
    """Return the evaluation of a restoration, or None without ground truth.

    Raises
    ------
    StoreError
        If the file is damaged, or written by another version.
    """
    path = results / "evaluation" / item.dataset / f"{item.model}.json"
    found = read_json(path)
    if found is not None and (missing := [key for key in NEEDED if key not in found]):
        raise StoreError(f"{path}: {', '.join(missing)} missing; delete it and start again")
    return found
