"""The process of the published networks, slice by slice, and its extension to whole gaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emdiffuse.config import Sampler
from emdiffuse.diffusion.objectives import as_denoiser, difficulty_aware, split_difficulty
from emdiffuse.diffusion.schedules import PUBLISHED_TRAIN, Levels, linear_gammas, log_snr_levels, q_sample
from emdiffuse.models.description import PUBLISHED_GAMMAS
from emdiffuse.models.draws import Draws
from emdiffuse.models.processes.process import Batch, White, calls, walk
from emdiffuse.runtime.devices import widest_float
from emdiffuse.runtime.errors import DataError


@dataclass(frozen=True)
class PublishedProcess:
    """The process of the published networks: noise prediction of the image itself, one slice at a time.

    Training levels are drawn between neighbouring ones of the published schedule; x0 is clipped to [-1, 1]. A
    gap is conditioned on the real slice after it, then the one before it; a slice is identified by its index
    from 0 (Lu et al., doi 10.1038/s41467-024-49125-z, and its code).

    Attributes
    ----------
    difficulty_map : bool
        Whether the network has a second output, the difficulty map, and the difficulty-aware loss.
    """

    difficulty_map: bool = False

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Process`; one slice of each gap is drawn, and the target is the noise, (N, 1, H, W)."""
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
        """Return the squared error, or the difficulty-aware loss."""
        if self.difficulty_map:
            return difficulty_aware(wanted, output)
        return (output.float() - wanted).square().mean()

    def sample(self, network: nn.Module, batch: Batch, sampler: Sampler, white: White) -> Tensor:
        """See `Process`; ``ddpm`` follows the published test schedule, others equal steps in log-SNR.

        Raises
        ------
        DataError
            If the factor is not an integer, because the network identifies slices by index.
        """
        if batch.condition.shape[1] > 1 and bool((batch.factor != batch.factor.round()).any()):
            raise DataError("a published network only fills gaps of integer factors; use a native model")
        answer = _published_call(network, batch)

        def call(x: Tensor, gamma: Tensor) -> Tensor:
            return split_difficulty(answer(x, gamma))[0] if self.difficulty_map else answer(x, gamma)

        def noise(step: int) -> Tensor:
            return white(step).reshape(-1, 1, *batch.shape[2:])

        denoise = as_denoiser(call, "epsilon", clip=(-1.0, 1.0))
        images = walk(sampler, denoise, published_levels(sampler), noise)
        return images.reshape(batch.shape)

    def difficulty(
        self, network: nn.Module, batch: Batch, restored: Tensor, gamma: float, eps: Tensor
    ) -> Tensor:
        """Return the difficulty of each pixel, from a network with a difficulty map.

        Parameters
        ----------
        network : Module
            Network trained with the difficulty-aware loss.
        batch : Batch
            Condition of the network.
        restored : Tensor
            (N, D, H, W), in [-1, 1]: the restored slices, to which noise of the level is added.
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
            If the network was trained without the difficulty map.
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
    """The published process for all slices of a gap at once, with a 3-D network.

    It is conditioned on the real slices on both sides of the gap, and on each slice's position, as channels
    (N, 3, D, H, W), so that slices are consistent with their neighbours, not only with the real slices.
    """

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Process`; the target is the noise of every slice, (N, 1, D, H, W), NaN if absent."""
        gamma = _trained_levels(draws, target.device)
        eps = draws.normal(*target.shape[1:]).to(target.device)
        noisy = q_sample(target.nan_to_num(0.0), gamma, eps)[:, None]
        x = torch.cat([_joint_condition(batch), noisy], 1)
        return (x, gamma.to(x.dtype)), torch.where(target.isnan(), target, eps)[:, None]

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of `PublishedProcess`, over the present slices."""
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
        return walk(sampler, denoise, published_levels(sampler), noise)[:, 0]

    def difficulty(
        self, network: nn.Module, batch: Batch, restored: Tensor, gamma: float, eps: Tensor
    ) -> Tensor:
        """See `PublishedProcess.difficulty`."""
        if not self.difficulty_map:
            raise DataError("this network has no difficulty map: train with `training.loss: difficulty`")
        levels = torch.full((len(restored),), gamma, device=restored.device)
        output = _joint_call(network, batch)(q_sample(restored, levels, eps)[:, None], levels)
        return split_difficulty(output)[1][:, 0]


def published_levels(sampler: Sampler) -> Levels:
    """Return the sampling levels of a published network: its test schedule for ddpm, else log-SNR steps."""
    if sampler.name == "ddpm":
        return linear_gammas(1e-4, 9e-2, calls(sampler))
    return log_snr_levels(calls(sampler), *PUBLISHED_GAMMAS)


def _trained_levels(draws: Draws, device: torch.device) -> Tensor:
    """Draw levels (N,) between neighbouring ones of the published training schedule."""
    number = draws.integers(1, len(PUBLISHED_TRAIN))
    between = draws.uniform(dtype=torch.float64)
    levels = torch.from_numpy(PUBLISHED_TRAIN).to(number.device)
    gamma = levels[number - 1] + between * (levels[number] - levels[number - 1])
    return gamma.to(device, widest_float(device))


def _published_call(network: nn.Module, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind a published network to its condition, for slices as separate images (N D, 1, H, W)."""
    count, depth = batch.positions.shape
    condition = _published_condition(batch.condition).repeat_interleave(depth, 0)
    index = torch.arange(depth, device=condition.device).repeat(count)

    def call(x: Tensor, gamma: Tensor) -> Tensor:
        shown = torch.cat([condition, x], 1)
        out: Tensor = network(shown, gamma) if condition.shape[1] == 1 else network(shown, gamma, index)
        return out

    return call


def _published_condition(condition: Tensor) -> Tensor:
    """Return a published network's condition: the image, or the slice after a gap, then the one before."""
    return condition if condition.shape[1] == 1 else condition[:, [2, 1]]


def _joint_call(network: nn.Module, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind a 3-D network to its condition, for the slices of gaps (N, 1, D, H, W)."""
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
