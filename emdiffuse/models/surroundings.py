"""Estimate a pixel from its surroundings: the plain estimate of models that learned from hidden pixels.

Conventions
-----------
* A *blind spot* is a cross: a pixel, and the `reach` pixels on each side along y and x with which its noise
  is correlated. (0, 0) is a single pixel.
* The plain estimate of a pixel must not contain the pixel itself, whose noise would pass into the output. So
  it is the Gaussian-weighted mean of pixels outside the blind spot.

Sources: Krull et al. 2019 (Noise2Void, arXiv 1811.10980); Batson and Royer 2019 (Noise2Self, arXiv
1901.11365); Broaddus et al. 2020 (structured blind spots, doi 10.1109/ISBI45749.2020.9098336).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

Reach = tuple[int, int]

SIGMA = 1.2
"""Standard deviation of the Gaussian weights of the surroundings, in pixels."""
RADIUS = 4
"""Half width of the window, in pixels."""


def cross(reach: Reach, radius: int) -> Tensor:
    """Return the blind spot in a window (2 radius + 1, 2 radius + 1), bool."""
    y, x = torch.meshgrid(*(torch.arange(-radius, radius + 1),) * 2, indexing="ij")
    return ((x == 0) & (y.abs() <= reach[0])) | ((y == 0) & (x.abs() <= reach[1]))


@functools.cache
def _kernel(reach: Reach, device: torch.device, dtype: torch.dtype) -> Tensor:
    place = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    line = torch.exp(-0.5 * (place / SIGMA) ** 2)
    weights = torch.outer(line, line).masked_fill(cross(reach, RADIUS), 0.0)
    return (weights / weights.sum())[None, None].to(device, dtype)


def surroundings(images: Tensor, reach: Reach) -> Tensor:
    """Estimate every pixel from its surroundings.

    Parameters
    ----------
    images : Tensor
        (N, 1, H, W).
    reach : tuple of int
        Extent of the blind spot along y and x, in pixels.

    Returns
    -------
    Tensor
        (N, 1, H, W): weighted means outside the blind spot, restricted to the image at the edges.
    """
    kernel = _kernel(reach, images.device, images.dtype)
    weights = F.conv2d(torch.ones_like(images[:1]), kernel, padding=RADIUS)
    return F.conv2d(images, kernel, padding=RADIUS) / weights
