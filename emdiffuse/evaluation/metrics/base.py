"""Base class of metrics, which sum over blocks and then score whole planes.

Conventions
-----------
* A metric stores only *sums*, arrays with one entry per plane (or block) along their first axis, so that
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
"""Values of all planes, by orientation and name; NaN where undefined."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Measure:
    """One column of the tables.

    Attributes
    ----------
    name : str
        Name in files.
    heading : str
        Name in the report, with its unit.
    unit : str
        Unit, in words.
    digits : int
        Decimals in the report.
    better : int
        1 if higher is better, -1 if lower is better, 0 if neither by definition.
    """

    name: str
    heading: str
    unit: str
    digits: int
    better: int


@dataclass(frozen=True)
class Setting:
    """Settings that all blocks of an evaluation share.

    Attributes
    ----------
    data_range, low : float
        Intensity range that metrics refer to, and its lowest intensity.
    whole : bool
        Whether intensities are integers.
    voxel : float
        Side of a voxel, in nm.
    lengths : dict
        Number of planes of each orientation, and of blocks (``xyz``).
    lpips : Path or None
        AlexNet weights, if LPIPS is measured.
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
        """Middle of the intensity range, an integer if intensities are integers."""
        middle = self.low + self.data_range / 2
        return float(round(middle)) if self.whole else middle


class Piece:
    """A block of the truth or of a method, with cached values that metrics derive from it.

    Parameters
    ----------
    values : ndarray
        The voxels of the block and its margin, (z, y, x).
    block : EvaluationBlock
        Its position, and which of its voxels count.
    setting : Setting
        Settings that all blocks share.
    """

    def __init__(self, values: NDArray[Any], block: EvaluationBlock, setting: Setting) -> None:
        self.values, self.block, self.setting = values, block, setting
        self._made: dict[Callable[[Piece], Any], Any] = {}

    def once(self, make: Callable[[Piece], Made]) -> Made:
        """Return `make(self)`, cached so that values of the truth are computed once for all methods."""
        if make not in self._made:
            self._made[make] = make(self)
        made: Made = self._made[make]
        return made

    @property
    def centred(self) -> NDArray[np.float32]:
        """All voxels minus the middle of the range, to keep precision in float32."""
        return self.once(_centred)

    @property
    def planes(self) -> NDArray[np.float32]:
        """Counted planes without margin, minus the middle of the range."""
        return self.once(_planes)

    def plane(self, row: int) -> NDArray[Any]:
        """Return one counted plane, unchanged."""
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
    """A metric of one method, which sums over blocks and scores planes.

    To add a metric, write a subclass and list it in `emdiffuse.evaluation.metrics.metrics_of`.

    Parameters
    ----------
    setting : Setting
        Settings that all blocks share.
    """

    measures: ClassVar[tuple[Measure, ...]]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.sums: dict[str, Vector] = {}

    def per_plane(self, *names: str, orientation: str = "xy", entries: tuple[int, ...] = ()) -> None:
        """Create sums of zeros, with `entries` for each plane of an orientation."""
        for name in names:
            self.sums[name] = np.zeros((self.setting.lengths[orientation], *entries))

    @abstractmethod
    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add a block of a method and of the truth."""

    @abstractmethod
    def score(self) -> Scores:
        """Return the values of all planes, once all blocks are added."""

    def merge(self, other: Metric) -> None:
        """Add the sums of the same metric over other blocks."""
        for name, own in self.sums.items():
            own += other.sums[name]


def ratio(above: Vector, below: Vector) -> Vector:
    """Divide; NaN where the denominator is zero."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
