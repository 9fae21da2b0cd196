"""Maps between images: homographies, dense maps, and warping.

Conventions
-----------
* Images are (y, x). A map is float32 (2, y, x): for each pixel of the fixed image, the position (y, x) of the
  same tissue in the moving image, in pixels; pixel centres have integer coordinates.
* A homography is 3 x 3 and maps (x, y, 1) of the fixed to the moving image, as in OpenCV.
* Outside the moving image, a warped image repeats its edge; `inside` returns the valid positions.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Map = NDArray[np.float32]
Matrix = NDArray[np.float64]
CLIP = 3.0
"""Multiple of the spread at which intensities are clipped; it is mapped to -1 and 1."""


def normalised(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale an image (y, x) to [-1, 1] by its median and the spread of its middle two thirds.

    This removes contrast and brightness, which differ between two scans of a field.
    """
    low, middle, high = np.percentile(image, (16, 50, 84))
    spread = max((high - low) / 2, 1e-6)
    return np.clip((image - middle) / (CLIP * spread), -1, 1).astype(np.float32)


def identity(shape: tuple[int, ...]) -> Map:
    """Return the identity map of an image of a shape (y, x)."""
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))


def mapped(matrix: Matrix, places: Map) -> Map:
    """Return positions (2, ...) mapped by a homography."""
    y, x = places.astype(np.float64)
    to = np.einsum("ij,j...->i...", matrix, np.stack([x, y, np.ones_like(x)]))
    return np.stack([to[1] / to[2], to[0] / to[2]]).astype(np.float32)


def translation(shift: NDArray[np.floating]) -> Matrix:
    """Return the homography of a shift (y, x)."""
    return np.array([[1, 0, shift[1]], [0, 1, shift[0]], [0, 0, 1]], np.float64)


def warp(image: NDArray[np.floating], places: Map, cubic: bool = True) -> Image:
    """Return a float32 image sampled at `places` (2, y, x), by cubic (Keys 1981) or linear interpolation."""
    values, x, y = (np.ascontiguousarray(part, np.float32) for part in (image, places[1], places[0]))
    kernel = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return np.asarray(cv2.remap(values, x, y, kernel, borderMode=cv2.BORDER_REPLICATE), np.float32)


def inside(places: Map, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which positions are within an image of a shape (y, x)."""
    (y, x), (height, width) = places, shape
    return (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)


def composed(first: Map, then: Map) -> Map:
    """Return ``then(first(p))``, interpolated linearly."""
    return np.stack([warp(part, first, cubic=False) for part in then])


def smoothed(image: NDArray[np.floating], sigma: float) -> Image:
    """Return an image (y, x) after a Gaussian, as float32."""
    values = np.ascontiguousarray(image, np.float32)
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.float32)


def correlation(one: NDArray[np.floating], two: NDArray[np.floating], valid: NDArray[np.bool_]) -> float:
    """Return the normalised cross-correlation of two images on the valid pixels; 0 if one is flat."""
    a, b = (image[valid].astype(np.float64) for image in (one, two))
    if a.size < 2 or min(a.std(), b.std()) < 1e-9:
        return 0.0
    return float(np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std()))
