"""LPIPS: how differently a network that was trained to tell photographs apart sees two planes.

Conventions
-----------
* See `evaluation.metrics`. The backbone is AlexNet, whose weights are a file of the user; those of the
  features lie in the package torchmetrics. Neither is downloaded.
* The backbone learned from photographs: a distance compares methods, and promises nothing about tissue.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.models import alexnet

from emdiffuse.config.evaluation import ALEXNET, require_lpips
from emdiffuse.runtime.errors import ConfigError

STAGES = (2, 5, 8, 10, 12)
"""Layers of AlexNet after whose rectifiers features are compared, counted from 1."""
SMALLEST = 31
"""Side in pixels of the smallest plane that has features at every stage."""
LINEAR = "functional/image/lpips_models/alex.pth"
MEAN, SPREAD = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
"""What is subtracted from, and divides, the three channels of a picture in [-1, 1]."""


class Lpips:
    """The learned perceptual image patch similarity of planes.

    Parameters
    ----------
    backbone : Path
        Torchvision's weights of AlexNet.

    Raises
    ------
    ConfigError
        If the file or torchmetrics is missing, or either holds something else.

    References
    ----------
    Zhang, Isola, Efros, Shechtman and Wang 2018, arXiv 1801.03924, version 0.1 of its weights.
    """

    def __init__(self, backbone: Path) -> None:
        require_lpips(backbone, "LPIPS")
        self.layers = alexnet().features.eval().requires_grad_(False)
        try:
            weights = torch.load(backbone, map_location="cpu", weights_only=True)
            names = self.layers.state_dict()
            self.layers.load_state_dict({name: weights[f"features.{name}"] for name in names})
        except Exception:
            raise ConfigError(
                f"{backbone}: not torchvision's weights of AlexNet, or cut off; fetch {ALEXNET}"
            ) from None
        spec = find_spec("torchmetrics")
        assert spec is not None and spec.submodule_search_locations is not None
        shipped = Path(spec.submodule_search_locations[0]) / LINEAR
        linear = torch.load(shipped, map_location="cpu", weights_only=True)
        self.weights = [linear[f"lin{stage}.model.1.weight"] for stage in range(len(STAGES))]

    @torch.inference_mode()
    def features(self, plane: NDArray[Any], low: float, data_range: float) -> list[Tensor]:
        """Return the features of a plane at every stage, each pixel's of length 1; none of a small plane.

        Parameters
        ----------
        plane : ndarray
            Rows and columns.
        low, data_range : float
            The intensity seen as black, and the range up to white; what lies outside is clipped.
        """
        if min(plane.shape) < SMALLEST:
            return []
        scaled = np.clip((plane.astype(np.float32) - low) * (2 / data_range) - 1, -1, 1)
        channels = torch.from_numpy(scaled).expand(1, 3, *plane.shape)
        values = (channels - MEAN[:, None, None]) / SPREAD[:, None, None]
        found = []
        for number, layer in enumerate(self.layers[: STAGES[-1]], 1):
            values = layer(values)
            if number in STAGES:
                found.append(values / torch.sqrt(1e-8 + (values**2).sum(1, keepdim=True)))
        return found

    @torch.inference_mode()
    def distance(self, ours: list[Tensor], theirs: list[Tensor]) -> float:
        """Return the distance of two planes by their features.

        Returns
        -------
        float
            Without unit, at least 0: equal planes. Not a number without features.
        """
        if not ours:
            return float("nan")
        stages = zip(self.weights, ours, theirs, strict=True)
        return sum(float(functional.conv2d((a - b) ** 2, weight).mean()) for weight, a, b in stages)
