"""The condition of a network, the interface of processes, and sampling along the noise levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from emdiffuse.config import Sampler
from emdiffuse.diffusion.objectives import Denoiser
from emdiffuse.diffusion.samplers import SAMPLERS, ddpm
from emdiffuse.diffusion.schedules import Levels
from emdiffuse.models.draws import Draws

White = Callable[[int], Tensor]
"""``white(step)`` returns standard normal noise with the shape of the restored slices."""


class Batch(NamedTuple):
    """The condition of a network; see `emdiffuse.models.processes`."""

    condition: Tensor
    positions: Tensor
    factor: Tensor
    thickness: Tensor

    @classmethod
    def of_images(cls, condition: Tensor) -> Batch:
        """Return the batch of images (N, 1, H, W)."""
        one = torch.ones(len(condition), device=condition.device)
        return cls(condition, 0.5 * one[:, None], one, 0 * one)

    @classmethod
    def of_gaps(cls, condition: Tensor, positions: Tensor, factor: float, thickness: float = 0.0) -> Batch:
        """Return the batch of gaps (N, 4, H, W) of one kind, with positions (D,)."""
        one = torch.ones(len(condition), device=condition.device)
        places = positions.to(condition.device).expand(len(condition), -1)
        return cls(condition, places, factor * one, thickness * one)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the restored slices, (N, D, H, W)."""
        return (*self.positions.shape, *self.condition.shape[2:])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Process(Protocol):
    """Training and sampling of a network; see `emdiffuse.models.processes`."""

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """Draw the arguments of the network, and its target output."""

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of an output against the target, which is NaN where undefined."""

    def sample(self, network: nn.Module, batch: Batch, sampler: Sampler, white: White) -> Tensor:
        """Draw one image of each slice."""


def calls(sampler: Sampler) -> int:
    """Return the number of levels of a resolved sampler (see `Description.resolve`)."""
    if sampler.steps is None:
        raise ValueError("the sampler's number of steps is not set; resolve it with the model first")
    return sampler.steps


def walk(sampler: Sampler, denoise: Denoiser, levels: Levels | np.ndarray[Any, Any], noise: White) -> Tensor:
    """Draw a sample along the levels with the sampler's method."""
    assert sampler.name is not None
    if sampler.name == "ddpm":
        return ddpm(denoise, noise(0), levels, noise)
    return SAMPLERS[sampler.name](denoise, noise(0), levels)
