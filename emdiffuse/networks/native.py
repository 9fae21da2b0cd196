"""The native network: images from images, and all slices of a gap at once for any anisotropy factor.

Conventions
-----------
* Images are scaled to [-1, 1]. What is diffused is the *residual* to a plain estimate, in units of
  `residual_scale`, so that its variance is near one. The plain estimate of a slice in a gap is the linear
  interpolation of the two real slices around it; that of an image is the input itself (upsampled, for
  super-resolution).
* A slice is known by its position in the gap (0 at the real slice before it, 1 at the one after it), never by
  a channel: slices are spread over `SLOTS` fixed slots along z with the weights of linear interpolation, the
  network works on the slots, and its output is interpolated back. Factors 2, 3, 4, 6 and 12 meet slots
  exactly. An image is a gap of one slice in one slot, at position 1/2.
* At pure noise (gamma = 0) the noisy slices say nothing and are not shown: the network's answer there is a
  function of the condition alone, the posterior mean.
* All that the entry sees is shown again to the last block: at low noise the answer is made of its finest
  detail, which would not pass through the few channels of the entry.
* No convolution runs at full resolution: 2 x 2 pixels become channels at the entry (space to depth).
* Normalisation is local: over the channels of a pixel (Ba et al. 2016, arXiv 1607.06450), and there is no
  global attention. So a tile with enough halo gives what the whole image would give.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emdiffuse.tasks import CONDITION_OFFSETS

SLOTS = 11


def slot_weights(positions: Tensor, count: int = SLOTS) -> Tensor:
    """Return how slices at given positions are spread over the slots.

    Parameters
    ----------
    positions : Tensor
        (N, D), in (0, 1); NaN marks a slice that is absent.
    count : int
        Number of slots.

    Returns
    -------
    Tensor
        (N, D, count): linear interpolation between the slots, which for 11 lie at 1/12, 2/12, ..., 11/12;
        zeros for absent slices.
    """
    slots = torch.arange(1, count + 1, device=positions.device, dtype=positions.dtype)
    nearest = (positions * (count + 1)).clamp(1, count)
    return (1 - (nearest.unsqueeze(-1) - slots).abs()).clamp(min=0).nan_to_num(0.0)


def linear_interpolation(condition: Tensor, positions: Tensor) -> Tensor:
    """Interpolate between the two real slices around a gap.

    Parameters
    ----------
    condition : Tensor
        (N, 4, H, W): the real slices at `tasks.CONDITION_OFFSETS`.
    positions : Tensor
        (N, D); NaN gives the slice before the gap.

    Returns
    -------
    Tensor
        (N, D, H, W).
    """
    before, after = condition[:, 1:2], condition[:, 2:3]
    t = positions.nan_to_num(0.0)[:, :, None, None]
    return before + t * (after - before)


class PixelNorm(nn.Module):
    """Normalisation over the channels of each pixel, with a learned scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W) to unit mean square over C."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.weight[:, None, None]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a scale and a shift given by the embedding."""

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
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(h)


def plain_estimate(condition: Tensor, positions: Tensor) -> Tensor:
    """Return what the residual is added to: interpolated slices, or the input image.

    Parameters
    ----------
    condition : Tensor
        (N, 4, H, W), the real slices around a gap, or (N, 1, H, W), an image.
    positions : Tensor
        (N, D), positions in the gap; of an image only the shape (N, 1) matters.

    Returns
    -------
    Tensor
        (N, D, H, W).
    """
    if condition.shape[1] == 1:
        return condition
    return linear_interpolation(condition, positions)


class NativeNetwork(nn.Module):
    """U-Net over the slots of a gap, or over an image, at half resolution.

    Parameters
    ----------
    conditions : int
        Images that condition it: 4 real slices around a gap, or 1.
    slots : int
        Slots along z: `SLOTS` for gaps, 1 for images.
    channels : int
        Channels at half resolution.
    multipliers : sequence of int
        Channels of each level, times `channels`; each level halves the resolution.
    blocks : int
        Residual blocks a level.
    residual_scale : float
        Standard deviation of the residual to the plain estimate in the training data.
    checkpointing : bool
        Whether the blocks' activations are computed again in the backward pass instead of kept (arXiv
        1604.06174).
    """

    def __init__(
        self,
        conditions: int = len(CONDITION_OFFSETS),
        slots: int = SLOTS,
        channels: int = 32,
        multipliers: tuple[int, ...] | list[int] = (1, 2, 4),
        blocks: int = 2,
        residual_scale: float = 1.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.slots = slots
        self.residual_scale = residual_scale
        self.stride = 2 ** len(multipliers)
        width = 4 * channels
        self.frequencies = 16
        self.embed = nn.Sequential(
            nn.Linear(4 * self.frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        widths = [channels * m for m in multipliers]
        seen = 4 * (conditions + (1 if conditions > 1 else 0) + slots)
        self.entry = nn.Conv2d(seen, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        current = widths[0]
        for level, w in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(current, w, 2, stride=2))
                current = w
            self.down.extend(ResidualBlock(current, w, width) for _ in range(blocks))
        for level, w in reversed(list(enumerate(widths))):
            for i in range(blocks):
                self.up.append(
                    ResidualBlock(current + (w if i == 0 and level < len(widths) - 1 else 0), w, width)
                )
                current = w
            if level:
                self.up.append(nn.ConvTranspose2d(current, widths[level - 1], 2, stride=2))
                current = widths[level - 1]
        last = 3 * channels // 2
        self.last = ResidualBlock(current + seen, last, width)
        self.norm = PixelNorm(last)
        self.exit = nn.Conv2d(last, 4 * slots, 3, padding=1)
        for parameter in self.exit.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, gamma: Tensor, condition: Tensor, positions: Tensor, factor: Tensor
    ) -> Tensor:
        """Predict the flow of the noisy residual.

        Parameters
        ----------
        x : Tensor
            (N, D, H, W), the noisy residual at a gap's slices, sqrt(gamma) x0 + sqrt(1 - gamma) eps.
        gamma : Tensor
            (N,), the signal's share of the variance, 0 (pure noise) to 1.
        condition : Tensor
            (N, conditions, H, W), the real slices or the image, in [-1, 1].
        positions : Tensor
            (N, D), positions in the gap; NaN where a slice is absent.
        factor : Tensor
            (N,), anisotropy factor; 1 for images.

        Returns
        -------
        Tensor
            (N, D, H, W): eps - x0 (Liu et al. 2022, arXiv 2209.03003); at gamma = 0 it is minus the posterior
            mean.
        """
        visible = (gamma > 0).to(x.dtype)[:, None, None, None]
        weights = slot_weights(positions, self.slots)
        shown = [condition, torch.einsum("ndm,ndhw->nmhw", weights, x * visible)]
        if condition.shape[1] > 1:
            shown.insert(1, (condition[:, 2:3] - condition[:, 1:2]) / self.residual_scale)
        seen = F.pixel_unshuffle(torch.cat(shown, 1), 2)
        h = self.entry(seen)
        embedding = self.embed(self._features(gamma, factor))
        skips = []
        for module in self.down:
            if isinstance(module, ResidualBlock):
                h = self._block(module, h, embedding)
            else:
                skips.append(h)
                h = module(h)
        for module in self.up:
            if isinstance(module, ResidualBlock):
                h = self._block(module, h, embedding)
            else:
                h = torch.cat([module(h), skips.pop()], 1)
        h = self._block(self.last, torch.cat([h, seen], 1), embedding)
        out = F.pixel_shuffle(self.exit(F.silu(self.norm(h))), 2)
        return torch.einsum("ndm,nmhw->ndhw", weights, out)

    def _block(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, h, embedding, use_reentrant=False)
        else:
            out = block(h, embedding)
        return out

    def _features(self, gamma: Tensor, factor: Tensor) -> Tensor:
        """Embed the time of the flow and the factor by sines and cosines."""
        alpha, sigma = gamma.sqrt(), (1 - gamma).clamp(min=0).sqrt()
        time = sigma / (alpha + sigma)
        rates = torch.exp(
            torch.arange(self.frequencies, device=gamma.device) * (math.log(100) / self.frequencies)
        )
        angles = torch.stack([time * math.pi, factor.log2()], 1)[:, :, None] * rates
        return torch.cat([angles.cos(), angles.sin()], 1).flatten(1)
