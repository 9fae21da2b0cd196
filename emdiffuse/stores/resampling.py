"""Enlargement of images to a finer pixel grid.

Conventions
-----------
* Pixels are areas: pixel i of an image enlarged n times covers the n-th part of pixel i // n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def enlarge(images: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """Enlarge images by cubic convolution (Keys 1981, doi 10.1109/TASSP.1981.1163711).

    Parameters
    ----------
    images : ndarray
        (..., H, W).
    scale : int
        Output pixels per input pixel along a side; 1 changes nothing.

    Returns
    -------
    ndarray
        (..., scale * H, scale * W), float32. A pixel depends on at most 4 x 4 input pixels; if some are
        outside the image, the others are weighted more.
    """
    values = np.ascontiguousarray(images, np.float32)
    if scale == 1:
        return values
    for axis in (-1, -2):
        values = _enlarge_along(values, scale, axis)
    return values


def _enlarge_along(values: NDArray[np.float32], scale: int, axis: int) -> NDArray[np.float32]:
    """Enlarge along one axis, as a sum over four neighbours."""
    length = values.shape[axis]
    at = (np.arange(length * scale) + 0.5) / scale - 0.5
    places = np.floor(at).astype(np.int64)[:, None] + np.arange(-1, 3)
    weights = _keys(np.abs(places - at[:, None])) * ((places >= 0) & (places < length))
    weights /= weights.sum(axis=1, keepdims=True)
    shape = [-1 if a == axis % values.ndim else 1 for a in range(values.ndim)]
    large = np.zeros((), np.float32)
    for place, weight in zip(np.clip(places, 0, length - 1).T, weights.astype(np.float32).T, strict=True):
        large = large + values.take(place, axis) * weight.reshape(shape)
    return large


def _keys(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of a neighbour at a distance below 2, with a = -1/2, which is exact on ramps."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights: NDArray[np.float64] = np.where(distance <= 1, near, far)
    return weights
