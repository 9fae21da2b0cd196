"""Where data come from: the checksums of the files that they were made of."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import Field

from emdiffuse.config.settings import Record

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SourceFile(Record):
    """A raw file, a folder of chunks or an address that data were made of.

    Attributes
    ----------
    path : str
        Where it was.
    bytes : int or None
        Its size.
    sha256 : str
        Of its content; see `acquisition.checksums`.
    kept_every : int or None
        Of a thinned volume: every how many-th slice of it is there.
    """

    path: str
    bytes: int | None = Field(None, ge=0)
    sha256: Sha256
    kept_every: int | None = Field(None, ge=2)


def digests(sources: Any) -> set[str]:
    """Return the checksums in a list of source files, however it is nested."""
    return set(re.findall(r"\b[0-9a-f]{32,128}\b", json.dumps(sources)))
