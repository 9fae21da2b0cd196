"""Parts of the U-Net: embedding, normalisation, residual and attention blocks, in 2-D and 3-D.

Conventions
-----------
* Images are (N, C, H, W), or (N, C, D, H, W) if a gap of D slices is restored jointly. Upsampling and
  downsampling act only in the plane, so the number of slices does not change.
* Names of submodules are those of the published state dict (guided diffusion, arXiv 2105.05233): the numbers
  in ``in_layers.2`` are positions in an `nn.Sequential`, some of which have no weights.
* Without autograd, activations are overwritten, and the scale and shift of one image are folded into the
  group norm. With autograd, equivalent operations keep what the backward pass needs.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resampling = Literal["none", "down", "up"]
Layer = TypeVar("Layer", bound=nn.Module)


def convolution(dims: int, in_channels: int, out_channels: int, size: int) -> nn.Conv2d | nn.Conv3d:
    """Return a convolution of the given number of dimensions that keeps the image size."""
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(in_channels, out_channels, size, padding=size // 2)


def zeroed(layer: Layer) -> Layer:
    """Set the weights of a layer to zero, so that a new residual branch adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoidal_embedding(value: Tensor, channels: int) -> Tensor:
    """Return cosines, then sines, of a value times decreasing frequencies (arXiv 1706.03762).

    Parameters
    ----------
    value : Tensor, shape (N,)
        A gamma in [0, 1], not scaled, or the index of a slice.
    channels : int
        Even number of channels.

    Returns
    -------
    Tensor, shape (N, channels), float32
        Frequencies are ``exp(-ln(10000) * i / (channels / 2))``.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=value.device) * (-math.log(10000.0) / half))
    angles = value.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def silu(x: Tensor) -> Tensor:
    """Apply the sigmoid linear unit; overwrite `x` if autograd does not need it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class GroupNorm(nn.GroupNorm):
    """Group norm in float32, whatever the dtype of the input, optionally followed by a scale and a shift.

    On a CPU without autograd the moments are computed here, followed by one multiplication and addition per
    pixel: PyTorch's kernel for channels last sums sequentially in float32, and is off by 6e-6 at 256 x 256.
    """

    def forward(self, x: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``norm(x)``, or ``norm(x) * (1 + scale) + shift``.

        Parameters
        ----------
        x : Tensor, shape (N, C, ...)
        modulation : (Tensor, Tensor), optional
            Scale and shift, each of shape (N, C).

        Returns
        -------
        Tensor, shape (N, C, ...), dtype of `x`
        """
        ones = (1,) * (x.ndim - 2)
        if torch.is_grad_enabled() or x.device.type != "cpu":
            h = F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)
            if modulation is None:
                return h
            scale, shift = (factor.unflatten(1, (-1, *ones)).to(h.dtype) for factor in modulation)
            return torch.addcmul(shift, h, 1 + scale)
        h = x.float()
        mean = self._pooled(h).unflatten(1, (-1, *ones))
        squares = F.mse_loss(h, mean.expand_as(h), reduction="none")
        weight = self.weight * torch.rsqrt(self._pooled(squares) + self.eps)
        bias = self.bias - weight * mean.flatten(1)
        if modulation is not None:
            weight, bias = weight * (1 + modulation[0]), bias * (1 + modulation[0]) + modulation[1]
        weight, bias = weight.unflatten(1, (-1, *ones)), bias.unflatten(1, (-1, *ones))
        return torch.addcmul(bias, h, weight, out=squares).to(x.dtype)

    def _pooled(self, x: Tensor) -> Tensor:
        """Return the mean over the group of each channel, (N, C)."""
        channels = x.mean(tuple(range(2, x.ndim))).unflatten(1, (self.num_groups, -1))
        return channels.mean(2, keepdim=True).expand_as(channels).flatten(1)


class ResidualBlock(nn.Module):
    """Residual block scaled and shifted by the embedding, with optional resampling by 2 in the plane.

    Parameters
    ----------
    dims : int
        2 or 3.
    in_channels, out_channels : int
        Channels.
    embedding_channels : int
        Width of the embedding.
    groups : int
        Groups of the norms.
    dropout : float
        Probability of dropout before the last convolution.
    resampling : {"none", "down", "up"}
        Mean of 2x2 pixels, or repetition, between the activation and the convolution.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        groups: int,
        dropout: float = 0.0,
        resampling: Resampling = "none",
    ) -> None:
        super().__init__()
        self.resampling = resampling
        self.in_layers = nn.Sequential(
            GroupNorm(groups, in_channels), nn.SiLU(), convolution(dims, in_channels, out_channels, 3)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(convolution(dims, out_channels, out_channels, 3)),
        )
        self.skip_connection = (
            nn.Identity() if in_channels == out_channels else convolution(dims, in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, ..., H, W)
        embedding : Tensor, shape (N, embedding_channels)

        Returns
        -------
        Tensor, shape (N, out_channels, ..., H', W')
        """
        norm, _, convolve = self.in_layers
        h = silu(norm(x))
        if self.resampling == "down":
            h, x = convolve(halve(h)), halve(x)
        elif self.resampling == "up":
            h, x = upsampled_convolution(h, convolve), double(x)
        else:
            h = convolve(h)
        norm, _, dropout, convolve = self.out_layers
        modulation = self.emb_layers(embedding).chunk(2, dim=1)
        h = convolve(dropout(silu(norm(h, modulation))))
        x = self.skip_connection(x)
        return x + h if torch.is_grad_enabled() else h.add_(x)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels (and slices), with a residual connection.

    Parameters
    ----------
    channels : int
        Channels.
    head_channels : int
        Channels per head.
    groups : int
        Groups of the norm.
    """

    def __init__(self, channels: int, head_channels: int, groups: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to an image (N, C, ...); heads are split before queries, keys and values."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = F.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        query, key, value = qkv.unflatten(2, (self.heads, -1)).transpose(1, 2).chunk(3, dim=3)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        attended = F.linear(attended, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + attended.transpose(1, 2).reshape(x.shape)


def halve(x: Tensor) -> Tensor:
    """Average 2x2 pixels of (N, C, H, W) or (N, C, D, H, W)."""
    return F.avg_pool2d(x, 2) if x.ndim == 4 else F.avg_pool3d(x, (1, 2, 2))


def double(x: Tensor) -> Tensor:
    """Repeat every pixel 2x2 times in (N, C, H, W) or (N, C, D, H, W)."""
    return F.interpolate(x, scale_factor=(1.0,) * (x.ndim - 4) + (2.0, 2.0), mode="nearest")


def upsampled_convolution(x: Tensor, convolve: nn.Module) -> Tensor:
    """Return ``convolve(double(x))`` for a 2-D kernel of 3x3, with 4/9 of the multiplications.

    The repetition and the kernel together are one transposed convolution of stride 2, whose kernel of 4x4 is
    the sum of the four copies of the 3x3 kernel shifted by 0 or 1 along either axis.

    Parameters
    ----------
    x : Tensor, shape (N, C, ..., H, W)
    convolve : Conv2d or Conv3d
        Convolution with a kernel of 3 that keeps the size; in 3-D it is applied directly.

    Returns
    -------
    Tensor, shape (N, C', ..., 2 H, 2 W)
    """
    if not isinstance(convolve, nn.Conv2d):
        return convolve(double(x))
    flipped = convolve.weight.flip(2, 3).transpose(0, 1)
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    kernel = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
    return F.conv_transpose2d(x, kernel, convolve.bias, stride=2, padding=1)
