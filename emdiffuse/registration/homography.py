"""The coarse part of registration: a shift by phase correlation, then a homography from ORB features.

Conventions
-----------
* See `warping`. Images have the same magnification and any intensity range.
* Phase correlation (Kuglin & Hines 1975) is band-passed and whitened only by the square root of the power,
  which is robust to the noise of EM.
* ORB (Rublee et al. 2011) finds corners in the smoothed images at several magnifications; only mutual best
  matches are kept, and RANSAC (Fischler & Bolles 1981) fits the homography; if that is implausible, as in
  narrow images, a similarity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emdiffuse.registration.warping import Image, Map, Matrix, mapped, normalised, smoothed

FEATURES = 4000
LEAST_INLIERS = 16
"""Minimum number of matches for a homography; below it only the shift is used."""
TOLERANCE = 3.0
"""Largest distance, in pixels, at which a match agrees with a homography."""
MOST_STRETCHED = 1.2
"""Largest ratio by which a homography may stretch opposite sides; beyond it a similarity is fitted."""
SMOOTHING = 2.0
"""Width of the Gaussian applied before ORB, in pixels."""


@dataclass(frozen=True)
class Coarse:
    """A homography, and the number of matches that agree with it (0: from the shift alone)."""

    matrix: Matrix
    inliers: int

    def magnification(self, shape: tuple[int, ...]) -> float:
        """Return the ratio of lengths in the moving image to those in the fixed image of `shape` (y, x)."""
        y, x = mapped(self.matrix, _corners(shape)).astype(np.float64)
        return float(np.sqrt(0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / np.prod(shape)))


def shift_of(fixed: Image, moving: Image, reduced: int = 2) -> NDArray[np.float64]:
    """Return the shift (y, x) in pixels: ``moving(p + shift)`` shows what ``fixed(p)`` shows.

    Parameters
    ----------
    fixed, moving : ndarray
        (y, x); shapes may differ slightly.
    reduced : int
        Binning before the correlation, which is also the accuracy of the shift in pixels.
    """
    shape = tuple(max(a, b) // reduced for a, b in zip(fixed.shape, moving.shape, strict=True))
    spectra = []
    for image in (fixed, moving):
        small = cv2.resize(
            normalised(image),
            (image.shape[1] // reduced, image.shape[0] // reduced),
            interpolation=cv2.INTER_AREA,
        )
        window = np.outer(*(np.hanning(n + 2)[1:-1] for n in small.shape)).astype(np.float32)
        spectra.append(scipy.fft.rfft2((small - small.mean()) * window, [2 * n for n in shape]))
    cross = spectra[0].conj() * spectra[1]
    fy, fx = np.meshgrid(np.fft.fftfreq(2 * shape[0]), np.fft.rfftfreq(2 * shape[1]), indexing="ij")
    squared = (2 * np.pi) ** 2 * (fy**2 + fx**2)
    band = np.exp(-squared * 1.5**2 / 2) - np.exp(-squared * 16**2 / 2)
    surface = scipy.fft.irfft2(cross / np.sqrt(np.abs(cross) + 1e-9) * band, [2 * n for n in shape])
    place = np.array(np.unravel_index(int(surface.argmax()), surface.shape), np.float64)
    return reduced * np.where(place > np.array(shape), place - 2 * np.array(shape), place)


def homography_of(
    fixed: Image, moving: Image, around: Matrix | None = None, reach: float = np.inf
) -> Coarse | None:
    """Return the homography from ORB features, or None if too few matches agree.

    Parameters
    ----------
    fixed, moving : ndarray
        (y, x).
    around : ndarray, optional
        Expected homography; matches more than `reach` pixels from it are dropped.
    reach : float
        Pixels.
    """
    orb = cv2.ORB.create(
        nfeatures=FEATURES, scaleFactor=1.3, nlevels=6, patchSize=47, edgeThreshold=24, fastThreshold=4
    )
    found = []
    for image in (fixed, moving):
        grey = np.clip(128 + 127 * normalised(smoothed(image, SMOOTHING)), 0, 255).astype(np.uint8)
        found.append(orb.detectAndCompute(grey, None))
    if any(descriptors is None or len(descriptors) < LEAST_INLIERS for _, descriptors in found):
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(found[0][1], found[1][1])
    source = np.array([found[0][0][m.queryIdx].pt for m in matches]).reshape(-1, 2)
    target = np.array([found[1][0][m.trainIdx].pt for m in matches]).reshape(-1, 2)
    if around is not None and len(source):
        expected = mapped(around, source[:, ::-1].T)[::-1].T
        near = np.hypot(*(target - expected).T) <= reach
        source, target = source[near], target[near]
    if len(source) < LEAST_INLIERS:
        return None
    cv2.setRNGSeed(0)
    homography, agreed = cv2.findHomography(source, target, cv2.RANSAC, TOLERANCE, maxIters=5000)
    if homography is None or not _plausible(homography, fixed.shape):
        similarity, agreed = cv2.estimateAffinePartial2D(
            source, target, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE, maxIters=5000
        )
        homography = None if similarity is None else np.vstack([similarity, [0, 0, 1]])
    if homography is None or agreed.sum() < LEAST_INLIERS or not _plausible(homography, fixed.shape):
        return None
    return Coarse(np.asarray(homography, np.float64), int(agreed.sum()))


def _corners(shape: tuple[int, ...]) -> Map:
    """Return the corners (2, 4) of an image, in order around it."""
    height, width = shape
    return np.array([[0, 0, height, height], [0, width, width, 0]], np.float32)


def _plausible(matrix: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Return whether a homography keeps a rectangle nearly rectangular, by its angles and sides."""
    corners = mapped(matrix, _corners(shape)).astype(np.float64)
    sides = np.roll(corners, -1, axis=1) - corners
    lengths = np.hypot(*sides) / np.array([shape[1], shape[0]] * 2)
    turned = sides[1] * np.roll(sides[0], -1) - sides[0] * np.roll(sides[1], -1)
    sines = turned / np.maximum(np.hypot(*sides) * np.roll(np.hypot(*sides), -1), 1e-9)
    return bool(sines.min() > 0.95 and lengths.max() < MOST_STRETCHED * lengths.min())
