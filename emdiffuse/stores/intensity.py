"""Intensity scaling: between stored values and the units of a network, [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def cast_to(values: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round and clip floating-point values to an integer type; other types are only converted."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def to_unit(values: ArrayLike, intensity: Mapping[str, float]) -> NDArray[np.float32]:
    """Map intensities so that `low` becomes -1 and `high` becomes 1 (or, if inverted, 1 and -1), unclipped.

    Parameters
    ----------
    values : array_like
        Intensities, of any shape and type.
    intensity : mapping
        The intensity facts of the volume.

    Returns
    -------
    ndarray
        float32, of the same shape.
    """
    low, high = intensity["low"], intensity["high"]
    sign = -1 if intensity.get("invert") else 1
    unit: NDArray[np.float32] = np.asarray(values, np.float32) - np.float32(low)
    return unit * np.float32(sign * 2 / (high - low)) - np.float32(sign)


def from_unit(values: ArrayLike, intensity: Mapping[str, float]) -> NDArray[np.float32]:
    """Map -1 to `low` and 1 to `high`: the inverse of `to_unit`, as float32, neither rounded nor clipped."""
    low, high = intensity["low"], intensity["high"]
    sign = -1 if intensity.get("invert") else 1
    unit: NDArray[np.float32] = np.asarray(values, np.float32) + np.float32(sign)
    return unit * np.float32(sign * (high - low) / 2) + np.float32(low)
