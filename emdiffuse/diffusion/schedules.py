"""Noise levels, and the Gaussian transitions between them.

Conventions
-----------
* Levels are gammas (see `emdiffuse.diffusion`) in float64, in increasing order: noisiest first. In the
  notation of Ho et al. (arXiv 2006.11239), x_T belongs to the first level and x_1 to the last.
* The level of a transition is a number, or a tensor of shape (N,) with one level per image.
* Coefficients are computed in float64 and only then cast to the dtype of the images, since ``1 - gamma`` in
  float32 has almost no digits left near gamma = 1.
* Log-SNR is ``log(gamma / (1 - gamma))``: minus infinity for pure noise.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from emdiffuse.runtime.devices import widest_float

Level = float | Tensor
Levels = NDArray[np.float64]

PURE_NOISE_STANDIN = 2e-4
"""Finite gamma that represents pure noise when levels are spaced in log-SNR (see `log_snr_levels`)."""


def linear_gammas(beta_start: float, beta_end: float, steps: int) -> Levels:
    """Return the levels of a process whose betas rise linearly from data to noise (arXiv 2006.11239).

    Parameters
    ----------
    beta_start, beta_end : float
        Variance that the first step (next to the data) and the last step add.
    steps : int
        Number of steps.

    Returns
    -------
    ndarray, shape (steps,), float64
        Gammas, increasing: the last element is ``1 - beta_start``.
    """
    betas = np.linspace(beta_start, beta_end, steps, dtype=np.float64)
    return np.array(np.cumprod(1.0 - betas)[::-1])


PUBLISHED_TRAIN = linear_gammas(1e-6, 1e-2, 2000)
"""Training levels of the published EMDiffuse networks (doi 10.1038/s41467-024-49125-z)."""


def log_snr(gamma: ArrayLike) -> Levels:
    """Return the log of the ratio of signal to noise variance; minus infinity at 0, infinity at 1."""
    gamma = np.asarray(gamma, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(gamma) - np.log1p(-gamma)


def gamma_of_log_snr(value: ArrayLike) -> Levels:
    """Return the inverse of `log_snr`."""
    value = np.asarray(value, np.float64)
    return np.exp(-np.logaddexp(0.0, -value))


def log_snr_levels(steps: int, gamma_min: float, gamma_max: float) -> Levels:
    """Return levels equally spaced in log-SNR, which is best for few evaluations (arXiv 2211.01095).

    Pure noise has no finite log-SNR. For ``gamma_min = 0`` the levels are spaced from `PURE_NOISE_STANDIN`
    instead (log-SNR -8.5, where an image contains at most 1.4 % of signal amplitude), and the first is then
    set to exactly 0.

    Parameters
    ----------
    steps : int
        Number of levels, at least 1; most samplers need one network evaluation per level.
    gamma_min, gamma_max : float
        First and last level, ``0 <= gamma_min < gamma_max < 1``: the range of the network's training.

    Returns
    -------
    ndarray, shape (steps,), float64
        Increasing gammas; the first is `gamma_min` and, with two or more steps, the last is `gamma_max`.

    Raises
    ------
    ValueError
        If `steps` is below 1, or the ends are not in order.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, not {steps}")
    start = gamma_min or PURE_NOISE_STANDIN
    if not 0.0 <= gamma_min < 1.0 or not start < gamma_max < 1.0:
        raise ValueError(f"the levels need 0 <= gamma_min < gamma_max < 1, not {gamma_min} and {gamma_max}")
    levels = gamma_of_log_snr(np.linspace(log_snr(start), log_snr(gamma_max), steps))
    levels[-1] = gamma_max
    levels[0] = gamma_min
    return levels


def per_image(value: Level, like: Tensor) -> Tensor:
    """Return `value` as a tensor (1 or N, 1, ..., 1), broadcastable over images; float64 if supported."""
    column = torch.as_tensor(value, dtype=widest_float(like.device), device=like.device)
    return column.reshape(-1, *(1,) * (like.ndim - 1))


def alpha_sigma(gamma: Level, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of data and noise at a level, broadcastable over `like`, in its dtype."""
    column = per_image(gamma, like)
    return column.sqrt().to(like.dtype), (1 - column).sqrt().to(like.dtype)


def q_sample(x0: Tensor, gamma: Level, eps: Tensor) -> Tensor:
    """Draw from q(x_t | x_0), the noisy image at a level.

    Parameters
    ----------
    x0 : Tensor, shape (N, ...)
        Clean images.
    gamma : float or Tensor of shape (N,)
        Level of x_t.
    eps : Tensor, shape (N, ...)
        Standard normal noise.

    Returns
    -------
    Tensor, shape (N, ...)
        ``alpha * x0 + sigma * eps``.
    """
    alpha, sigma = alpha_sigma(gamma, x0)
    return alpha * x0 + sigma * eps


def posterior(x: Tensor, x0: Tensor, gamma: Level, gamma_prev: Level) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(x_{t-1} | x_t, x_0); with a predicted x_0 this is the reverse step.

    Parameters
    ----------
    x : Tensor, shape (N, ...)
        Images x_t.
    x0 : Tensor, shape (N, ...)
        Clean images, or a denoiser's estimate of them.
    gamma, gamma_prev : float or Tensor of shape (N,)
        Levels of x_t and of x_{t-1}, ``gamma <= gamma_prev`` and ``gamma < 1``; ``gamma = 0`` and
        ``gamma_prev = 1`` are exact.

    Returns
    -------
    mean : Tensor, shape (N, ...)
    variance : Tensor, shape (1 or N, 1, ...)
        The smaller of the two variances of arXiv 2006.11239 (section 3.2), which the published process uses.
    """
    level, previous = per_image(gamma, x), per_image(gamma_prev, x)
    kept = level / previous
    of_x0 = (1 - kept) * previous.sqrt() / (1 - level)
    of_x = (1 - previous) * kept.sqrt() / (1 - level)
    variance = (1 - kept) * (1 - previous) / (1 - level)
    return of_x0.to(x.dtype) * x0 + of_x.to(x.dtype) * x, variance.to(x.dtype)
