"""Continuity along z: how much neighbouring slices differ, relative to the truth.

Conventions
-----------
* See `emdiffuse.evaluation.metrics`. A step is the mean absolute difference of two neighbouring slices. Steps
  between two generated slices, and between a generated slice and a real one, are separate: the second
  reveals a restoration that jumps where it meets the real slices.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from emdiffuse.evaluation.blocks import EvaluationBlock
from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, Vector, ratio

STEPS = ("step_ratio", "real_step_ratio")


class Continuity(Metric):
    """Steps between slices, relative to the truth; volumes only."""

    measures = (
        Measure(
            "step_ratio",
            "Step between slices (truth = 1)",
            "mean absolute difference of neighbouring generated slices, relative to the truth",
            2,
            0,
        ),
        Measure(
            "real_step_ratio",
            "Step to real slices (truth = 1)",
            "the same for a generated slice and the real one beside it, relative to the truth",
            2,
            0,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not setting.images:
            self.per_plane(*STEPS, entries=(2,))

    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add the steps from generated slices to their neighbours, each step once."""
        if self.setting.images:
            return
        mine, theirs = _steps(ours), truth.once(_steps)
        for row, here in zip(block.counted[0], block.places[0], strict=True):
            for other in (row - 1, row + 1):
                if other == len(block.generated) or (other > row and block.generated[other]):
                    continue
                step = min(row, other)
                name = "step_ratio" if block.generated[other] else "real_step_ratio"
                self.sums[name][here] += mine[step], theirs[step]

    def score(self) -> Scores:
        """Return both ratios in xy."""
        return {"xy": {name: ratio(*sums.T) for name, sums in self.sums.items()}}


def _steps(piece: Piece) -> Vector:
    """Sum the absolute differences of each slice and the next over the counted voxels."""
    _, y, x = piece.block.own
    own = piece.centred[:, y, x]
    return np.array([np.abs(b - a).sum(dtype=np.float64) for a, b in pairwise(own)])
