"""A trained model, ready to fill gaps: the network, its description, and how samples are drawn and averaged.

Conventions
-----------
* Images are scaled to [-1, 1]; what is sampled is the residual to linear interpolation, in units of the
  network's `residual_scale`. Levels are gammas, from 0 (pure noise) up; see `emdiffuse.diffusion`.
* Noise is white in the plane and, along z, correlated as exp(-|dt| / correlation) with dt the difference of
  positions in the gap, in training and in sampling alike; a correlation of 0 is white noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from emdiffuse.config import Sampler
from emdiffuse.diffusion.objectives import Denoiser, as_denoiser
from emdiffuse.diffusion.samplers import SAMPLERS, ddpm
from emdiffuse.diffusion.schedules import log_snr_levels
from emdiffuse.networks import load_network
from emdiffuse.networks.gap import GapNetwork, linear_interpolation
from emdiffuse.networks.weights import ModelError, load_description

GAMMA_LAST = 0.98
"""Highest level at which the network is called: what noise is left there is below that of the data."""

WhiteNoise = Callable[[int, int], Tensor]


def estimator(sampler: Sampler) -> str:
    """Say in words what the restored volume is."""
    if sampler.steps == 1:
        return "posterior mean in one call"
    what = f"mean of {sampler.samples} samples" if sampler.samples > 1 else "one sample"
    return f"{what} of {sampler.steps} calls ({sampler.name})"


def correlate(white: Tensor, positions: Tensor, correlation: float) -> Tensor:
    """Correlate white noise along the slices of gaps.

    Parameters
    ----------
    white : Tensor
        (N, D, H, W), standard normal.
    positions : Tensor
        (N, D), positions in the gap; NaN where a slice is absent.
    correlation : float
        Length of the correlation, in gaps.

    Returns
    -------
    Tensor
        (N, D, H, W); every voxel is standard normal.
    """
    if correlation == 0:
        return white
    t = positions.double().nan_to_num(1e6)
    distance = (t[:, :, None] - t[:, None, :]).abs() / correlation
    jitter = 1e-9 * torch.eye(t.shape[1], dtype=torch.float64, device=t.device)
    factor = torch.linalg.cholesky(torch.exp(-distance) + jitter)
    return torch.einsum("nde,nehw->ndhw", factor.to(white.dtype), white)


def gap_denoiser(network: GapNetwork, condition: Tensor, positions: Tensor, factor: Tensor) -> Denoiser:
    """Bind a network to its condition, as a denoiser of the residual.

    At pure noise the noisy residual is not shown, so that the answer is the posterior mean.
    """

    def call(x: Tensor, gamma: Tensor) -> Tensor:
        out: Tensor = network(x, gamma.to(x.dtype), condition, positions, factor)
        return out

    flow = as_denoiser(call, "flow")

    def denoise(x: Tensor, gamma: Tensor) -> Tensor:
        visible = (gamma > 0).to(x.dtype)[:, None, None, None]
        return flow(x * visible, gamma)

    return denoise


def gap_description(directory: Path) -> dict[str, Any]:
    """Return the description of a native vEM model.

    Raises
    ------
    ModelError
        If it is missing, damaged, or of another kind of network, such as a published one.
    """
    description = load_description(directory)
    kind = description["network"]["architecture"]
    if kind != "gap":
        raise ModelError(f"{directory}: '{kind}' cannot fill gaps; train a model of the task vemdiffuse-i")
    return description


@dataclass(frozen=True)
class GapModel:
    """A trained vEM model.

    Attributes
    ----------
    network : GapNetwork
        Its moving-average weights, in eval mode.
    correlation : float
        Correlation length of its noise along z, in gaps.
    factor : int
        Anisotropy factor that it was trained for.
    device : torch.device
        Where it runs.
    """

    network: GapNetwork
    correlation: float
    factor: int
    device: torch.device

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> GapModel:
        """Open a model that training wrote.

        Raises
        ------
        ModelError
            If its files are missing, damaged, or of another kind.
        """
        description = gap_description(directory)
        network = cast(GapNetwork, load_network(directory, device))
        noise = description["noise"]
        return cls(network, float(noise["correlation"]), int(description["factor"]), torch.device(device))

    @torch.inference_mode()
    def restore(
        self, condition: Tensor, positions: Tensor, factor: float, sampler: Sampler, white: WhiteNoise
    ) -> tuple[Tensor, Tensor]:
        """Fill gaps.

        Parameters
        ----------
        condition : Tensor
            (N, 4, H, W), float32 in [-1, 1]: the real slices at `tasks.CONDITION_OFFSETS`; H and W multiples
            of the network's stride.
        positions : Tensor
            (N, D), float32, positions of the slices in their gap.
        factor : float
            Anisotropy factor.
        sampler : Sampler
            Which sampler, how many calls and samples.
        white : callable
            ``white(sample, step)``: standard normal noise (N, D, H, W), different for each sample and step.

        Returns
        -------
        tuple of Tensor
            Mean and standard deviation over the samples, (N, D, H, W), float32 in units of [-1, 1]; the
            standard deviation of one sample is 0.
        """
        factors = torch.full((len(condition),), factor, device=condition.device)
        denoise = gap_denoiser(self.network, condition, positions, factors)
        base = linear_interpolation(condition, positions)
        if sampler.steps == 1:
            residual = denoise(torch.zeros_like(base), torch.zeros(len(condition), device=base.device))
            return base + self.network.residual_scale * residual, torch.zeros_like(base)
        levels = log_snr_levels(sampler.steps, 0.0, GAMMA_LAST)
        mean, squares = torch.zeros_like(base), torch.zeros_like(base)
        for sample in range(sampler.samples):
            residual = self._sample(denoise, positions, levels, sampler, white, sample)
            delta = residual - mean
            mean = mean + delta / (sample + 1)
            squares = squares + delta * (residual - mean)
        deviation = (squares / max(sampler.samples - 1, 1)).sqrt()
        return base + self.network.residual_scale * mean, self.network.residual_scale * deviation

    def _sample(
        self,
        denoise: Denoiser,
        positions: Tensor,
        levels: np.ndarray[Any, np.dtype[np.float64]],
        sampler: Sampler,
        white: WhiteNoise,
        sample: int,
    ) -> Tensor:
        """Draw one sample of the residual."""

        def noise(step: int) -> Tensor:
            return correlate(white(sample, step), positions, self.correlation)

        if sampler.name == "ddpm":
            return ddpm(denoise, noise(0), levels, noise)
        return SAMPLERS[sampler.name](denoise, noise(0), levels)
