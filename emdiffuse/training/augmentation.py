"""Augmentation: what is changed at random in an example before the network sees it.

Conventions
-----------
* Everything is drawn from the generator that is given, in the same order whatever is switched on, so that a
  setting changes nothing but what it says.
* Geometry is changed in condition and target alike; degradations touch the condition alone.
* Intensities are in [-1, 1]. An example of a gap has its real slices as condition, that of an image has one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from emdiffuse.config import Augmentation
from emdiffuse.config.tasks import CONDITION_OFFSETS

Images = NDArray[np.float32]


def augment(
    condition: Images, target: Images, settings: Augmentation, random: np.random.Generator
) -> tuple[Images, Images]:
    """Change an example at random.

    Parameters
    ----------
    condition : ndarray
        (C, H, W), float32, with H = W.
    target : ndarray
        (D, H, W), float32, NaN where a slice is absent; those come last.
    settings : Augmentation
        What is done, how often and how much.
    random : Generator
        Where the choices come from.

    Returns
    -------
    tuple of ndarray
        Condition and target of the same shapes.
    """
    gap = len(condition) == len(CONDITION_OFFSETS)
    condition, target = _turned(condition, target, gap, settings, random.random(5))
    return _degraded(condition, gap, settings, random), target


def _turned(
    condition: Images, target: Images, gap: bool, settings: Augmentation, choices: NDArray[np.float64]
) -> tuple[Images, Images]:
    """Flip along z (gaps), y and x, transpose, and turn by 0 to 3 quarters."""
    if settings.flips and gap and choices[0] < 0.5:
        depth = int((~np.isnan(target[:, 0, 0])).sum())
        condition, target = condition[::-1], np.concatenate([target[:depth][::-1], target[depth:]])
    images = [condition, target]
    for axis in (1, 2):
        if settings.flips and choices[axis] < 0.5:
            images = [np.flip(values, axis) for values in images]
    if settings.transposition and choices[3] < 0.5:
        images = [values.transpose(0, 2, 1) for values in images]
    if settings.quarter_turns:
        images = [np.rot90(values, int(4 * choices[4]), axes=(1, 2)) for values in images]
    return images[0], images[1]


def _degraded(condition: Images, gap: bool, settings: Augmentation, random: np.random.Generator) -> Images:
    """Blur, change the contrast, add noise; of gaps, take outer slices away and make one brighter."""
    first, last, blurred, share = random.random(4)
    slope, offset, jump = 2 * random.random(3) - 1
    number = int(random.integers(len(condition)))
    out = condition.copy()
    if settings.blur > blurred:
        out = gaussian_filter(out, (0, settings.blur_radius, settings.blur_radius))
    if settings.contrast:
        out = out * np.float32(1 + settings.contrast * slope) + np.float32(settings.contrast * offset)
    if settings.noise:
        out += np.float32(settings.noise * share) * random.standard_normal(out.shape, np.float32)
    if gap:
        out[number] += np.float32(settings.brightness_jump * jump)
        if settings.missing_slice > first:
            out[0] = out[1]
        if settings.missing_slice > last:
            out[3] = out[2]
    return out
