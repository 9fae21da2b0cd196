"""The weights of the optical flow, by their names: where they lie, and what their content is.

Apart from `raft`, which loads torch: whoever only asks whether something was registered already needs none.
"""

from __future__ import annotations

from pathlib import Path

from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.provenance import Link, made_by, raw_file

SHIPPED = Path(__file__).parent / "weights" / "raft_small_em.safetensors"


def file_of_weights(weights: str) -> Path:
    """Return the file that "shipped" or a path names.

    Raises
    ------
    DataError
        If there is none.
    """
    path = SHIPPED if weights == "shipped" else Path(weights)
    if not path.is_file():
        raise DataError(f"{path}: there are no such weights; give 'shipped', 'torchvision' or a path")
    return path


def link_of_weights(weights: str) -> Link:
    """Return the link of weights by the names of `raft`: their content.

    Raises
    ------
    DataError
        If there are none.
    """
    if weights == "torchvision":
        return made_by("raw", "raft_small of torchvision", {})
    return raw_file(file_of_weights(weights))
