"""The origin of patches, and the interface of patch sources.

Conventions
-----------
* An *origin* records where a patch was cut; its first voxel is (z, y, x), in voxels of its dataset.
* A cut consists of condition (C, H, W) and target (D, H, W), float32 in [-1, 1], and the positions (D,) of
  the target's slices in their gap (`emdiffuse.models.processes`); absent slices come last, as NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Model
from emdiffuse.stores.facts import PairsFacts, VolumeFacts

TRAINING, VALIDATION = 0, 1
BLANK = 0.02
"""Minimum standard deviation of a patch (range [-1, 1]); blank patches are discarded."""
ORIGIN_COLUMNS = ("dataset", "axis", "z", "y", "x", "factor", "split", "permille", "end")


class Cut(NamedTuple):
    """Condition, target and positions of a patch; see the module."""

    condition: NDArray[np.float32]
    target: NDArray[np.float32]
    positions: NDArray[np.float32]


class Origin(NamedTuple):
    """Number of the dataset, axis taken as depth (or number of the field), first voxel, factor, split.

    For gaps also the slice thickness, in thousandths of the slice spacing, and whether the gap represents the
    first of a volume, with no slice before it.
    """

    dataset: int
    axis: int
    z: int
    y: int
    x: int
    factor: int
    split: int
    permille: int = 0
    end: int = 0


class PatchSource(Protocol):
    """A dataset from which patches are cut, with a part held out for validation if `validated`."""

    path: Path

    def __init__(self, path: Path, model: Model, validated: bool = True) -> None: ...

    @property
    def facts(self) -> VolumeFacts | PairsFacts:
        """The facts of the dataset."""

    def origins(self, number: int) -> Iterator[Origin]:
        """Yield the positions of all patches of both splits; `number` is that of the dataset."""

    def usable(self, origin: Origin) -> bool:
        """Return whether a patch is neither blank nor invalid."""

    def cut(self, origin: Origin) -> Cut:
        """Return condition, target and positions."""


def training_length(length: int, share: float, unit: int, gap: int) -> tuple[int, int]:
    """Split a length into a training part and, after a gap, a validation part.

    Returns
    -------
    tuple of int
        End of the training part, and begin of the validation part, which has at least `unit` length.
    """
    kept = max(round(length * share), unit)
    return length - kept - gap, length - kept
