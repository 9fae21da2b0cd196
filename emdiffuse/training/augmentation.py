"""Augmentation: what is changed at random in an example before the network sees it.

Conventions
-----------
* Everything is drawn from the generator that is given, in the same order whatever is switched on, so that a
  setting changes nothing but what it says.
* Geometry, and intensity as another microscope would show it, are changed in condition and target alike;
  degradations touch the condition alone.
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
    condition: Images,
    target: Images,
    positions: Images,
    settings: Augmentation,
    random: np.random.Generator,
) -> tuple[Images, Images, Images]:
    """Change an example at random.

    Parameters
    ----------
    condition : ndarray
        (C, H, W), float32, with H = W.
    target : ndarray
        (D, H, W), float32, NaN where a slice is absent; those come last.
    positions : ndarray
        (D,), float32: positions of the target's slices in the gap.
    settings : Augmentation
        What is done, how often and how much.
    random : Generator
        Where the choices come from.

    Returns
    -------
    tuple of ndarray
        Condition, target and positions of the same shapes.
    """
    gap = len(condition) == len(CONDITION_OFFSETS)
    choices = random.random(5)
    if settings.flips and gap and choices[0] < 0.5:
        depth = int((~np.isnan(positions)).sum())
        condition = condition[::-1]
        target = np.concatenate([target[:depth][::-1], target[depth:]])
        positions = np.concatenate([1 - positions[:depth][::-1], positions[depth:]])
    condition, target = _turned(condition, target, settings, choices)
    degraded = _degraded(condition, gap, settings, random)
    return *_toned(degraded, target, settings, random.random(3)), positions


def _turned(
    condition: Images, target: Images, settings: Augmentation, choices: NDArray[np.float64]
) -> tuple[Images, Images]:
    """Flip along y and x, transpose, and turn by 0 to 3 quarters."""
    images = [condition, target]
    for axis in (1, 2):
        if settings.flips and choices[axis] < 0.5:
            images = [np.flip(values, axis) for values in images]
    if settings.transposition and choices[3] < 0.5:
        images = [values.transpose(0, 2, 1) for values in images]
    if settings.quarter_turns:
        images = [np.rot90(values, int(4 * choices[4]), axes=(1, 2)) for values in images]
    return images[0], images[1]


def _toned(
    condition: Images, target: Images, settings: Augmentation, choices: NDArray[np.float64]
) -> tuple[Images, Images]:
    """Change gain and offset of condition and target alike, and invert their contrast."""
    gain, offset, inverted = choices
    slope = np.float32((-1 if inverted < settings.inversion else 1) * (1 + settings.gain * (2 * gain - 1)))
    shift = np.float32(settings.gain * (2 * offset - 1) / 2)
    if slope == 1 and shift == 0:
        return condition, target
    return slope * condition + shift, slope * target + shift


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
