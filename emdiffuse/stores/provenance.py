"""Where data come from: the checksums of the files that they were made of."""

from __future__ import annotations

import json
import re
from typing import Any


def digests(sources: Any) -> set[str]:
    """Return the checksums in a list of source files, however it is nested."""
    return set(re.findall(r"\b[0-9a-f]{32,128}\b", json.dumps(sources)))
