"""The process of the native network: a flow from noise to the residual of a plain estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emdiffuse.config import Sampler
from emdiffuse.diffusion.objectives import Denoiser, as_denoiser, error_where_known, training_target
from emdiffuse.diffusion.schedules import log_snr_levels, q_sample
from emdiffuse.models.draws import Draws
from emdiffuse.models.networks.native import NativeNetwork, plain_estimate
from emdiffuse.models.processes.process import Batch, White, calls, walk
from emdiffuse.models.surroundings import Reach

GAMMA_LAST = 0.998
"""Highest level at which a native network is called: what noise is left there is below that of the data."""

GAMMA_SHARP = 0.99
"""Highest level that a flow from the mean starts at: further steps are left to it."""

FLOOR = 0.1
"""Power of the flow, in units of the residual's variance, below which examples count less."""


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
        return base + self.scale * walk(sampler, denoise, levels, white)

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
        return base + self.scale * walk(sampler, self.denoiser(network, batch), levels, noise)

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
