"""Augmentation: random changes to examples before the network sees them, on any device.

Conventions
-----------
* The changes to an example depend on its row of `CHOICES` uniform numbers (on the CPU): each setting has its
  own columns, so that it does not affect the others.
* Geometry and tone are changed in condition and target alike; degradations affect only the condition.
* Intensities are in [-1, 1]. The condition of a gap is its real slices, that of an image a single one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum, auto

import torch
import torch.nn.functional as F
from torch import Tensor

from emdiffuse.config import Augmentation
from emdiffuse.config.tasks import CONDITION_OFFSETS


class Choice(IntEnum):
    """Columns of the uniform numbers."""

    FLIP_Z = 0
    FLIP_Y = auto()
    FLIP_X = auto()
    TRANSPOSE = auto()
    NO_FIRST = auto()
    NO_LAST = auto()
    BLUR = auto()
    NOISE = auto()
    SLOPE = auto()
    OFFSET = auto()
    JUMP = auto()
    JUMPING = auto()
    GAIN = auto()
    SHIFT = auto()
    INVERT = auto()


CHOICES = len(Choice)
MISSING = 0.08
"""Fraction of gaps without the outer real slice, on either side, as at the ends of a volume."""
BLUR = 3.0
"""Standard deviation of the Gaussian blur of conditions, in pixels, as published."""


def augment(
    condition: Tensor,
    target: Tensor,
    positions: Tensor,
    settings: Augmentation,
    choices: Tensor,
    noise: Callable[[], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment examples randomly.

    Parameters
    ----------
    condition : Tensor
        (N, C, H, W), float32, with H = W.
    target : Tensor
        (N, D, H, W), float32, NaN in absent slices, which come last.
    positions : Tensor
        (N, D), float32: positions of the target's slices in the gap.
    settings : Augmentation
        Kinds, frequencies and amounts of the changes.
    choices : Tensor
        (N, `CHOICES`), uniform in [0, 1), on the CPU.
    noise : callable
        Returns standard normal numbers with the shape and on the device of the condition; called only if the
        settings add noise.

    Returns
    -------
    tuple of Tensor
        Condition, target and positions, with the shapes and device of the inputs.
    """
    gap = condition.shape[1] == len(CONDITION_OFFSETS)
    if gap:
        condition, target, positions = _reversed(condition, target, positions, choices)
    if condition.shape[1] == 3:  # a slice with its neighbours
        flip = (choices[:, Choice.FLIP_Z] < 0.5).to(condition.device)[:, None, None, None]
        condition = torch.where(flip, condition.flip(1), condition)
    condition, target = _turned(condition, target, settings, choices)
    condition = _degraded(condition, gap, settings, choices, noise)
    return *_toned(condition, target, settings, choices), positions


def _reversed(
    condition: Tensor, target: Tensor, positions: Tensor, choices: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip gaps along z with probability 1/2; absent slices stay last."""
    flip = (choices[:, Choice.FLIP_Z] < 0.5).to(condition.device)[:, None]
    count = (~positions.isnan()).sum(1, keepdim=True)
    place = torch.arange(positions.shape[1], device=positions.device)[None]
    order = torch.where(flip & (place < count), count - 1 - place, place)
    moved = positions.gather(1, order)
    target = target.gather(1, order[:, :, None, None].expand_as(target))
    condition = torch.where(flip[:, :, None, None], condition.flip(1), condition)
    return condition, target, torch.where(flip, 1 - moved, moved)


@functools.cache
def _symmetries(side: int, device: torch.device) -> Tensor:
    """Return the source of each pixel, (8, side * side), for every flip and transposition."""
    tables = []
    for code in range(8):
        image = torch.arange(side * side).view(side, side)
        axes = [axis for axis in (0, 1) if code >> axis & 1]
        image = image.flip(axes)
        tables.append((image.T if code >> 2 & 1 else image).flatten())
    return torch.stack(tables).to(device)


def _turned(
    condition: Tensor, target: Tensor, settings: Augmentation, choices: Tensor
) -> tuple[Tensor, Tensor]:
    """Flip along y and x, and transpose; together these include all quarter turns."""
    code = torch.zeros(len(choices), dtype=torch.int64)
    for bit, choice, wanted in (
        (0, Choice.FLIP_Y, True),
        (1, Choice.FLIP_X, True),
        (2, Choice.TRANSPOSE, settings.transposition),
    ):
        code += ((choices[:, choice] < 0.5) & wanted).long() << bit
    if not code.any():
        return condition, target
    source = _symmetries(condition.shape[-1], condition.device)[code.to(condition.device)]

    def moved(images: Tensor) -> Tensor:
        flat = images.flatten(2)
        return flat.gather(2, source[:, None].expand_as(flat)).view_as(images)

    return moved(condition), moved(target)


def _degraded(
    condition: Tensor, gap: bool, settings: Augmentation, choices: Tensor, noise: Callable[[], Tensor]
) -> Tensor:
    """Blur, change contrast and add noise; in gaps also brighten one real slice and drop outer ones."""

    def column(choice: Choice) -> Tensor:
        return choices[:, choice, None, None, None].to(condition.device)

    blurred = (choices[:, Choice.BLUR] < settings.blur).nonzero().flatten().to(condition.device)
    out = condition
    if len(blurred):
        out = out.index_copy(0, blurred, gaussian_blur(out[blurred], BLUR))
    if settings.contrast:
        slope, offset = (2 * column(choice) - 1 for choice in (Choice.SLOPE, Choice.OFFSET))
        out = out * (1 + settings.contrast * slope) + settings.contrast * offset
    if settings.noise:
        out = out + settings.noise * column(Choice.NOISE) * noise()
    if not gap:
        return out
    if settings.brightness_jump:
        slices = torch.arange(out.shape[1], device=out.device)[None, :, None, None]
        jumping = (len(CONDITION_OFFSETS) * column(Choice.JUMPING)).long() == slices
        out = out + settings.brightness_jump * (2 * column(Choice.JUMP) - 1) * jumping
    first, last = (column(choice) < MISSING for choice in (Choice.NO_FIRST, Choice.NO_LAST))
    parts = out.split(1, 1)
    outer = torch.where(first, parts[1], parts[0]), torch.where(last, parts[2], parts[3])
    return torch.cat([outer[0], parts[1], parts[2], outer[1]], 1)


def _toned(
    condition: Tensor, target: Tensor, settings: Augmentation, choices: Tensor
) -> tuple[Tensor, Tensor]:
    """Change gain and offset of condition and target alike, and optionally invert their contrast."""
    if not (settings.gain or settings.inversion):
        return condition, target
    gain, shift, inverted = (choices[:, c] for c in (Choice.GAIN, Choice.SHIFT, Choice.INVERT))
    sign = torch.where(inverted < settings.inversion, -1.0, 1.0)
    slope, offset = sign * (1 + settings.gain * (2 * gain - 1)), settings.gain * (2 * shift - 1) / 2
    slope, offset = (values.to(condition.device)[:, None, None, None] for values in (slope, offset))
    return slope * condition + offset, slope * target + offset


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) with a Gaussian truncated at four standard deviations, mirroring the edges."""
    radius = round(4 * sigma)
    distance = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (distance / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, 1)[:, None]
    for _ in range(2):  # along y, then along x
        flat = flat.transpose(2, 3)
        side = flat.shape[-1]
        place = torch.arange(-radius, side + radius, device=images.device) % (2 * side)
        flat = F.conv2d(flat[..., torch.minimum(place, 2 * side - 1 - place)], kernel.view(1, 1, 1, -1))
    return flat.view_as(images)
