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
* Slots that no slice is spread over would be channels of zeros: they are left out of the first and the last
  convolutions, by taking the other channels' weights alone. What the entry makes of the condition is made
  once for all calls of a sampler (`NativeNetwork.bind`).
* Pixels are stored with their channels side by side (channels last), which convolutions and norms are fastest
  with. Without autograd, activations are overwritten.
* Normalisation is local: over the channels of a pixel (Ba et al. 2016, arXiv 1607.06450), and there is no
  global attention. So a tile with enough halo gives what the whole image would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emdiffuse.config.tasks import CONDITION_OFFSETS
from emdiffuse.models.networks.blocks import silu

SLOTS = 11

Channels = slice | Tensor
"""Some of the channels of a tensor."""
ALL = slice(None)


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


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y; overwrites `x` where autograd does not need it."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def convolve(
    layer: nn.Conv2d, x: Tensor, inputs: Channels = ALL, outputs: Channels = ALL, bias: bool = True
) -> Tensor:
    """Apply some of a convolution: `inputs` are the channels of `x`, the others being zero."""
    weight = layer.weight[:, inputs][outputs].contiguous(memory_format=torch.channels_last)
    offset = layer.bias[outputs] if bias and layer.bias is not None else None
    return F.conv2d(x, weight, offset, padding=layer.padding)


def space_to_depth(x: Tensor) -> Tensor:
    """Make channels of 2 x 2 pixels: (N, C, H, W) to (N, 4 C, H / 2, W / 2), channels last."""
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

    def forward(
        self, x: Tensor, given: Channels = ALL, modulation: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return ``norm(x)``, or ``norm(x) * (1 + scale) + shift``.

        Parameters
        ----------
        x : Tensor
            (N, C, H, W).
        given : slice or Tensor
            Which channels those of `x` are; the others are zero.
        modulation : (Tensor, Tensor), optional
            Scale and shift, each (N, C, 1, 1).

        Returns
        -------
        Tensor
            (N, C, H, W); the norm has unit mean square over the channels, before the learned scale.
        """
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        h = x * torch.rsqrt(length.square() / len(self.weight) + 1e-6)
        weight, out = self.weight[given, None, None], None if torch.is_grad_enabled() else h
        if modulation is None:
            return torch.mul(h, weight, out=out)
        scale, shift = modulation
        return torch.addcmul(shift, h, weight * (1 + scale), out=out)


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

    def forward(self, x: Tensor, embedding: Tensor, given: Channels = ALL) -> Tensor:
        """Map x (N, C, H, W), the `given` ones of the channels (the others are zero), to (N, C', H, W)."""
        h = convolve(self.conv1, silu(self.norm1(x, given)), given)
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(silu(self.norm2(h, modulation=(scale, shift))))
        return add(h, convolve(self.skip, x, given) if isinstance(self.skip, nn.Conv2d) else x)


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
        self.to(memory_format=torch.channels_last)

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
        return self.bind(condition, positions, factor)(x, gamma)

    def bind(
        self, condition: Tensor, positions: Tensor, factor: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Work out once what is the same in all calls of a sampler.

        Parameters
        ----------
        condition, positions, factor : Tensor
            See `forward`.

        Returns
        -------
        callable
            ``flow(x, gamma)``, which gives what `forward` does.
        """
        shown = [condition]
        if condition.shape[1] > 1:
            shown.append((condition[:, 2:3] - condition[:, 1:2]) / self.residual_scale)
        known = space_to_depth(torch.cat(shown, 1))
        weights, used = self._spread(positions)
        noisy = known.shape[1] + used
        inner = torch.arange(self.last.conv1.in_channels - 4 * self.slots, device=used.device)
        given = torch.cat([inner, len(inner) + used])
        entered = convolve(self.entry, known, slice(known.shape[1]))

        def flow(x: Tensor, gamma: Tensor) -> Tensor:
            visible = (gamma > 0).to(x.dtype)[:, None, None]
            seen = space_to_depth(torch.einsum("ndm,ndhw->nmhw", weights * visible, x))
            h = add(convolve(self.entry, seen, noisy, bias=False), entered)
            embedding = self.embed(self._features(gamma, factor))
            h = self._levels(h, embedding)
            h = self._block(self.last, torch.cat([h, known, seen], 1), embedding, given)
            out = convolve(self.exit, silu(self.norm(h)), outputs=used)
            return torch.einsum("ndm,nmhw->ndhw", weights, depth_to_space(out))

        return flow

    def _spread(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Spread slices over the slots that any of them meets.

        Parameters
        ----------
        positions : Tensor
            See `forward`.

        Returns
        -------
        tuple of Tensor
            Weights (N, D, M) of the M slots, and their channels (4 M,) among those of all slots.
        """
        weights = slot_weights(positions, self.slots)
        channels = torch.arange(4 * self.slots, device=positions.device).view(-1, 4)
        if not torch.compiler.is_compiling():  # shapes of an exported graph follow from no values
            used = weights.sum((0, 1)).nonzero().flatten()
            weights, channels = weights[:, :, used], channels[used]
        return weights, channels.flatten()

    def _levels(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Run the levels, down and up, on the entry's output."""
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
        return h

    def _block(self, block: nn.Module, h: Tensor, *arguments: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, h, *arguments, use_reentrant=False)
        else:
            out = block(h, *arguments)
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
