"""Valid JSON for any reader: NaN and infinity, which JSON does not allow, become null."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from emdiffuse.runtime.atomic import write_atomically


def finite(values: Any) -> Any:
    """Return nested values with None in place of every number that is not finite."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def as_json(values: Any) -> str:
    """Return values as JSON text."""
    return json.dumps(finite(values), indent=2, allow_nan=False)


def as_json_line(values: Any) -> str:
    """Return values as one line of JSON, with a line break at its end."""
    return json.dumps(finite(values), allow_nan=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Write values as a JSON file, atomically."""
    write_atomically(path, as_json(values))
