"""The U-Net of EMDiffuse: one definition for the published 2-D networks and a joint 3-D one.

Conventions
-----------
* Inputs are (N, C, H, W), or (N, C, D, H, W) with ``dims=3``; the condition comes first and the noisy image
  last.
* Names and shapes of the weights are those of the published state dict, so that published checkpoints load
  directly.
* Without autograd the layout is channels last, in which convolutions on a CPU are fastest. With autograd it
  is that of the weights.

The published networks (Lu et al., doi 10.1038/s41467-024-49125-z) are ``UNet(in_channels=2)``, 15,677,345
weights, and ``UNet(in_channels=3, slice_index=True)``, 16,615,873. Their base is the U-Net of arXiv
2105.05233 with the continuous noise level of arXiv 2009.00713.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emdiffuse.models.networks.blocks import (
    AttentionBlock,
    GroupNorm,
    Resampling,
    ResidualBlock,
    convolution,
    silu,
    sinusoidal_embedding,
    zeroed,
)


class UNet(nn.Module):
    """U-Net with residual blocks, conditioned on the noise level and, optionally, on the index of a slice.

    Parameters
    ----------
    in_channels : int
        Channels of the condition and of the noisy image together.
    out_channels : int
        Channels of the prediction: 1, or 2 with a difficulty map (see `emdiffuse.diffusion.objectives`).
    base_channels : int
        Channels at the first level, a multiple of 16; also the width of the sinusoidal embedding.
    multipliers : sequence of int
        Channels of each level, times `base_channels`; each level halves the resolution.
    blocks : int
        Residual blocks per level on the way down; one more on the way up.
    head_channels : int
        Channels per attention head; only the middle block has attention.
    dropout : float
        Probability of dropout in the residual blocks.
    slice_index : bool
        Whether the network takes the index of the slice within the gap.
    dims : int
        2 for images, 3 for the joint restoration of gaps with any number of slices.
    checkpointing : bool
        Whether to recompute the blocks' activations in the backward pass instead of storing them (arXiv
        1604.06174).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        base_channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        blocks: int = 2,
        head_channels: int = 32,
        dropout: float = 0.0,
        slice_index: bool = False,
        dims: int = 2,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"a U-Net has 2 or 3 dimensions, not {dims}")
        self.dims = dims
        self.base_channels = base_channels
        self.checkpointing = checkpointing
        self.granularity = 2 ** (len(multipliers) - 1)
        groups = math.gcd(32, base_channels)
        width = 4 * base_channels

        def embedding() -> nn.Sequential:
            return nn.Sequential(nn.Linear(base_channels, width), nn.SiLU(), nn.Linear(width, width))

        def residual(before: int, after: int, resampling: Resampling = "none") -> ResidualBlock:
            embedded = 2 * width if slice_index else width
            return ResidualBlock(dims, before, after, embedded, groups, dropout, resampling)

        def attention(channels: int) -> AttentionBlock:
            return AttentionBlock(channels, head_channels, groups)

        self.cond_embed = embedding()
        self.channel_embed = embedding() if slice_index else None

        channels = base_channels * multipliers[0]
        skips = [channels]
        self.input_blocks = nn.ModuleList([nn.ModuleList([convolution(dims, in_channels, channels, 3)])])
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                stage = nn.ModuleList([residual(channels, base_channels * multiplier)])
                channels = base_channels * multiplier
                self.input_blocks.append(stage)
                skips.append(channels)
            if level < len(multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([residual(channels, channels, "down")]))
                skips.append(channels)

        self.middle_block = nn.ModuleList(
            [residual(channels, channels), attention(channels), residual(channels, channels)]
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                stage = nn.ModuleList([residual(channels + skips.pop(), base_channels * multiplier)])
                channels = base_channels * multiplier
                if level and block == blocks:
                    stage.append(residual(channels, channels, "up"))
                self.output_blocks.append(stage)

        self.out = nn.Sequential(
            GroupNorm(groups, channels), nn.SiLU(), zeroed(convolution(dims, channels, out_channels, 3))
        )

    def forward(self, x: Tensor, gamma: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the prediction; for the published networks, the noise.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, H, W) or (N, in_channels, D, H, W), float32
            The condition, then the noisy image; H and W are multiples of 8 at the default multipliers.
        gamma : Tensor, shape (N,)
            Noise level, see `emdiffuse.diffusion`.
        index : Tensor, shape (N,), int, optional
            Index of the slice; required if, and only if, the network has `slice_index`.

        Returns
        -------
        Tensor, shape (N, out_channels, H, W) or (N, out_channels, D, H, W)

        Raises
        ------
        ValueError
            If the size is not a multiple of the granularity, or `index` is missing or unexpected.
        """
        if x.ndim != self.dims + 2:
            raise ValueError(f"a {self.dims}-D network takes images of {self.dims + 2} axes, not {x.ndim}")
        if x.shape[-1] % self.granularity or x.shape[-2] % self.granularity:
            size = f"{x.shape[-2]} x {x.shape[-1]}"
            raise ValueError(f"height and width must be multiples of {self.granularity}, not {size}")
        if not torch.is_grad_enabled():
            x = x.contiguous(memory_format=torch.channels_last if self.dims == 2 else torch.channels_last_3d)
        embedding = self._embed(gamma, index)
        h = x
        skips = []
        for stage in self.input_blocks:
            h = self._run(stage, h, embedding)
            skips.append(h)
        h = self._run(self.middle_block, h, embedding)
        for stage in self.output_blocks:
            h = self._run(stage, torch.cat([h, skips.pop()], dim=1), embedding)
        norm, _, convolve = self.out
        return convolve(silu(norm(h)))

    def _embed(self, gamma: Tensor, index: Tensor | None) -> Tensor:
        embedding = self.cond_embed(sinusoidal_embedding(gamma, self.base_channels))
        if (self.channel_embed is None) != (index is None):
            raise ValueError(
                "the index of the slice is missing" if index is None else "this network takes no slice index"
            )
        if self.channel_embed is None or index is None:
            return embedding
        return torch.cat(
            [embedding, self.channel_embed(sinusoidal_embedding(index, self.base_channels))], dim=1
        )

    def _run(self, stage: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        for layer in stage.children():
            arguments = (h, embedding) if isinstance(layer, ResidualBlock) else (h,)
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                h = layer(*arguments)
        return h
