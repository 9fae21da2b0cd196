"""A plain published network: eager, NCHW, one operation after the other.

It reads a state dict by its published names and shares no code with the package: the reference for values and
cost of the package's network. Only the 2-D network of the default size is covered.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS, BLOCKS, GROUPS, HEAD_CHANNELS = 4, 2, 32, 32


class PlainUNet:
    """The published network over the tensors of its state dict."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.base = weights["cond_embed.0.weight"].shape[1]
        self.groups = min(GROUPS, self.base)

    def __call__(self, x: Tensor, gamma: Tensor, index: Tensor | None = None) -> Tensor:
        embedding = self.mlp("cond_embed", self.waves(gamma))
        if index is not None:
            embedding = torch.cat([embedding, self.mlp("channel_embed", self.waves(index))], dim=1)

        h = self.conv("input_blocks.0.0", x)
        kept = [h]
        number = 0
        for level in range(LEVELS):
            for _ in range(BLOCKS):
                number += 1
                h = self.residual(f"input_blocks.{number}.0", h, embedding)
                kept.append(h)
            if level < LEVELS - 1:
                number += 1
                h = self.residual(f"input_blocks.{number}.0", h, embedding, lambda a: F.avg_pool2d(a, 2))
                kept.append(h)

        h = self.residual("middle_block.0", h, embedding)
        h = self.attention("middle_block.1", h)
        h = self.residual("middle_block.2", h, embedding)

        for number in range(LEVELS * (BLOCKS + 1)):
            h = self.residual(f"output_blocks.{number}.0", torch.cat([h, kept.pop()], dim=1), embedding)
            if number % (BLOCKS + 1) == BLOCKS and kept:
                h = self.residual(
                    f"output_blocks.{number}.1",
                    h,
                    embedding,
                    lambda a: F.interpolate(a, scale_factor=2, mode="nearest"),
                )
        return self.conv("out.2", swish(self.norm("out.0", h)))

    def waves(self, value: Tensor) -> Tensor:
        half = self.base // 2
        rows = [value.float() * math.exp(-math.log(10000) * i / half) for i in range(half)]
        return torch.stack([torch.cos(row) for row in rows] + [torch.sin(row) for row in rows], dim=1)

    def mlp(self, name: str, h: Tensor) -> Tensor:
        return self.linear(f"{name}.2", swish(self.linear(f"{name}.0", h)))

    def linear(self, name: str, h: Tensor) -> Tensor:
        return h @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def conv(self, name: str, h: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(h, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, self.groups, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def residual(self, name: str, x: Tensor, embedding: Tensor, resample=None) -> Tensor:
        h = swish(self.norm(f"{name}.in_layers.0", x))
        if resample is not None:
            h, x = resample(h), resample(x)
        h = self.conv(f"{name}.in_layers.2", h)
        modulation = self.linear(f"{name}.emb_layers.1", swish(embedding))[:, :, None, None]
        scale, shift = torch.chunk(modulation, 2, dim=1)
        h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = self.conv(f"{name}.out_layers.3", swish(h))
        if f"{name}.skip_connection.weight" in self.weights:
            x = self.conv(f"{name}.skip_connection", x)
        return x + h

    def attention(self, name: str, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        h = self.norm(f"{name}.norm", x).reshape(n, channels, -1)
        h = F.conv1d(h, self.weights[f"{name}.qkv.weight"], self.weights[f"{name}.qkv.bias"])
        heads = h.reshape(n * channels // HEAD_CHANNELS, 3 * HEAD_CHANNELS, -1)
        q, k, v = torch.split(heads, HEAD_CHANNELS, dim=1)
        attention = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(HEAD_CHANNELS), dim=-1)
        h = torch.einsum("bts,bcs->bct", attention, v).reshape(n, channels, -1)
        h = F.conv1d(h, self.weights[f"{name}.proj_out.weight"], self.weights[f"{name}.proj_out.bias"])
        return x + h.reshape(n, channels, height, width)


def swish(h: Tensor) -> Tensor:
    return h * torch.sigmoid(h)


def random_weights(shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Return weights for given shapes with which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        draw = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            weights[name] = draw / math.sqrt(math.prod(shape[1:]))
        else:
            weights[name] = 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
    return weights
