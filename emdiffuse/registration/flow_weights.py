"""Weights of the optical flow by name: their file, and the hash of their content.

Separate from `raft`, which imports torch, because checking whether data are registered does not need it.
"""

from __future__ import annotations

from pathlib import Path

from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.provenance import Link, made_by, raw_file

SHIPPED = Path(__file__).parent / "weights" / "raft_small_em.safetensors"


def file_of_weights(weights: str) -> Path:
    """Return the file of the weights "shipped" or of a path.

    Raises
    ------
    DataError
        If it does not exist.
    """
    path = SHIPPED if weights == "shipped" else Path(weights)
    if not path.is_file():
        raise DataError(f"{path}: no such weights; give 'shipped', 'torchvision' or a path")
    return path


def link_of_weights(weights: str) -> Link:
    """Return the provenance of weights, by the names of `raft`.

    Raises
    ------
    DataError
        If they do not exist.
    """
    if weights == "torchvision":
        return made_by("raw", "raft_small of torchvision", {})
    return raw_file(file_of_weights(weights))
