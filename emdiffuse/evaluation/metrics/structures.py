"""Overlap of structures segmented without learned weights: membranes, and large dark regions.

Conventions
-----------
* Planes are (rows, columns) of any real dtype, dark on bright as heavy metals stain; masks are boolean.
  Lengths are in nanometers, `voxel` is the side of a pixel.
* Nothing is tuned by hand: Otsu's threshold is computed for each segmented image, as a user would do. These
  are simple segmentations: their agreement between two images shows whether structures survive, not whether
  either is anatomically correct.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.blocks import EvaluationBlock
from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, ratio

Mask = NDArray[np.bool_]

STRUCTURES = ("membranes", "dark")
MEMBRANE, REGION = 8.0, 50.0
"""Half width of a membrane, and minimum radius of a dark region, in nm."""
SPECKLE = 4
"""Minimum area of a membrane, in squared widths."""


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
        scale of a membrane, 1.5 pixels at least) exceeds Otsu's threshold. ``dark``: regions darker than
        Otsu's threshold after smoothing that contain a disk of radius `REGION`: mitochondria, dark processes.
    """
    values = plane.astype(np.float32)
    return {"membranes": _membranes(values, voxel), "dark": _dark(values, voxel)}


def _membranes(values: NDArray[np.float32], voxel: float) -> Mask:
    """Return dark ridges."""
    sigma = max(MEMBRANE / voxel, 1.5)
    smooth, slope, bend = (_gaussian(sigma, order) for order in (0, 1, 2))
    yy, yx, xx = (_filtered(values, *pair) for pair in ((smooth, bend), (slope, slope), (bend, smooth)))
    ridge = np.maximum((yy + xx) / 2 + np.sqrt((yy - xx) ** 2 / 4 + yx**2), 0)
    from skimage.morphology import remove_small_objects

    found: Mask = remove_small_objects(_above(ridge), max_size=round(SPECKLE * sigma**2))
    return found


def _dark(values: NDArray[np.float32], voxel: float) -> Mask:
    """Return dark regions, opened by a disk."""
    radius = REGION / voxel
    smooth = _gaussian(radius / 3, 0)
    dark = _above(-_filtered(values, smooth, smooth))
    if dark.all() or not dark.any():
        return np.zeros(dark.shape, bool)
    core = _distance(dark) > radius
    if not core.any():
        return core
    opened: Mask = _distance(~core) <= radius
    return opened


def _gaussian(sigma: float, order: int) -> NDArray[np.float32]:
    """Return a Gaussian, or its first or second derivative, sampled out to four times its width."""
    reach = int(4 * sigma + 0.5)
    x = np.arange(-reach, reach + 1)
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    factor = (1, x / sigma**2, (x**2 / sigma**2 - 1) / sigma**2)[order]
    return np.asarray(kernel * factor, np.float32)


def _filtered(plane: NDArray[Any], along_x: NDArray[Any], along_y: NDArray[Any]) -> NDArray[np.float32]:
    filtered = cv2.sepFilter2D(plane, cv2.CV_32F, along_x, along_y, borderType=cv2.BORDER_REFLECT)
    return np.asarray(filtered, np.float32)


def _distance(mask: Mask) -> NDArray[np.float32]:
    """Return the distance of every pixel to the nearest pixel outside a mask, in pixels."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, np.float32)


def _above(values: NDArray[np.float32]) -> Mask:
    """Return the pixels above Otsu's threshold (256 bins); none in a constant image."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.zeros(values.shape, bool)
    from skimage.filters import threshold_otsu

    end = float(np.nextafter(np.float32(high), np.float32(np.inf)))  # include the maximum in the last bin
    counts = cv2.calcHist([values], [0], None, [256], [low, end]).ravel()
    edges = np.linspace(low, high, 257)
    return np.asarray(values > threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)), bool)


def overlap(ours: Mask, truth: Mask) -> tuple[int, int]:
    """Return the areas of intersection and union, in pixels, to be summed over tiles."""
    return int((ours & truth).sum()), int((ours | truth).sum())


class Structures(Metric):
    """Overlap of segmented structures in xy, pooled over the tiles of each plane; a costly metric."""

    measures = (
        Measure(
            "membranes_iou",
            "Membranes, IoU",
            "intersection over union of the segmented membranes with those of the truth",
            3,
            1,
        ),
        Measure(
            "dark_iou",
            "Dark regions, IoU",
            "intersection over union of the segmented dark regions (mitochondria, dark processes) with the "
            "truth",
            3,
            1,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.per_plane(*STRUCTURES, entries=(2,))

    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add intersection and union."""
        for row, mine, theirs in zip(block.costly, _segments(ours), truth.once(_segments), strict=True):
            for name in STRUCTURES:
                self.sums[name][block.places[0][row]] += overlap(mine[name], theirs[name])

    def score(self) -> Scores:
        """Return intersection over union; NaN for planes where neither has the structure."""
        return {"xy": {f"{name}_iou": ratio(*self.sums[name].T) for name in STRUCTURES}}


def _segments(piece: Piece) -> list[dict[str, Mask]]:
    return [segment(piece.plane(row), piece.setting.voxel) for row in piece.block.costly]
