"""Prediction types, training targets and losses, and the conversion of networks to denoisers.

Conventions
-----------
* A network sees the variance-preserving image ``x = alpha * x0 + sigma * eps`` and its gamma, whatever it
  predicts:

  - ``epsilon``: the noise (arXiv 2006.11239); gives no estimate of x0 at gamma = 0.
  - ``flow``: ``eps - x0``, the velocity of the straight path ``(1 - t) * x0 + t * eps`` (rectified flow,
    arXiv 2209.03003). That path is the variance-preserving one, rescaled:
    ``t = sigma / (alpha + sigma)`` and ``x_flow = x / (alpha + sigma)``.

* At gamma = 0 a flow network trained with the squared error gives the posterior mean in one evaluation.
* Images are (N, C, ...), levels are tensors of shape (N,); losses are scalars in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from emdiffuse.diffusion.schedules import alpha_sigma

Prediction = Literal["epsilon", "flow"]
NetworkFunction = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]

SMALLEST_DIFFICULTY = 1e-3
"""Lower bound of the difficulty phi, which bounds the difficulty-aware loss from below."""


def as_denoiser(
    network: NetworkFunction, prediction: Prediction, clip: tuple[float, float] | None = None
) -> Denoiser:
    """Turn a network into a denoiser, so that every sampler works with every prediction.

    Parameters
    ----------
    network : callable
        ``network(x, gamma)`` with `x` (N, C, ...) and `gamma` (N,) in the dtype of `x`; the condition is
        already bound.
    prediction : {"epsilon", "flow"}
        The quantity that the network returns.
    clip : (float, float), optional
        Range to which x0 is clipped; (-1, 1) is the published behaviour.

    Returns
    -------
    callable
        ``denoise(x, gamma) -> x0_hat`` with `gamma` a float64 tensor of shape (N,).

    Raises
    ------
    ValueError
        If `prediction` is unknown; from the denoiser, if an epsilon network is evaluated at gamma = 0.
    """
    _known(prediction)

    def denoise(x: Tensor, gamma: Tensor) -> Tensor:
        if prediction == "epsilon" and not bool(gamma.all()):
            raise ValueError("a network that predicts the noise has no estimate at gamma = 0; start above it")
        output = network(x, gamma.to(x.dtype)).to(x.dtype)
        alpha, sigma = alpha_sigma(gamma, x)
        if prediction == "epsilon":
            x0 = (x - sigma * output) / alpha
        else:
            x0 = (x - sigma * output) / (alpha + sigma)
        return x0 if clip is None else x0.clamp(*clip)

    return denoise


def training_target(prediction: Prediction, x0: Tensor, eps: Tensor) -> Tensor:
    """Return the target of a network for the input ``q_sample(x0, gamma, eps)``.

    Parameters
    ----------
    prediction : {"epsilon", "flow"}
    x0, eps : Tensor, shape (N, C, ...)
        Clean images and standard normal noise.

    Returns
    -------
    Tensor, shape (N, C, ...)
    """
    _known(prediction)
    if prediction == "epsilon":
        return eps
    return eps - x0


def split_difficulty(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split the output of a network with twice the channels into its prediction and its difficulty map.

    Parameters
    ----------
    output : Tensor, shape (N, 2 C, ...)
        The first C channels are the prediction, the others the unconstrained difficulty.

    Returns
    -------
    prediction, difficulty : Tensor, shape (N, C, ...)
        The difficulty phi is a softplus above `SMALLEST_DIFFICULTY`, in float32: smooth, positive, and linear
        where the raw value is large, so that no exponential overflows.
    """
    prediction, raw = output.chunk(2, dim=1)
    return prediction, F.softplus(raw.float()) + SMALLEST_DIFFICULTY


def error_where_known(output: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over examples of the mean squared error where `wanted` (N, ...) is not NaN."""
    known, axes = ~wanted.isnan(), tuple(range(1, wanted.ndim))
    # replace NaN before the difference, because masking it afterwards leaves a NaN gradient
    errors = (output.float() - wanted.nan_to_num(0.0)).square() * known
    return (errors.sum(axes) / known.sum(axes).clamp(min=1)).mean()


def difficulty_aware(target: Tensor, output: Tensor) -> Tensor:
    """Return the difficulty-aware loss: the mean of ``|target - prediction|^2 / phi^2 + log(phi)``.

    The network predicts the difficulty of every pixel; difficult pixels have less weight. At the optimum
    phi^2 is twice the expected squared error of the pixel (Lu et al., doi 10.1038/s41467-024-49125-z).

    Parameters
    ----------
    target : Tensor, shape (N, C, ...)
        The noise, or any other target of `training_target`.
    output : Tensor, shape (N, 2 C, ...)
        See `split_difficulty`.

    Returns
    -------
    Tensor, scalar, float32
    """
    prediction, difficulty = split_difficulty(output)
    error = (target.float() - prediction.float()) / difficulty
    return torch.mean(error.square() + difficulty.log())


def _known(prediction: str) -> None:
    if prediction not in ("epsilon", "flow"):
        raise ValueError(f"a network predicts 'epsilon' or 'flow', not {prediction!r}")
