"""What a biologist looks for, segmented without any learned weights: membranes, and large dark regions.

Conventions
-----------
* Planes are (rows, columns) of any real dtype, dark on bright as heavy metals stain; masks are boolean.
  Lengths are in nanometers, `voxel` is the side of a pixel.
* Nothing is tuned to an image: thresholds are Otsu's, of the very image that is segmented, so that each
  method is treated as a user would treat it. These are simple segmentations: their agreement between two
  images says whether structures survive, not whether either is anatomically right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_objects

Mask = NDArray[np.bool_]

STRUCTURES = ("membranes", "dark")
MEMBRANE, REGION = 8.0, 50.0
"""Half width of a membrane, and radius below which a dark region is not counted, in nm."""
SPECKLE = 4
"""Membranes of an area below this many squared widths are left out."""


def segment(plane: NDArray[Any], voxel: float) -> dict[str, Mask]:
    """Segment a plane.

    Parameters
    ----------
    plane : ndarray
        Intensities.
    voxel : float
        Side of a pixel, in nm.

    Returns
    -------
    dict
        ``membranes``: where the curvature across a dark ridge (the larger eigenvalue of the Hessian at the
        scale of a membrane, 1.5 pixels at least) passes Otsu's threshold. ``dark``: what is darker than
        Otsu's threshold after smoothing, and holds a disk of `REGION`: mitochondria, dark processes.
    """
    values = plane.astype(np.float32)
    return {"membranes": _membranes(values, voxel), "dark": _dark(values, voxel)}


def _membranes(values: NDArray[np.float32], voxel: float) -> Mask:
    """Return dark ridges."""
    sigma = max(MEMBRANE / voxel, 1.5)
    yy, yx, xx = (gaussian_filter(values, sigma, order=order) for order in ((2, 0), (1, 1), (0, 2)))
    ridge = np.maximum((yy + xx) / 2 + np.sqrt((yy - xx) ** 2 / 4 + yx**2), 0)
    found: Mask = remove_small_objects(_above(ridge), max_size=round(SPECKLE * sigma**2))
    return found


def _dark(values: NDArray[np.float32], voxel: float) -> Mask:
    """Return dark regions, opened by a disk."""
    radius = REGION / voxel
    dark = _above(-gaussian_filter(values, radius / 3))
    if dark.all() or not dark.any():
        return np.zeros(dark.shape, bool)
    core = distance_transform_edt(dark) > radius
    if not core.any():
        return core
    opened: Mask = distance_transform_edt(~core) <= radius
    return opened


def _above(values: NDArray[Any]) -> Mask:
    """Return what passes Otsu's threshold; nothing in a constant image."""
    if values.min() == values.max():
        return np.zeros(values.shape, bool)
    return np.asarray(values > threshold_otsu(values), bool)


def overlap(ours: Mask, truth: Mask) -> tuple[int, int]:
    """Return the areas of intersection and union, in pixels, which add up over tiles."""
    return int((ours & truth).sum()), int((ours | truth).sum())
