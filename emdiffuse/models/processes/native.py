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
"""Highest level at which a native network is evaluated; the remaining noise is below that of the data."""

GAMMA_SHARP = 0.99
"""Highest starting level of a flow from the mean, so that steps remain."""

FLOOR = 0.1
"""Power of the flow, in units of the residual's variance, below which examples have less weight."""


@dataclass(frozen=True)
class NativeProcess:
    """Rectified flow of the residual to a plain estimate (Liu et al. 2022, arXiv 2209.03003).

    Attributes
    ----------
    scale : float
        Standard deviation of the residual.
    mean_share : float
        Fraction of a training batch at pure noise, where the network learns the posterior mean.
    blind_spot : tuple of int, optional
        For a network that learns from hidden pixels: extent of the blind spot along y and x.
    """

    scale: float
    mean_share: float = 0.5
    blind_spot: Reach | None = None

    def example(self, batch: Batch, target: Tensor, draws: Draws) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Process`; the target is the flow ``eps - x0``, at pure noise minus the posterior mean.

        Parameters
        ----------
        batch : Batch
            Condition of the network.
        target : Tensor
            (N, D, H, W), in [-1, 1]; NaN in absent slices, and where pixels were not hidden.
        draws : Draws
            Random numbers for levels and noise.

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
        """Return the squared error, averaged over the present slices of each gap, then over the batch.

        The error of each example is divided by that of predicting zero, so that tissues and factors with
        small changes between slices are learned as well as others; `FLOOR` prevents empty examples from
        dominating. If pixels were hidden, only these count.
        """
        if self.blind_spot is not None:  # equal weights: the power of few noisy pixels is itself noise
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
        """Return the plain estimate to which the residual is added, (N, D, H, W)."""
        return plain_estimate(batch.condition, batch.positions, self.blind_spot)

    def sharpen(
        self, network: nn.Module, batch: Batch, sampler: Sampler, mean: Tensor, white: White
    ) -> Tensor:
        """Sharpen the posterior mean: add noise of the level `sampler.sharpen` (0 to 1), and follow the flow.

        The closer to 1, the more noise becomes texture; at 1 the mean is forgotten, and the result is a
        sample. At equal PSNR the result is sharper than a weighted mean of mean and sample. After Ohayon et
        al. 2024 (arXiv 2410.00418), who train a separate flow; here the sampling flow is used.

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
        """Bind a network to its condition, and return a denoiser of the residual in units of `scale`."""

        def call(x: Tensor, gamma: Tensor) -> Tensor:  # for a compiled network
            out: Tensor = network(x, gamma, *batch)
            return out

        flow = as_denoiser(network.bind(*batch) if isinstance(network, NativeNetwork) else call, "flow")

        def denoise(x: Tensor, gamma: Tensor) -> Tensor:
            visible = (gamma > 0).to(x.dtype)[:, None, None, None]
            return flow(x * visible, gamma)

        return denoise
