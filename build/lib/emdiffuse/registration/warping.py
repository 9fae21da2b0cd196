"""Maps between images: homographies, dense maps, and the one warp at the end.

Conventions
-----------
* Images are (y, x). A map is float32 (2, y, x): for each pixel of the fixed image, where (y, x) in the moving
  image the same tissue lies, in pixels; pixel centres have whole coordinates.
* A homography is 3 x 3 and takes (x, y, 1) of the fixed to the moving image, as OpenCV has it.
* Outside of the moving image a warped one repeats its edge; `inside` tells where that is.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Map = NDArray[np.float32]
Matrix = NDArray[np.float64]
CLIP = 3.0
"""Intensities are cut at so many times the spread, which become -1 and 1."""


def normalised(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Map an image (y, x) to [-1, 1] by its median and the spread of its middle two thirds.

    Contrast and brightness, which differ between two scans of a field, vanish.
    """
    low, middle, high = np.percentile(image, (16, 50, 84))
    spread = max((high - low) / 2, 1e-6)
    return np.clip((image - middle) / (CLIP * spread), -1, 1).astype(np.float32)


def identity(shape: tuple[int, ...]) -> Map:
    """Return the map that leaves an image of a shape (y, x) as it is."""
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))


def mapped(matrix: Matrix, places: Map) -> Map:
    """Return where a homography takes places (2, ...)."""
    y, x = places.astype(np.float64)
    to = np.einsum("ij,j...->i...", matrix, np.stack([x, y, np.ones_like(x)]))
    return np.stack([to[1] / to[2], to[0] / to[2]]).astype(np.float32)


def translation(shift: NDArray[np.floating]) -> Matrix:
    """Return the homography of a shift (y, x)."""
    return np.array([[1, 0, shift[1]], [0, 1, shift[0]], [0, 0, 1]], np.float64)


def warp(image: NDArray[np.floating], places: Map, cubic: bool = True) -> Image:
    """Return an image as seen at places (2, y, x), by cubic (Keys 1981) or linear interpolation, float32."""
    values, x, y = (np.ascontiguousarray(part, np.float32) for part in (image, places[1], places[0]))
    kernel = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return np.asarray(cv2.remap(values, x, y, kernel, borderMode=cv2.BORDER_REPLICATE), np.float32)


def inside(places: Map, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Tell which places lie within an image of a shape (y, x)."""
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
    """Return the normalised cross-correlation of two images on the valid pixels; 0 where one is flat."""
    a, b = (image[valid].astype(np.float64) for image in (one, two))
    if a.size < 2 or min(a.std(), b.std()) < 1e-9:
        return 0.0
    return float(np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std()))
