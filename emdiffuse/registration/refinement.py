"""Sub-pixel refinement of a smooth flow by least squares on the images.

Conventions
-----------
* See `warping`; flows are (2, y, x) as in `raft`.
* Least squares in Gaussian windows (Lucas & Kanade 1981), with the gradient of the fixed image only (inverse
  compositional: Baker & Matthews 2004). That is usually the clean image; noise in the gradient would shrink
  the steps.
* Both images are first smoothed and locally normalised, because contrast and brightness of two scans differ.
  Window sums and steps are computed at every `GRID`-th pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from emdiffuse.registration.warping import Image, Map, identity, inside, smoothed, warp

SIGMA = 0.8
"""Width of the smoothing Gaussian, in pixels."""
WINDOWS = (40.0, 24.0, 14.0)
"""Widths of successive Gaussian windows, in pixels: wide ones capture more, narrow ones are more precise."""
CONTEXT = 24.0
"""Width of the Gaussian for local mean and contrast, in pixels."""
ITERATIONS = 4
"""Steps per window."""
DAMPING = 0.03
"""Regularization, as a fraction of the mean gradient power: without structure the flow does not change."""
LARGEST_STEP = 1.0
"""Largest step of an iteration, in pixels."""
GRID = 4


def refined(fixed: Image, moving: Image, flow: Map, windows: Sequence[float] = WINDOWS) -> Map:
    """Refine a flow that is off by about a pixel.

    Parameters
    ----------
    fixed, moving : ndarray
        (y, x), of any range.
    flow : ndarray
        Initial flow (2, y, x).
    windows : sequence of float
        Widths of the Gaussian windows, in pixels.
    """
    target, source = (_flattened(smoothed(image, SIGMA)) for image in (fixed, moving))
    gradient = [np.asarray(part, np.float32) for part in np.gradient(target)]
    places = identity(fixed.shape)
    for window in np.repeat(windows, ITERATIONS):
        at = places + flow
        difference = warp(source, at, cubic=False) - target
        weight = inside(at, moving.shape) / (1 + difference**2)
        step = _step(gradient, difference, weight, float(window))
        moved = (part + _enlarged(own, part.shape) for part, own in zip(flow, step, strict=True))
        flow = np.stack([_enlarged(_windowed(part, window / 3), part.shape) for part in moved])
    return flow


def _step(gradient: Sequence[Image], difference: Image, weight: Image, window: float) -> Map:
    """Return the least-squares step (2, rows, columns) at every `GRID`-th pixel."""
    yy, yx, xx = (_windowed(weight * gradient[a] * gradient[b], window) for a, b in ((0, 0), (0, 1), (1, 1)))
    ry, rx = (_windowed(weight * part * difference, window) for part in gradient)
    damping = DAMPING * float((yy + xx).mean() / 2) + 1e-9
    yy, xx = yy + damping, xx + damping
    step = np.stack([yx * rx - xx * ry, yx * ry - yy * rx]) / (yy * xx - yx**2)
    return np.clip(step, -LARGEST_STEP, LARGEST_STEP)


def _windowed(values: NDArray[np.floating], sigma: float) -> Image:
    """Return Gaussian means at every `GRID`-th pixel."""
    shape = tuple(-(-n // GRID) for n in values.shape)
    missing = [(0, s * GRID - n) for s, n in zip(shape, values.shape, strict=True)]
    padded = np.pad(values.astype(np.float32), missing, mode="edge")
    means = padded.reshape(shape[0], GRID, shape[1], GRID).mean((1, 3))
    return smoothed(means, sigma / GRID)


def _enlarged(values: Image, shape: tuple[int, ...]) -> Image:
    """Interpolate values from every `GRID`-th pixel to all pixels."""
    height, width = (n * GRID for n in values.shape)
    large = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large[: shape[0], : shape[1]], np.float32)


def _flattened(image: Image) -> Image:
    """Return an image with local mean 0 and local contrast 1."""
    centred = image - smoothed(image, CONTEXT)
    spread = np.sqrt(smoothed(centred**2, CONTEXT))
    return np.asarray(centred / (spread + 0.1 * float(spread.mean()) + 1e-6), np.float32)
