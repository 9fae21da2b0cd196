"""The native network in its plain form: eager, NCHW, all slots, one obvious operation after the other.

It reads a state dict by its names and shares no code with the package: what the package's network is compared
with, in value and in cost. Levels and blocks are those of the default network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS, BLOCKS, FREQUENCIES = 3, 2, 16


class PlainNative:
    """The native network over the tensors of its state dict."""

    def __init__(self, weights: dict[str, Tensor], residual_scale: float = 1.0) -> None:
        self.weights, self.residual_scale = weights, residual_scale
        self.slots = len(weights["exit.bias"]) // 4

    def __call__(
        self, x: Tensor, gamma: Tensor, condition: Tensor, positions: Tensor, factor: Tensor
    ) -> Tensor:
        slots = torch.arange(1, self.slots + 1)
        places = (positions * (self.slots + 1)).clamp(1, self.slots)
        spread = (1 - (places[:, :, None] - slots).abs()).clamp(min=0).nan_to_num(0.0)
        shown = [condition]
        if condition.shape[1] > 1:
            shown.append((condition[:, 2:3] - condition[:, 1:2]) / self.residual_scale)
        visible = (gamma > 0).to(x.dtype)[:, None, None, None]
        shown.append(torch.einsum("ndm,ndhw->nmhw", spread, x * visible))
        seen = F.pixel_unshuffle(torch.cat(shown, 1), 2)
        embedding = self.embedding(gamma, factor)

        h = self.conv("entry", seen, padding=1)
        skips, number = [], 0
        for level in range(LEVELS):
            if level:
                skips.append(h)
                h = self.conv(f"down.{number}", h, stride=2)
                number += 1
            for _ in range(BLOCKS):
                h = self.residual(f"down.{number}", h, embedding)
                number += 1
        number = 0
        for level in reversed(range(LEVELS)):
            for _ in range(BLOCKS):
                h = self.residual(f"up.{number}", h, embedding)
                number += 1
            if level:
                weight, bias = self.weights[f"up.{number}.weight"], self.weights[f"up.{number}.bias"]
                h = torch.cat([F.conv_transpose2d(h, weight, bias, stride=2), skips.pop()], 1)
                number += 1
        h = self.residual("last", torch.cat([h, seen], 1), embedding)
        out = F.pixel_shuffle(self.conv("exit", F.silu(self.norm("norm", h)), padding=1), 2)
        return torch.einsum("ndm,nmhw->ndhw", spread, out)

    def embedding(self, gamma: Tensor, factor: Tensor) -> Tensor:
        time = (1 - gamma).sqrt() / (gamma.sqrt() + (1 - gamma).sqrt())
        rates = torch.exp(torch.arange(FREQUENCIES) * (math.log(100) / FREQUENCIES))
        angles = torch.stack([time * math.pi, factor.log2()], 1)[:, :, None] * rates
        h = torch.cat([angles.cos(), angles.sin()], 1).flatten(1)
        return F.silu(self.linear("embed.2", F.silu(self.linear("embed.0", h))))

    def residual(self, name: str, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.linear(f"{name}.affine", embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        h = F.silu(self.norm(f"{name}.norm2", h) * (1 + scale) + shift)
        skip = self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.weights else x
        return skip + self.conv(f"{name}.conv2", h, padding=1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"][:, None, None]
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * weight

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def conv(self, name: str, x: Tensor, **kwargs: int) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **kwargs)
