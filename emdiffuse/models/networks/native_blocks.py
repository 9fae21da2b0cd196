"""Layers of the native network: residual blocks, head, and space-to-depth.

Conventions
-----------
* The layout is channels last, which is fastest for convolutions and norms. Without autograd, activations are
  overwritten.
* Normalisation is local: over the channels of a pixel (Ba et al. 2016, arXiv 1607.06450).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emdiffuse.models.networks.blocks import silu


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y; overwrite `x` if autograd does not need it."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def rows(x: Tensor, numbers: Tensor) -> Tensor:
    """Return ``x[numbers]`` in channels-last layout; plain indexing would copy channel by channel."""
    return x.permute(0, 2, 3, 1)[numbers].permute(0, 3, 1, 2)


def space_to_depth(x: Tensor) -> Tensor:
    """Turn 2 x 2 pixels into channels: (N, C, H, W) to (N, 4 C, H / 2, W / 2), channels last."""
    return F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)


def depth_to_space(x: Tensor) -> Tensor:
    """Undo `space_to_depth`; faster from channels last than `F.pixel_shuffle`."""
    count, channels, height, width = x.shape
    split = x.unflatten(1, (channels // 4, 2, 2)).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(count, channels // 4, 2 * height, 2 * width)


class PixelNorm(nn.Module):
    """Normalisation over the channels of each pixel, with a learned scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``norm(x)``, or ``norm(x) * (1 + scale) + shift``.

        Parameters
        ----------
        x : Tensor
            (N, C, H, W).
        modulation : (Tensor, Tensor), optional
            Scale and shift, each (N, C, 1, 1).

        Returns
        -------
        Tensor
            (N, C, H, W); the norm has unit mean square over the channels, before the learned scale.
        """
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        h = x * torch.rsqrt(length.square() / x.shape[1] + 1e-6)
        weight, out = self.weight[:, None, None], None if torch.is_grad_enabled() else h
        if modulation is None:
            return torch.mul(h, weight, out=out)
        scale, shift = modulation
        return torch.addcmul(shift, h, weight * (1 + scale), out=out)


class NativeBlock(nn.Module):
    """Two 3 x 3 convolutions around a scale and shift from the embedding."""

    def __init__(self, channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = PixelNorm(channels), PixelNorm(out_channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x (N, C, H, W) to (N, C', H, W)."""
        h = self.conv1(silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(silu(self.norm2(h, (scale, shift))))
        return add(h, self.skip(x))


class Head(nn.Module):
    """Head that derives slices from the trunk's features: a convolution, scaled and shifted by position."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.affine = nn.Linear(embedding, 2 * channels)
        self.own = nn.Conv2d(4, channels, 3, padding=1, bias=False)
        self.exit = nn.Conv2d(channels, 4, 1)
        for parameter in self.exit.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, noisy: Tensor, embedding: Tensor, gaps: Tensor) -> Tensor:
        """Return slices with 2 x 2 pixels as channels.

        Parameters
        ----------
        features : Tensor
            (N, C, H, W), features of N gaps.
        noisy : Tensor
            (P, 4, H, W), the noisy slices; zeros if not shown.
        embedding : Tensor
            (P, E), embedding of level and position of each slice.
        gaps : Tensor
            (P,), the gap of each slice.

        Returns
        -------
        Tensor
            (P, 4, H, W).
        """
        h = rows(self.norm(features), gaps)
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale, out=None if torch.is_grad_enabled() else h)
        h = add(h, self.own(noisy))
        out: Tensor = self.exit(silu(h))
        return out
