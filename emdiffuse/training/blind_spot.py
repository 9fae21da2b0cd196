"""Learn from noisy images alone, by predicting hidden pixels from their surroundings.

Conventions
-----------
* A pixel's signal can be predicted from other pixels, but not its noise: a network that predicts hidden noisy
  pixels learns their mean, the clean image, if the noise has zero mean and is independent beyond the blind
  spot (`models.surroundings`). The spread of possible clean images is not learned, so the model draws no
  samples.
* A pixel is hidden with its whole blind spot: each of these pixels takes the value of another nearby one
  outside the blind spot. One pixel is hidden in each cell of a grid, whose cells are `SPARSE` times as high
  and wide as the blind spot, at a random place, such that blind spots do not overlap.
* The hidden pixels depend only on the given random numbers. The target is NaN elsewhere, so that the loss
  counts only hidden pixels, augmented like the rest (`training.augmentation`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
import torch
from torch import Tensor

from emdiffuse.config import Augmentation, Training
from emdiffuse.models.surroundings import Reach, cross, surroundings
from emdiffuse.patches.correlation import reach
from emdiffuse.patches.cut import PatchStore

SPARSE = 4
"""Size of the cells relative to the blind spot; for single pixels, 1/16 of pixels is replaced."""
NEAR = 4
"""Minimum distance in pixels up to which replacements are drawn; larger for wider blind spots."""
MEASURED = 256
"""Number of patches on which the scale of the residual is measured."""


def blind_spot_of(patches: PatchStore, training: Training) -> Reach | None:
    """Return the extent of the blind spot along y and x, or None if nothing is hidden.

    It is set by the user, or covers the measured noise correlation.
    """
    if patches.facts.noisy != "hidden pixels":
        return None
    if training.blind_spot is not None:
        return training.blind_spot
    found = patches.facts.noise
    return (0, 0) if found is None else (reach(found.y), reach(found.x))


def keeping_scan(settings: Augmentation, patches: PatchStore, training: Training) -> Augmentation:
    """Return the augmentation without transposition, if the blind spot depends on the scan axes."""
    spot = blind_spot_of(patches, training)
    if spot is None or spot[0] == spot[1]:
        return settings
    return settings.model_copy(update={"transposition": False})


def learned(patches: PatchStore, training: Training) -> dict[str, str]:
    """Return how a model learns without clean images, for ``metrics.json`` and the report; else empty."""
    if patches.facts.noisy is None:
        return {}
    said = "learned from noisy images alone: each of two scans predicts the other (Noise2Noise)"
    spot = blind_spot_of(patches, training)
    if spot is not None:
        said = f"learned from noisy images alone: {_hidden(spot, patches, training)}"
    said += ". The model gives the mean of the possible clean images, and draws no samples"
    return {"learned": said}


def _hidden(spot: Reach, patches: PatchStore, training: Training) -> str:
    """Return in words what is hidden, and why."""
    y, x = spot
    name = "single pixels are hidden (Noise2Void)"
    if spot != (0, 0):
        name = f"pixels are hidden with {x} more on each side along x and {y} along y (structured Noise2Void)"
    found = patches.facts.noise
    if training.blind_spot is not None or found is None:
        return f"{name}, as set by `training.blind_spot`"
    return (
        f"{name}, because the measured correlation of neighbouring pixels' noise is {found.x[0]:.2f} "
        f"along x, the fast scan axis, and by {found.y[0]:.2f} along y"
    )


def hide(
    condition: Tensor, target: Tensor, spot: Reach, uniform: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Hide pixels of noisy images.

    Parameters
    ----------
    condition : Tensor
        (N, C, H, W), float32: the image in the middle, and its neighbouring slices, which are unchanged.
    target : Tensor
        (N, 1, H, W), the same image.
    spot : tuple of int
        Extent of the blind spot along y and x, in pixels.
    uniform : callable
        ``uniform(*shape)`` returns numbers in [0, 1), (N, *shape), on the condition's device.

    Returns
    -------
    tuple of Tensor
        The condition with replaced pixels, and the target, NaN where nothing is hidden.
    """
    count, channels, height, width = condition.shape
    device, middle = condition.device, channels // 2
    arms = _offsets(cross(spot, max(spot))).to(device)
    sides = (height, width)
    cells = [SPARSE * (2 * r + 1) for r in spot]
    rows, columns = (ceil(side / cell) for side, cell in zip(sides, cells, strict=True))
    corners = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    drawn = uniform(2, rows, columns)
    centre = [
        (corner.to(device) * cells[axis] + (drawn[:, axis] * (cells[axis] - 2 * spot[axis])).long()).flatten(
            1
        )
        for axis, corner in enumerate(corners)
    ]
    inside = (centre[0] < height) & (centre[1] < width)
    # position of each pixel of a blind spot, and of the source of its new value
    radius = min(max(NEAR, 2 * max(spot)), (min(sides) - 1) // 2)
    away = _offsets(~cross(spot, radius)).to(device)
    choice = away[(uniform(rows * columns, len(arms)) * len(away)).long()]
    old = [(c[:, :, None] + arms[:, axis]) for axis, c in enumerate(centre)]
    new = [(c[:, :, None] + choice[..., axis]) % sides[axis] for axis, c in enumerate(centre)]
    valid = inside[:, :, None] & (old[0] >= 0) & (old[0] < height) & (old[1] >= 0) & (old[1] < width)
    image = condition[:, middle].flatten(1)
    values = image.gather(1, (new[0] * width + new[1]).flatten(1))
    shown, answers = image.clone(), torch.full_like(image, torch.nan)
    for example in range(count):
        keep = valid[example].flatten()
        place = (old[0][example] * width + old[1][example]).flatten()[keep]
        shown[example, place] = values[example][keep]
        hidden = (centre[0][example] * width + centre[1][example])[inside[example]]
        answers[example, hidden] = target[example, 0].flatten()[hidden]
    parts = [condition[:, :middle], shown.view(count, 1, height, width), condition[:, middle + 1 :]]
    return torch.cat(parts, 1), answers.view(count, 1, height, width)


def _offsets(mask: Tensor) -> Tensor:
    """Return the positions (y, x) of a mask relative to its centre, (M, 2)."""
    return mask.nonzero() - mask.shape[0] // 2


def residual_scale(patches: PatchStore, spot: Reach) -> float:
    """Return the standard deviation between noisy pixels and their surroundings, over some training patches.

    It includes the unpredictable noise, so the network's output is of order one or smaller.
    """
    rows = patches.training[:: max(len(patches.training) // MEASURED, 1)]
    squares = []
    for row in rows:
        condition, target = map(torch.from_numpy, patches.read(np.array([row])))
        middle = condition.shape[1] // 2
        plain = surroundings(condition[:, middle : middle + 1], spot)
        squares.append(float((target - plain).square().mean()))
    return float(np.sqrt(np.mean(squares)))
