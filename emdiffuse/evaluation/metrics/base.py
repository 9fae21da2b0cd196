"""What every metric is: an object that adds up blocks, and scores the planes that they are parts of.

Conventions
-----------
* A metric keeps *sums* alone, an array each with one entry a plane (or block) along its first axis, so that
  neither the order nor the number of blocks matters, and metrics of different blocks can be added.
* An orientation is a set of parallel planes: ``xy``, ``xz``, ``yz``; or ``xyz``, the blocks themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.blocks import EvaluationBlock

Vector = NDArray[np.float64]
Scores = dict[str, dict[str, Vector]]
"""The values of all planes, by orientation and measure; not a number where a plane has none."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Measure:
    """One column of the tables.

    Attributes
    ----------
    name : str
        As in files.
    heading : str
        As in the report, with its unit.
    unit : str
        What one unit of it is, in words.
    digits : int
        Decimals in the report.
    better : int
        1 if more is better, -1 if less is; 0 if neither is better by definition.
    """

    name: str
    heading: str
    unit: str
    digits: int
    better: int


@dataclass(frozen=True)
class Setting:
    """What all blocks of an evaluation share.

    Attributes
    ----------
    data_range, low : float
        Intensity range that measures refer to, and where it begins.
    whole : bool
        Whether intensities are integers.
    voxel : float
        Side of a voxel, in nm.
    lengths : dict
        How many planes each orientation has, and blocks (``xyz``).
    lpips : Path or None
        Weights of AlexNet, where LPIPS is measured.
    """

    data_range: float
    low: float
    whole: bool
    voxel: float
    lengths: dict[str, int]
    lpips: Path | None = None

    @property
    def images(self) -> bool:
        """Whether these are separate images, not slices of a volume."""
        return "xz" not in self.lengths

    @property
    def centre(self) -> float:
        """The middle of the intensity range, an integer where intensities are."""
        middle = self.low + self.data_range / 2
        return float(round(middle)) if self.whole else middle


class Piece:
    """A block of the truth, or of what a method made, with what metrics derive from it.

    Parameters
    ----------
    values : ndarray
        The voxels of the block and its margin, (z, y, x).
    block : EvaluationBlock
        Where it lies, and what counts of it.
    setting : Setting
        What all blocks share.
    """

    def __init__(self, values: NDArray[Any], block: EvaluationBlock, setting: Setting) -> None:
        self.values, self.block, self.setting = values, block, setting
        self._made: dict[Callable[[Piece], Any], Any] = {}

    def once(self, make: Callable[[Piece], Made]) -> Made:
        """Return what a function makes of this piece, computed at the first call: the truth's serves all."""
        if make not in self._made:
            self._made[make] = make(self)
        made: Made = self._made[make]
        return made

    @property
    def centred(self) -> NDArray[np.float32]:
        """All voxels less the middle of the range, where single precision loses least."""
        return self.once(_centred)

    @property
    def planes(self) -> NDArray[np.float32]:
        """The planes that count, without margin, less the middle of the range."""
        return self.once(_planes)

    def plane(self, row: int) -> NDArray[Any]:
        """Return one of the planes that count, as it is."""
        _, y, x = self.block.counted
        values: NDArray[Any] = self.values[self.block.counted[0][row], y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        return values


def _centred(piece: Piece) -> NDArray[np.float32]:
    centre = piece.setting.centre
    if piece.values.dtype.itemsize <= 2:
        return piece.values.astype(np.float32) - np.float32(centre)
    return (piece.values - centre).astype(np.float32)


def _planes(piece: Piece) -> NDArray[np.float32]:
    planes: NDArray[np.float32] = piece.centred[np.ix_(*piece.block.counted)]
    return planes


class Metric(ABC):
    """A metric of one method: what it needs of every block, and what follows for every plane.

    A new metric is a subclass, in the list of `emdiffuse.evaluation.metrics.metrics_of`, and nothing else.

    Parameters
    ----------
    setting : Setting
        What all blocks share.
    """

    measures: ClassVar[tuple[Measure, ...]]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.sums: dict[str, Vector] = {}

    def per_plane(self, *names: str, orientation: str = "xy", entries: tuple[int, ...] = ()) -> None:
        """Begin sums, with some entries for each plane of an orientation."""
        for name in names:
            self.sums[name] = np.zeros((self.setting.lengths[orientation], *entries))

    @abstractmethod
    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add a block of what a method made, beside the truth's."""

    @abstractmethod
    def score(self) -> Scores:
        """Return the values of all planes, once all blocks are added."""

    def merge(self, other: Metric) -> None:
        """Add the sums of the same metric over other blocks."""
        for name, own in self.sums.items():
            own += other.sums[name]


def ratio(above: Vector, below: Vector) -> Vector:
    """Divide; what has nothing below is not a number."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
