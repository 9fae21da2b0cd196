"""What a network is conditioned on, what every process can do, and the walk along the noise levels."""

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
"""``white(step)`` is standard normal noise of the shape of what is restored."""


class Batch(NamedTuple):
    """What a network is conditioned on; see `emdiffuse.models.processes`."""

    condition: Tensor
    positions: Tensor
    factor: Tensor
    thickness: Tensor

    @classmethod
    def of_images(cls, condition: Tensor) -> Batch:
        """Make the batch of images (N, 1, H, W)."""
        one = torch.ones(len(condition), device=condition.device)
        return cls(condition, 0.5 * one[:, None], one, 0 * one)

    @classmethod
    def of_gaps(cls, condition: Tensor, positions: Tensor, factor: float, thickness: float = 0.0) -> Batch:
        """Make the batch of gaps (N, 4, H, W) of one kind, with positions (D,)."""
        one = torch.ones(len(condition), device=condition.device)
        places = positions.to(condition.device).expand(len(condition), -1)
        return cls(condition, places, factor * one, thickness * one)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is restored, (N, D, H, W)."""
        return (*self.positions.shape, *self.condition.shape[2:])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Process(Protocol):
    """How a network is trained and sampled; see `emdiffuse.models.processes`."""

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """Draw the arguments of the network, and what it should answer."""

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        """Compare an answer with the wanted one, NaN where there is none."""

    def sample(self, network: nn.Module, batch: Batch, sampler: Sampler, white: White) -> Tensor:
        """Draw one image of each slice."""


def calls(sampler: Sampler) -> int:
    """Return the number of levels of a sampler that is settled (see `Description.resolve`)."""
    if sampler.steps is None:
        raise ValueError("the sampler's number of steps is open: resolve it with the model first")
    return sampler.steps


def walk(sampler: Sampler, denoise: Denoiser, levels: Levels | np.ndarray[Any, Any], noise: White) -> Tensor:
    """Draw a sample along the levels by the sampler's method."""
    assert sampler.name is not None
    if sampler.name == "ddpm":
        return ddpm(denoise, noise(0), levels, noise)
    return SAMPLERS[sampler.name](denoise, noise(0), levels)
