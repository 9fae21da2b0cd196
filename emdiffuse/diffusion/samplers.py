"""Samplers: each goes from noise to data through given levels, with any denoiser.

Conventions
-----------
* ``sampler(denoise, x, gammas)``: `denoise` as in `emdiffuse.diffusion`, `x` of shape (N, C, ...) drawn at
  the first level (standard normal where that is pure noise), `gammas` float64 levels in [0, 1) that increase.
* The result is the denoiser's x0 at the last level, which equals an exact step from there to gamma = 1. So n
  levels take n network evaluations (Heun: 2 n - 1), and with one level every sampler returns
  ``denoise(x, gammas[0])``.
* Coefficients are Python floats computed in float64. Formulas are exact for gamma = 0 at the first level:
  they contain no logarithm or quotient of alpha there.
* `x` is never modified, and no random numbers are drawn: noise is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emdiffuse.diffusion.objectives import Denoiser
from emdiffuse.diffusion.schedules import log_snr, posterior
from emdiffuse.runtime.devices import widest_float

Gammas = Sequence[float] | NDArray[np.float64]


def ddpm(denoise: Denoiser, x: Tensor, gammas: Gammas, noise: Callable[[int], Tensor]) -> Tensor:
    """Sample by ancestral sampling, the published process (Ho et al., arXiv 2006.11239).

    Parameters
    ----------
    denoise, x, gammas
        See the module.
    noise : callable
        ``noise(step)`` is standard normal noise of the shape of `x`, added on the way to ``gammas[step]``,
        step = 1 ... n - 1; step 0 is `x` itself.

    Returns
    -------
    Tensor, shape of `x`
    """
    levels = _checked(gammas)
    for step in range(1, len(levels)):
        level, following = levels[step - 1], levels[step]
        mean, variance = posterior(x, denoise(x, _batch(level, x)), level, following)
        x = mean + variance.sqrt() * noise(step)
    return denoise(x, _batch(levels[-1], x))


def ddim(denoise: Denoiser, x: Tensor, gammas: Gammas) -> Tensor:
    """Sample by deterministic first-order DDIM (Song et al., arXiv 2010.02502, eta = 0).

    Parameters
    ----------
    denoise, x, gammas
        See the module.

    Returns
    -------
    Tensor, shape of `x`
    """
    levels = _checked(gammas)
    for level, following in pairwise(levels):
        x0 = denoise(x, _batch(level, x))
        x = _towards(x, x0, level, following)
    return denoise(x, _batch(levels[-1], x))


def dpm_solver_pp_2m(denoise: Denoiser, x: Tensor, gammas: Gammas) -> Tensor:
    """Sample by second-order DPM-Solver++(2M), one evaluation per level (arXiv 2211.01095, algorithm 2).

    The first step is of first order, and so is the second if the first level is pure noise, because
    extrapolation in log-SNR from pure noise is impossible.

    Parameters
    ----------
    denoise, x, gammas
        See the module.

    Returns
    -------
    Tensor, shape of `x`
    """
    return _multistep(denoise, x, gammas, corrected=False)


def unipc(denoise: Denoiser, x: Tensor, gammas: Gammas) -> Tensor:
    """Sample by UniPC: DPM-Solver++(2M), correcting each step by the x0 at its end (arXiv 2302.04867).

    The predictor is UniP-2 and the corrector UniC-1, both with B(h) = exp(h) - 1: a step is repeated with the
    mean of the x0 at its two ends. This needs no further evaluation, since the x0 of the predicted end is
    kept. The corrector also applies to the first steps from pure noise, where the predictor is only of first
    order and the coarse structure is decided (Zhao et al. 2023).

    Parameters
    ----------
    denoise, x, gammas
        See the module.

    Returns
    -------
    Tensor, shape of `x`
    """
    return _multistep(denoise, x, gammas, corrected=True)


def heun(denoise: Denoiser, x: Tensor, gammas: Gammas) -> Tensor:
    """Sample by Heun's second-order method, two evaluations per step (Karras et al., arXiv 2206.00364).

    It integrates the straight path of rectified flow, on which the probability-flow equation is
    ``dx/dt = (x - x0) / t`` and pure noise is the finite time t = 1 (arXiv 2209.03003).

    Parameters
    ----------
    denoise, x, gammas
        See the module.

    Returns
    -------
    Tensor, shape of `x`
    """
    levels = _checked(gammas)
    for level, following in pairwise(levels):
        scale, time = _straight_path(level)
        next_scale, next_time = _straight_path(following)
        start = x / scale
        velocity = (start - denoise(x, _batch(level, x))) / time
        end = start + (next_time - time) * velocity
        velocity_end = (end - denoise(end * next_scale, _batch(following, x))) / next_time
        x = next_scale * (start + 0.5 * (next_time - time) * (velocity + velocity_end))
    return denoise(x, _batch(levels[-1], x))


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm++": dpm_solver_pp_2m,
    "unipc": unipc,
    "heun": heun,
}
"""Samplers by their names in the configuration; only ``ddpm`` takes `noise`."""


def _towards(x: Tensor, x0: Tensor, level: float, following: float) -> Tensor:
    """Step from one level to the next along the straight line in sigma and alpha for a fixed x0."""
    shrink = math.sqrt((1.0 - following) / (1.0 - level))
    return shrink * x + (math.sqrt(following) - shrink * math.sqrt(level)) * x0


def _multistep(denoise: Denoiser, x: Tensor, gammas: Gammas, corrected: bool) -> Tensor:
    """Step with x0 extrapolated linearly in log-SNR to the middle of each step, optionally corrected."""
    levels = _checked(gammas)
    distances = np.diff(0.5 * log_snr(levels)).tolist()
    before, x0 = None, denoise(x, _batch(levels[0], x))
    for step, (level, following) in enumerate(pairwise(levels)):
        ahead = x0 if before is None else x0 + 0.5 * distances[step] / distances[step - 1] * (x0 - before)
        predicted = _towards(x, ahead, level, following)
        before, x0 = x0, denoise(predicted, _batch(following, x))
        x = _towards(x, 0.5 * (before + x0), level, following) if corrected else predicted
    return x0


def _straight_path(level: float) -> tuple[float, float]:
    """Return the ratio of the variance-preserving scale to that of rectified flow, and its time."""
    alpha, sigma = math.sqrt(level), math.sqrt(1.0 - level)
    return alpha + sigma, sigma / (alpha + sigma)


def _batch(level: float, x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), level, dtype=widest_float(x.device), device=x.device)


def _checked(gammas: Gammas) -> list[float]:
    levels = np.asarray(gammas, np.float64)
    if (
        levels.ndim != 1
        or not levels.size
        or levels[0] < 0
        or levels[-1] >= 1
        or not (np.diff(levels) > 0).all()
    ):
        raise ValueError("a sampler needs levels in [0, 1) that increase from noise to data")
    return levels.tolist()
