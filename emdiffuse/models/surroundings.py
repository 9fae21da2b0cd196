"""What the pixels around a pixel tell of it: the plain estimate of models that learned from hidden pixels.

Conventions
-----------
* A *blind spot* is a cross: a pixel, and on each side of it those that its noise is correlated with, `reach`
  along y and along x. (0, 0) is a single pixel.
* The plain estimate of a pixel must not hold the pixel itself: added to a residual, the noisy pixel would
  come through. So it is the mean of those around it, weighted by a Gaussian, outside of the blind spot.

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
"""Standard deviation in pixels of the Gaussian that surroundings are weighted by."""
RADIUS = 4
"""Pixels on each side that count."""


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
    """Estimate every pixel by those around it.

    Parameters
    ----------
    images : Tensor
        (N, 1, H, W).
    reach : tuple of int
        Of the blind spot, along y and x.

    Returns
    -------
    Tensor
        (N, 1, H, W): weighted means outside of the blind spot; at the edges, of what lies in the image.
    """
    kernel = _kernel(reach, images.device, images.dtype)
    weights = F.conv2d(torch.ones_like(images[:1]), kernel, padding=RADIUS)
    return F.conv2d(images, kernel, padding=RADIUS) / weights
