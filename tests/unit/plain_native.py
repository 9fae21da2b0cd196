"""A plain native network: eager, NCHW, slice by slice, one operation after the other.

It reads a state dict by its names and shares no code with the package: the reference for values and cost of
the package's network. Levels and blocks are those of the default network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS, BLOCKS, FREQUENCIES = 3, 2, 16


class PlainNative:
    """The native network over the tensors of its state dict."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        residual_scale: float = 1.0,
        factors: tuple[float, float] = (1.0, 12.0),
        thickness: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.weights, self.residual_scale = weights, residual_scale
        self.factors, self.thickness = factors, thickness

    def __call__(
        self,
        x: Tensor,
        gamma: Tensor,
        condition: Tensor,
        positions: Tensor,
        factor: Tensor,
        thickness: Tensor,
    ) -> Tensor:
        rows = range(len(x))
        one_by_one = [
            self.gap(*(v[i : i + 1] for v in (x, gamma, condition, positions, factor, thickness)))
            for i in rows
        ]
        return torch.cat(one_by_one)

    def gap(
        self,
        x: Tensor,
        gamma: Tensor,
        condition: Tensor,
        positions: Tensor,
        factor: Tensor,
        thickness: Tensor,
    ) -> Tensor:
        """Compute one gap; absent slices are zeros."""
        factor, thickness = factor.clamp(*self.factors), thickness.clamp(*self.thickness)
        present = [d for d in range(x.shape[1]) if not positions[0, d].isnan()]
        x = x * (gamma > 0)[:, None, None, None]
        places = {d: self.place(positions[0, d], factor[0], thickness[0]) for d in present}

        shown = [condition]
        if condition.shape[1] > 1:
            shown.append((condition[:, 2:3] - condition[:, 1:2]) / self.residual_scale)
        known = F.pixel_unshuffle(torch.cat(shown, 1), 2)
        mixed = torch.zeros(())
        for d in present:
            shares = self.linear("mix", F.silu(places[d])) / math.sqrt(len(present))
            mixed = mixed + shares[:, :, None, None] * x[:, d : d + 1]
        mixed = F.pixel_unshuffle(mixed, 2)
        level = self.level(gamma, factor, thickness)
        embedding = F.silu(level)

        h = self.conv("entry", known, padding=1) + self.conv("noisy_entry", mixed, padding=1)
        skips, number = [], 0
        for stage in range(LEVELS):
            if stage:
                skips.append(h)
                h = self.conv(f"down.{number}", h, stride=2)
                number += 1
            for _ in range(BLOCKS):
                h = self.residual(f"down.{number}", h, embedding)
                number += 1
        number = 0
        for stage in reversed(range(LEVELS)):
            for _ in range(BLOCKS):
                h = self.residual(f"up.{number}", h, embedding)
                number += 1
            if stage:
                weight, bias = self.weights[f"up.{number}.weight"], self.weights[f"up.{number}.bias"]
                h = torch.cat([F.conv_transpose2d(h, weight, bias, stride=2), skips.pop()], 1)
                number += 1
        h = self.norm("head.norm", self.residual("last", torch.cat([h, known, mixed], 1), embedding))

        out = [torch.zeros_like(x[:, :1])] * x.shape[1]
        for d in present:
            own = F.silu(level + places[d])
            scale, shift = self.linear("head.affine", own)[:, :, None, None].chunk(2, dim=1)
            noisy = self.conv("head.own", F.pixel_unshuffle(x[:, d : d + 1], 2), padding=1)
            slices = self.conv("head.exit", F.silu(h * (1 + scale) + shift + noisy))
            out[d] = F.pixel_shuffle(slices, 2)
        return torch.cat(out, 1)

    def place(self, t: Tensor, factor: Tensor, thickness: Tensor) -> Tensor:
        """Describe a position by smooth features, and pass them through two layers."""
        middle = 2 * t - 1
        distances = [torch.log2(1 + (side * factor) ** 2) / 4 for side in (t, 1 - t)]
        features = [middle, middle**2, middle**3, *distances, torch.log2(factor) / 2, thickness]
        return self.linear("place.2", F.silu(self.linear("place.0", torch.stack(features)[None])))

    def level(self, gamma: Tensor, factor: Tensor, thickness: Tensor) -> Tensor:
        time = (1 - gamma).sqrt() / (gamma.sqrt() + (1 - gamma).sqrt())
        rates = torch.exp(torch.arange(FREQUENCIES) * (math.log(100) / FREQUENCIES))
        angles = time[:, None] * math.pi * rates
        h = torch.cat([angles.cos(), angles.sin(), factor.log2()[:, None] / 2, thickness[:, None]], 1)
        return self.linear("embed.2", F.silu(self.linear("embed.0", h)))

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
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **kwargs)
