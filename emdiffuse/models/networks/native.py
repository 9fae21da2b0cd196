"""The native network: restores images, and slices at any position in a gap, for any anisotropy factor.

Conventions
-----------
* Images are scaled to [-1, 1]. Diffusion acts on the *residual* to a plain estimate, in units of
  `residual_scale`, so that its variance is near one. The plain estimate of a slice in a gap is the linear
  interpolation of the two real slices around it; that of an image is the input itself (upsampled, for
  super-resolution), or a mean of the surrounding pixels, for a network that learned from hidden pixels.
* A slice is identified only by its *position* in the gap: 0 at the centre of the real slice before it, 1 at
  that of the one after it, slightly outside at the ends of a volume of thick slices. Positions are a
  continuous condition: the condition passes through the trunk once, and one shared head derives each slice
  from the trunk's features, scaled and shifted by smooth features of its position. So one set of weights
  serves every factor, integer or not, and training on any factor trains all weights. An image is a slice at
  position 1/2.
* Noisy slices enter the trunk as a set: learned smooth functions of their positions mix them into `MIXED`
  images (one, for an image). The head also sees each slice's own noisy image: at low noise the output depends
  on its finest detail, which would not pass through the few channels of the trunk. The last block sees the
  condition and the mixed images again for the same reason.
* Factors and thicknesses are clamped to the training range, because the nearest known value is a better guess
  than extrapolation.
* At pure noise (gamma = 0) the noisy slices carry no information and are not shown: the output is a function
  of the condition alone, the posterior mean.
* No convolution runs at full resolution: 2 x 2 pixels become channels at the input (space to depth).
* Values that depend only on the condition and the positions are computed once for all evaluations of a
  sampler (`NativeNetwork.bind`). Absent slices cost nothing.
* The layout is channels last, which is fastest for convolutions and norms. Without autograd, activations are
  overwritten.
* Normalisation is local, over the channels of a pixel (Ba et al. 2016, arXiv 1607.06450), and there is no
  global attention, so a tile with enough halo gives the same result as the whole image.

The set of noisy slices follows Zaheer et al. 2017 (arXiv 1703.06114), the modulation Perez et al. 2018 (arXiv
1709.07871).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emdiffuse.config.tasks import CONDITION_OFFSETS
from emdiffuse.models.networks.native_blocks import Head, NativeBlock, depth_to_space, space_to_depth
from emdiffuse.models.surroundings import Reach, surroundings

MIXED = 6
"""Number of images into which the noisy slices of a gap are mixed."""
TIME_FEATURES = 16
"""Number of frequencies that embed the time of the flow."""
PLACE_FEATURES = 7
"""Number of features of a slice's position; see `place_features`."""


def linear_interpolation(condition: Tensor, positions: Tensor) -> Tensor:
    """Interpolate between the two real slices around a gap.

    Parameters
    ----------
    condition : Tensor
        (N, 4, H, W): the real slices at `tasks.CONDITION_OFFSETS`.
    positions : Tensor
        (N, D); NaN gives the slice before the gap. Outside the gap the nearest slice is repeated.

    Returns
    -------
    Tensor
        (N, D, H, W).
    """
    before, after = condition[:, 1:2], condition[:, 2:3]
    t = positions.nan_to_num(0.0).clamp(0, 1)[:, :, None, None]
    return before + t * (after - before)


def place_features(positions: Tensor, factor: Tensor, thickness: Tensor) -> Tensor:
    """Return smooth low-order functions of slice positions, which interpolate between trained positions.

    Parameters
    ----------
    positions : Tensor
        (N, D), without NaN.
    factor, thickness : Tensor
        (N,).

    Returns
    -------
    Tensor
        (N, D, `PLACE_FEATURES`), of order one: position from the middle, its square and cube, distances from
        the two real slices in output voxels on a logarithmic scale, factor, thickness.
    """
    middle = 2 * positions - 1
    to_before, to_after = positions * factor[:, None], (1 - positions) * factor[:, None]
    features = [
        middle,
        middle.square(),
        middle**3,
        (1 + to_before.square()).log2() / 4,
        (1 + to_after.square()).log2() / 4,
        (factor.log2() / 2)[:, None].expand_as(positions),
        thickness[:, None].expand_as(positions),
    ]
    return torch.stack(features, -1)


def plain_estimate(condition: Tensor, positions: Tensor, blind_spot: Reach | None = None) -> Tensor:
    """Return the plain estimate: interpolated slices, the image, or the surroundings of its pixels.

    Parameters
    ----------
    condition : Tensor
        (N, 4, H, W), the real slices around a gap, (N, 1, H, W), an image, or (N, 3, H, W), a slice between
        its neighbours.
    positions : Tensor
        (N, D), positions in the gap; for images only the shape (N, 1) matters.
    blind_spot : tuple of int, optional
        For a model that learned from hidden pixels: extent of the blind spot along y and x.

    Returns
    -------
    Tensor
        (N, D, H, W).
    """
    if condition.shape[1] == len(CONDITION_OFFSETS):
        return linear_interpolation(condition, positions)
    middle = condition.shape[1] // 2
    image = condition[:, middle : middle + 1]
    return image if blind_spot is None else surroundings(image, blind_spot)


class NativeNetwork(nn.Module):
    """U-Net over the real slices of a gap, or an image, at half resolution, with a head for each slice.

    Parameters
    ----------
    conditions : int
        Number of condition images: 4 real slices around a gap, 1 image, or 3 (a slice and its neighbours).
    channels : int
        Channels at half resolution.
    multipliers : sequence of int
        Channels of each level, times `channels`; each level halves the resolution.
    blocks : int
        Residual blocks per level.
    residual_scale : float
        Standard deviation of the residual to the plain estimate in the training data.
    factors, thickness : sequence of float
        Lowest and highest anisotropy factor, and fraction of the slice spacing that a slice integrates over,
        in the training data; others are shown as the nearest of these.
    blind_spot : tuple of int, optional
        For a network that learns from hidden pixels: extent of the blind spot along y and x, which the plain
        estimate excludes.
    checkpointing : bool
        Whether to recompute the blocks' activations in the backward pass instead of storing them (arXiv
        1604.06174).
    """

    def __init__(
        self,
        conditions: int = len(CONDITION_OFFSETS),
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 2,
        residual_scale: float = 1.0,
        factors: Sequence[float] = (1.0, 12.0),
        thickness: Sequence[float] = (0.0, 1.0),
        blind_spot: Reach | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.blind_spot = blind_spot
        self.checkpointing = checkpointing
        self.residual_scale = residual_scale
        self.factors, self.thickness = factors, thickness
        self.stride = 2 ** len(multipliers)
        width = 4 * channels
        self.embed = nn.Sequential(
            nn.Linear(2 * TIME_FEATURES + 2, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.place = nn.Sequential(nn.Linear(PLACE_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        gap = conditions == len(CONDITION_OFFSETS)
        mixed = MIXED if gap else 1
        self.mix = nn.Linear(width, mixed)
        widths = [channels * m for m in multipliers]
        known, noisy = 4 * (conditions + (1 if gap else 0)), 4 * mixed
        self.entry = nn.Conv2d(known, widths[0], 3, padding=1)
        self.noisy_entry = nn.Conv2d(noisy, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        current = widths[0]
        for level, w in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(current, w, 2, stride=2))
                current = w
            self.down.extend(NativeBlock(current, w, width) for _ in range(blocks))
        for level, w in reversed(list(enumerate(widths))):
            for i in range(blocks):
                self.up.append(
                    NativeBlock(current + (w if i == 0 and level < len(widths) - 1 else 0), w, width)
                )
                current = w
            if level:
                self.up.append(nn.ConvTranspose2d(current, widths[level - 1], 2, stride=2))
                current = widths[level - 1]
        last = 3 * channels // 2
        self.last = NativeBlock(current + known + noisy, last, width)
        self.head = Head(last, width)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        x: Tensor,
        gamma: Tensor,
        condition: Tensor,
        positions: Tensor,
        factor: Tensor,
        thickness: Tensor,
    ) -> Tensor:
        """Predict the flow of the noisy residual.

        Parameters
        ----------
        x : Tensor
            (N, D, H, W), the noisy residual at a gap's slices, sqrt(gamma) x0 + sqrt(1 - gamma) eps.
        gamma : Tensor
            (N,), signal fraction of the variance, 0 (pure noise) to 1.
        condition : Tensor
            (N, conditions, H, W), the real slices or the image, in [-1, 1].
        positions : Tensor
            (N, D), positions in the gap; NaN for absent slices.
        factor : Tensor
            (N,), anisotropy factor; 1 for images.
        thickness : Tensor
            (N,), fraction of the slice spacing that a real slice integrates over; 0 for images.

        Returns
        -------
        Tensor
            (N, D, H, W): eps - x0 (Liu et al. 2022, arXiv 2209.03003), zero for absent slices; minus the
            posterior mean at gamma = 0.
        """
        return self.bind(condition, positions, factor, thickness)(x, gamma)

    def bind(
        self, condition: Tensor, positions: Tensor, factor: Tensor, thickness: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Precompute values that are the same in all evaluations of a sampler.

        Parameters
        ----------
        condition, positions, factor, thickness : Tensor
            See `forward`.

        Returns
        -------
        callable
            ``flow(x, gamma)``, which returns the same as `forward`.
        """
        factor, thickness = factor.clamp(*self.factors), thickness.clamp(*self.thickness)
        shown = [condition]
        if condition.shape[1] == len(CONDITION_OFFSETS):
            shown.append((condition[:, 2:3] - condition[:, 1:2]) / self.residual_scale)
        known = space_to_depth(torch.cat(shown, 1))
        entered = self.entry(known)
        present = ~positions.isnan()
        places = self.place(place_features(positions.nan_to_num(0.5), factor, thickness))
        # the root keeps the noise variance independent of the number of slices
        share = present / present.sum(1, keepdim=True).clamp(min=1).sqrt()
        mixing = self.mix(F.silu(places)) * share[:, :, None]
        if torch.compiler.is_compiling():  # shapes in a graph must not depend on values
            grid = torch.meshgrid(
                *(torch.arange(n, device=present.device) for n in present.shape), indexing="ij"
            )
            gaps, numbers = (axis.flatten() for axis in grid)
        else:
            gaps, numbers = present.nonzero(as_tuple=True)

        def flow(x: Tensor, gamma: Tensor) -> Tensor:
            x = x * (gamma > 0).to(x.dtype)[:, None, None, None]
            mixed = space_to_depth(torch.einsum("ndm,ndhw->nmhw", mixing, x))
            h = self.noisy_entry(mixed) + entered
            level = self.embed(self._features(gamma, factor, thickness))
            embedding = F.silu(level)
            h = self._levels(h, embedding)
            h = self._block(self.last, torch.cat([h, known, mixed], 1), embedding)
            own = F.silu(level[gaps] + places[gaps, numbers])
            noisy = space_to_depth(x[gaps, numbers][:, None])
            out = depth_to_space(self._block(self.head, h, noisy, own, gaps))
            return torch.zeros_like(x).to(out.dtype).index_put((gaps, numbers), out[:, 0])

        return flow

    def _levels(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Run the levels, down and up, on the output of the input layer."""
        skips = []
        for module in self.down:
            if isinstance(module, NativeBlock):
                h = self._block(module, h, embedding)
            else:
                skips.append(h)
                h = module(h)
        for module in self.up:
            if isinstance(module, NativeBlock):
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

    @staticmethod
    def _features(gamma: Tensor, factor: Tensor, thickness: Tensor) -> Tensor:
        """Embed the time of the flow by cosines and sines; append factor and thickness."""
        alpha, sigma = gamma.sqrt(), (1 - gamma).clamp(min=0).sqrt()
        time = sigma / (alpha + sigma)
        rates = torch.exp(torch.arange(TIME_FEATURES, device=gamma.device) * (math.log(100) / TIME_FEATURES))
        angles = time[:, None] * math.pi * rates
        return torch.cat([angles.cos(), angles.sin(), factor.log2()[:, None] / 2, thickness[:, None]], 1)
