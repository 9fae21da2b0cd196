"""How a network is trained and sampled: the native process, the published one, and that of whole gaps.

Conventions
-----------
* A *batch* is what a network is conditioned on: `condition` (N, C, H, W) in [-1, 1], the real slices at
  `tasks.CONDITION_OFFSETS` of a gap or one image; `positions` (N, D), the slices' places in the gap, NaN
  where one is absent; `factor` (N,); `thickness` (N,), the fraction of the slice spacing that a real slice
  integrates over. An image has one slice, at position 1/2, factor 1 and thickness 0.
* ``process.example(batch, target, draws)`` draws levels and noise, and gives the arguments of the network and
  what it should answer, each with N first, so that a batch can be worked through in parts.
* What is drawn is drawn for a whole batch, of which a process has some rows (`Draws`): sharing it changes
  nothing.
* ``process.sample(network, batch, sampler, white)`` draws one image of each slice, (N, D, H, W) in [-1, 1];
  ``white(step)`` is standard normal noise of that shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from emdiffuse.config import Sampler, Training
from emdiffuse.diffusion.objectives import (
    Denoiser,
    as_denoiser,
    difficulty_aware,
    error_where_known,
    split_difficulty,
    training_target,
)
from emdiffuse.diffusion.samplers import SAMPLERS, ddpm
from emdiffuse.diffusion.schedules import PUBLISHED_TRAIN, Levels, linear_gammas, log_snr_levels, q_sample
from emdiffuse.models.description import PUBLISHED_GAMMAS, Description, NativeSpec, Unet3dSpec
from emdiffuse.models.draws import Draws
from emdiffuse.models.networks.native import NativeNetwork, plain_estimate
from emdiffuse.models.networks.unet import UNet
from emdiffuse.models.surroundings import Reach
from emdiffuse.runtime.devices import widest_float
from emdiffuse.runtime.errors import DataError

GAMMA_LAST = 0.998
"""Highest level at which a native network is called: what noise is left there is below that of the data."""

GAMMA_SHARP = 0.99
"""Highest level that a flow from the mean starts at: further steps are left to it."""

FLOOR = 0.1
"""Power of the flow, in units of the residual's variance, below which examples count less."""

White = Callable[[int], Tensor]


class Batch(NamedTuple):
    """What a network is conditioned on; see the module."""

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
    """How a network is trained and sampled; see the module."""

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """Draw the arguments of the network, and what it should answer."""

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        """Compare an answer with the wanted one, NaN where there is none."""

    def sample(self, network: nn.Module, batch: Batch, sampler: Sampler, white: White) -> Tensor:
        """Draw one image of each slice."""


@dataclass(frozen=True)
class NativeProcess:
    """Rectified flow of the residual to a plain estimate (Liu et al. 2022, arXiv 2209.03003).

    Attributes
    ----------
    scale : float
        Standard deviation of the residual.
    mean_share : float
        Share of a training batch at pure noise, where the network learns the posterior mean.
    blind_spot : tuple of int, optional
        Of a network that learns from hidden pixels: how far they reach along y and x.
    """

    scale: float
    mean_share: float = 0.5
    blind_spot: Reach | None = None

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Process`; the wanted answer is the flow ``eps - x0``, minus the posterior mean at pure noise.

        Parameters
        ----------
        batch : Batch
        target : Tensor
            (N, D, H, W), in [-1, 1]; NaN where a slice is absent, or a pixel was not hidden.
        draws : Draws
            What levels and noise come from.

        Returns
        -------
        tuple
            (x, gamma, *batch), and the flow (N, D, H, W).
        """
        x0 = (target - self.plain(batch)) / self.scale
        means = draws.first(self.mean_share).to(x0.device)
        time = torch.sigmoid(draws.normal()).to(x0.device)
        time[means] = 1.0
        eps = draws.normal(*x0.shape[1:]).to(x0.device)
        eps[means] = 0.0
        gamma = (1 - time) ** 2 / ((1 - time) ** 2 + time**2)
        x = q_sample(x0.nan_to_num(0.0), gamma, eps)
        return (x, gamma, *batch), training_target("flow", x0, eps)

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        """Squared error, the mean over the present slices of each gap, then over the batch.

        Each example counts by its error over that of a poorer answer, nothing, so that a tissue or a factor
        that changes little from slice to slice is learned as well as others; `FLOOR` keeps what is empty from
        counting most. Where pixels were hidden, these alone count.
        """
        if self.blind_spot is not None:  # alike: the power of few noisy pixels would be noise
            return error_where_known(output, wanted)
        present = ~wanted[:, :, :1, :1].isnan()
        target = wanted.nan_to_num(0.0)
        errors = ((output.float() - target).square() * present).mean((2, 3)).sum(1) / present.sum((1, 2, 3))
        power = (target.square() * present).mean((2, 3)).sum(1) / present.sum((1, 2, 3))
        return (errors / (power + FLOOR)).mean()

    def sample(self, network: nn.Module, batch: Batch, sampler: Sampler, white: White) -> Tensor:
        """See `Process`; one step gives the posterior mean, for which no noise is drawn."""
        denoise = self.denoiser(network, batch)
        base = self.plain(batch)
        if sampler.steps == 1:
            residual = denoise(torch.zeros_like(base), torch.zeros(len(base), device=base.device))
            return base + self.scale * residual
        levels = log_snr_levels(calls(sampler), 0.0, GAMMA_LAST)
        return base + self.scale * _walk(sampler, denoise, levels, white)

    def plain(self, batch: Batch) -> Tensor:
        """Return what the residual is added to, (N, D, H, W)."""
        return plain_estimate(batch.condition, batch.positions, self.blind_spot)

    def sharpen(
        self, network: nn.Module, batch: Batch, sampler: Sampler, mean: Tensor, white: White
    ) -> Tensor:
        """Follow the flow from the posterior mean under noise of a level, the sampler's `sharpen`, 0 to 1.

        The nearer to 1, the more of the noise becomes texture; at 1 the mean is forgotten, and the result is
        a sample. At the same PSNR the result is sharper than a weighted mean of mean and sample. After Ohayon
        et al. 2024 (arXiv 2410.00418), who train a flow for it; here it is the one that samples are drawn by.

        Parameters
        ----------
        network, batch, sampler, white
            See `Process.sample`.
        mean : Tensor
            (N, D, H, W), in [-1, 1].

        Returns
        -------
        Tensor
            (N, D, H, W), in [-1, 1].
        """
        base, time = self.plain(batch), sampler.sharpen
        level = min((1 - time) ** 2 / ((1 - time) ** 2 + time**2), GAMMA_SHARP)

        def noise(step: int) -> Tensor:
            if step:
                return white(step)
            return level**0.5 * (mean - base) / self.scale + (1 - level) ** 0.5 * white(0)

        levels = log_snr_levels(calls(sampler), level, GAMMA_LAST)
        return base + self.scale * _walk(sampler, self.denoiser(network, batch), levels, noise)

    @staticmethod
    def denoiser(network: nn.Module, batch: Batch) -> Denoiser:
        """Bind a network to its condition, as a denoiser of the residual in units of `scale`."""

        def call(x: Tensor, gamma: Tensor) -> Tensor:  # of a network that is compiled
            out: Tensor = network(x, gamma, *batch)
            return out

        flow = as_denoiser(network.bind(*batch) if isinstance(network, NativeNetwork) else call, "flow")

        def denoise(x: Tensor, gamma: Tensor) -> Tensor:
            visible = (gamma > 0).to(x.dtype)[:, None, None, None]
            return flow(x * visible, gamma)

        return denoise


@dataclass(frozen=True)
class PublishedProcess:
    """The process of the published networks: noise prediction of the image itself, one slice at a time.

    Training levels lie between neighbouring ones of the published schedule; x0 is clipped to [-1, 1]. A gap
    is conditioned on the real slice after it, then the one before it, and a slice known by its index from 0
    (Lu et al., doi 10.1038/s41467-024-49125-z, and its code).

    Attributes
    ----------
    difficulty_map : bool
        Whether the network has a second output, the difficulty map, and the difficulty-aware loss.
    """

    difficulty_map: bool = False

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Process`; of each gap one slice is drawn, and the wanted answer is the noise, (N, 1, H, W)."""
        count = len(target)
        present = ~batch.positions.isnan()
        share = draws.uniform().to(target.device)
        index = (share * present.sum(1)).long()
        x0 = target[torch.arange(count, device=target.device), index][:, None]
        gamma = _trained_levels(draws, target.device)
        eps = draws.normal(*x0.shape[1:]).to(target.device)
        x = torch.cat([_published_condition(batch.condition), q_sample(x0, gamma, eps)], 1)
        level = gamma.to(x.dtype)
        return ((x, level) if batch.condition.shape[1] == 1 else (x, level, index)), eps

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        """Squared error, or the difficulty-aware loss."""
        if self.difficulty_map:
            return difficulty_aware(wanted, output)
        return (output.float() - wanted).square().mean()

    def sample(self, network: nn.Module, batch: Batch, sampler: Sampler, white: White) -> Tensor:
        """See `Process`; ``ddpm`` walks the published test schedule, the others equal steps in log-SNR.

        Raises
        ------
        DataError
            If the factor is no integer: the network knows slices by their index.
        """
        if batch.condition.shape[1] > 1 and bool((batch.factor != batch.factor.round()).any()):
            raise DataError("a published network fills gaps of integer factors alone; use a native model")
        answer = _published_call(network, batch)

        def call(x: Tensor, gamma: Tensor) -> Tensor:
            return split_difficulty(answer(x, gamma))[0] if self.difficulty_map else answer(x, gamma)

        def noise(step: int) -> Tensor:
            return white(step).reshape(-1, 1, *batch.shape[2:])

        denoise = as_denoiser(call, "epsilon", clip=(-1.0, 1.0))
        images = _walk(sampler, denoise, published_levels(sampler), noise)
        return images.reshape(batch.shape)

    def difficulty(
        self, network: nn.Module, batch: Batch, restored: Tensor, gamma: float, eps: Tensor
    ) -> Tensor:
        """Ask a network with a difficulty map how hard each pixel is.

        Parameters
        ----------
        network : Module
            Trained with the difficulty-aware loss.
        batch : Batch
            What is known.
        restored : Tensor
            (N, D, H, W), in [-1, 1]: what was restored, which is noised again to the level.
        gamma : float
            The level, in (0, 1).
        eps : Tensor
            Standard normal noise of the same shape.

        Returns
        -------
        Tensor
            (N, D, H, W): phi, positive; half its square is about the expected squared error of the noise's
            estimate.

        Raises
        ------
        DataError
            If the network was trained without the map.
        """
        if not self.difficulty_map:
            raise DataError("this network has no difficulty map: train with `training.loss: difficulty`")
        call = _published_call(network, batch)
        levels = torch.full((restored.shape[0] * restored.shape[1],), gamma, device=restored.device)
        shape = (len(levels), 1, *restored.shape[2:])
        output = call(q_sample(restored.reshape(shape), levels, eps.reshape(shape)), levels)
        return split_difficulty(output)[1].reshape(restored.shape)


@dataclass(frozen=True)
class JointProcess(PublishedProcess):
    """The published process, but for all slices of a gap at once: a 3-D network that sees them together.

    It is conditioned on the real slices on both sides of the gap and on each slice's position, as channels
    (N, 3, D, H, W), so that a slice agrees with its neighbours and not only with the real slices.
    """

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Process`; the wanted answer is the noise of every slice, (N, 1, D, H, W), NaN where absent."""
        gamma = _trained_levels(draws, target.device)
        eps = draws.normal(*target.shape[1:]).to(target.device)
        noisy = q_sample(target.nan_to_num(0.0), gamma, eps)[:, None]
        x = torch.cat([_joint_condition(batch), noisy], 1)
        return (x, gamma.to(x.dtype)), torch.where(target.isnan(), target, eps)[:, None]

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        """As `PublishedProcess`, over the slices that are present."""
        present = ~wanted[:, 0, :, 0, 0].isnan()
        return super().loss(output.movedim(2, 1)[present], wanted.movedim(2, 1)[present])

    def sample(self, network: nn.Module, batch: Batch, sampler: Sampler, white: White) -> Tensor:
        """See `Process`; the levels are those of `PublishedProcess`."""
        call = _joint_call(network, batch)

        def noise_of(x: Tensor, gamma: Tensor) -> Tensor:
            return split_difficulty(call(x, gamma))[0] if self.difficulty_map else call(x, gamma)

        def noise(step: int) -> Tensor:
            return white(step)[:, None]

        denoise = as_denoiser(noise_of, "epsilon", clip=(-1.0, 1.0))
        return _walk(sampler, denoise, published_levels(sampler), noise)[:, 0]

    def difficulty(
        self, network: nn.Module, batch: Batch, restored: Tensor, gamma: float, eps: Tensor
    ) -> Tensor:
        """See `PublishedProcess.difficulty`."""
        if not self.difficulty_map:
            raise DataError("this network has no difficulty map: train with `training.loss: difficulty`")
        levels = torch.full((len(restored),), gamma, device=restored.device)
        output = _joint_call(network, batch)(q_sample(restored, levels, eps)[:, None], levels)
        return split_difficulty(output)[1][:, 0]


def _trained_levels(draws: Draws, device: torch.device) -> Tensor:
    """Draw levels (N,) between neighbouring ones of the published training schedule."""
    number = draws.integers(1, len(PUBLISHED_TRAIN))
    between = draws.uniform(dtype=torch.float64)
    levels = torch.from_numpy(PUBLISHED_TRAIN).to(number.device)
    gamma = levels[number - 1] + between * (levels[number] - levels[number - 1])
    return gamma.to(device, widest_float(device))


def published_levels(sampler: Sampler) -> Levels:
    """Levels at which a published network is called: its own test schedule for ddpm, log-SNR steps else."""
    if sampler.name == "ddpm":
        return linear_gammas(1e-4, 9e-2, calls(sampler))
    return log_snr_levels(calls(sampler), *PUBLISHED_GAMMAS)


def calls(sampler: Sampler) -> int:
    """Return the number of levels of a sampler that is settled (see `Description.resolve`)."""
    if sampler.steps is None:
        raise ValueError("the sampler's number of steps is open: resolve it with the model first")
    return sampler.steps


def process_of(description: Description) -> Process:
    """Return the process of a model from its description."""
    network = description.network
    if isinstance(network, NativeSpec):
        return NativeProcess(network.residual_scale, blind_spot=network.blind_spot)
    kind = JointProcess if isinstance(network, Unet3dSpec) else PublishedProcess
    return kind(network.out_channels == 2)


def new_process(network: nn.Module, training: Training, noisy: bool = False) -> Process:
    """Return the process by which a new network is trained; from `noisy` data it learns the mean alone."""
    if isinstance(network, NativeNetwork):
        share = 1.0 if noisy else training.mean_share
        return NativeProcess(network.residual_scale, share, network.blind_spot)
    kind = JointProcess if isinstance(network, UNet) and network.dims == 3 else PublishedProcess
    return kind(training.loss == "difficulty")


def _walk(sampler: Sampler, denoise: Denoiser, levels: Levels | np.ndarray[Any, Any], noise: White) -> Tensor:
    assert sampler.name is not None
    if sampler.name == "ddpm":
        return ddpm(denoise, noise(0), levels, noise)
    return SAMPLERS[sampler.name](denoise, noise(0), levels)


def _published_call(network: nn.Module, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind a published network to its condition; it then takes every slice as an image (N D, 1, H, W)."""
    count, depth = batch.positions.shape
    condition = _published_condition(batch.condition).repeat_interleave(depth, 0)
    index = torch.arange(depth, device=condition.device).repeat(count)

    def call(x: Tensor, gamma: Tensor) -> Tensor:
        shown = torch.cat([condition, x], 1)
        out: Tensor = network(shown, gamma) if condition.shape[1] == 1 else network(shown, gamma, index)
        return out

    return call


def _published_condition(condition: Tensor) -> Tensor:
    """Return a published network's condition: the image; or the slice after a gap, then that before."""
    return condition if condition.shape[1] == 1 else condition[:, [2, 1]]


def _joint_call(network: nn.Module, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind a 3-D network to its condition; it then takes the slices of gaps (N, 1, D, H, W)."""
    condition = _joint_condition(batch)

    def call(x: Tensor, gamma: Tensor) -> Tensor:
        out: Tensor = network(torch.cat([condition, x], 1), gamma)
        return out

    return call


def _joint_condition(batch: Batch) -> Tensor:
    """Return the slices after and before each gap, and the positions in it from -1 to 1, (N, 3, D, H, W)."""
    count, depth, height, width = batch.shape
    slices = _published_condition(batch.condition)[:, :, None].expand(-1, -1, depth, -1, -1)
    places = 2 * batch.positions.nan_to_num(0.5) - 1
    positions = places[:, None, :, None, None].expand(count, 1, depth, height, width)
    return torch.cat([slices, positions.to(slices.dtype)], 1)
