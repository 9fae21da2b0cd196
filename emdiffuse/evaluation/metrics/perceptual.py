"""LPIPS: distance of two planes in the features of a network trained to classify photographs.

Conventions
-----------
* See `emdiffuse.evaluation.metrics`. Torchmetrics computes LPIPS, with AlexNet as backbone. The user supplies
  the AlexNet weights; nothing is downloaded.
* The backbone learned from photographs: the distance compares methods, and guarantees nothing about tissue.
* Torch is imported only if LPIPS is requested.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.lpips import ALEXNET, require_lpips
from emdiffuse.evaluation.blocks import EvaluationBlock
from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, ratio
from emdiffuse.runtime.errors import ConfigError

SMALLEST = 31
"""Side in pixels of the smallest plane that has features at every stage of AlexNet."""


class Lpips:
    """The learned perceptual image patch similarity of planes.

    Parameters
    ----------
    backbone : Path
        Torchvision's AlexNet weights.

    Raises
    ------
    ConfigError
        If the file or torchmetrics is missing, or the file does not contain these weights.

    References
    ----------
    Zhang, Isola, Efros, Shechtman and Wang 2018, arXiv 1801.03924, version 0.1 of its weights.
    """

    def __init__(self, backbone: Path) -> None:
        require_lpips(backbone, "LPIPS")
        import torch
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import alexnet

        try:
            # weights_only: unpickling, as torchvision does, could run code
            weights = torch.load(backbone, map_location="cpu", weights_only=True)
            with torch.device("meta"):
                alexnet().load_state_dict(weights)  # checks names and shapes
        except Exception:
            raise ConfigError(
                f"{backbone}: not torchvision's AlexNet weights, or truncated; download {ALEXNET}"
            ) from None
        known = torch.hub.get_dir()
        with tempfile.TemporaryDirectory() as folder:
            # torchvision uses this file instead of downloading
            cached = Path(folder) / "checkpoints" / Path(ALEXNET).name
            cached.parent.mkdir()
            torch.save(weights, cached)
            torch.hub.set_dir(folder)
            try:
                self.network = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none")
            finally:
                torch.hub.set_dir(known)
        self._lock = Lock()

    def distance(self, image: NDArray[Any], truth: NDArray[Any], low: float, data_range: float) -> float:
        """Return the distance of two planes.

        Parameters
        ----------
        image, truth : ndarray
            Rows and columns.
        low, data_range : float
            Intensity shown as black, and the range up to white; values outside are clipped.

        Returns
        -------
        float
            Without unit; 0 for equal planes. NaN for planes below `SMALLEST` pixels.
        """
        import torch

        if min(truth.shape) < SMALLEST:
            return float("nan")
        scaled = (np.clip((v.astype(np.float32) - low) * (2 / data_range) - 1, -1, 1) for v in (image, truth))
        pictures = [torch.from_numpy(plane).expand(1, 3, *truth.shape) for plane in scaled]
        with self._lock, torch.inference_mode():  # the metric accumulates until it is reset
            found = float(self.network(*pictures))
            self.network.reset()
        return found


@lru_cache(maxsize=1)
def _lpips(backbone: Path) -> Lpips:
    return Lpips(backbone)


class Perceptual(Metric):
    """LPIPS of tiles in xy, if requested; a costly metric."""

    measures = (
        Measure(
            "lpips", "LPIPS", "no unit, 0: equal features in AlexNet, which learned from photographs", 3, -1
        ),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.lpips is not None:
            self.network = _lpips(setting.lpips)
            self.per_plane("distance", "voxels")

    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add the distance of every tile, weighted by its size."""
        if self.setting.lpips is None:
            return
        scale = (self.setting.low, self.setting.data_range)
        for row in block.costly:
            here, size = block.places[0][row], ours.planes[row].size
            self.sums["distance"][here] += (
                self.network.distance(ours.plane(row), truth.plane(row), *scale) * size
            )
            self.sums["voxels"][here] += size

    def score(self) -> Scores:
        """Return LPIPS in xy, if measured."""
        if self.setting.lpips is None:
            return {}
        return {"xy": {"lpips": ratio(self.sums["distance"], self.sums["voxels"])}}
