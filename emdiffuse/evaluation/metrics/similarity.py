"""Structural similarity: SSIM at every pixel, in planes of all orientations, and MS-SSIM.

Conventions
-----------
* See `emdiffuse.evaluation.metrics`. SSIM and MS-SSIM share one window: a Gaussian of 1.5 pixels, cut at 11 x
  11. Images are extended by reflection at their edges.
* Windows are applied in single precision to intensities minus the middle of their range, so that a mean SSIM
  is within 1e-6 of double precision.
"""

from __future__ import annotations

from math import prod
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.blocks import MARGIN, PLANES, EvaluationBlock, inside
from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, ratio

Image = NDArray[Any]
Map = NDArray[np.float32]

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's scales, from fine to coarse."""
_WINDOW: Map = np.asarray(cv2.getGaussianKernel(2 * MARGIN + 1, 1.5, cv2.CV_32F), np.float32)
_ONE = np.ones(1, np.float32)


def _smooth(values: Map, axis: int) -> Map:
    """Apply the window along one axis of a stack of planes."""
    smooth = np.empty_like(values)
    if axis == 1:
        for plane, out in zip(values, smooth, strict=True):
            _filter(plane, _ONE, _WINDOW, out)
        return smooth
    shape = (values.shape[0], -1) if axis == 0 else (-1, values.shape[2])
    along_x, along_y = (_ONE, _WINDOW) if axis == 0 else (_WINDOW, _ONE)
    _filter(values.reshape(shape), along_x, along_y, smooth.reshape(shape))
    return smooth


def _smooth_planes(values: Map) -> Map:
    """Apply the window in the xy planes of a stack."""
    smooth = np.empty_like(values)
    for plane, out in zip(values, smooth, strict=True):
        _filter(plane, _WINDOW, _WINDOW, out)
    return smooth


def _filter(plane: Map, along_x: Map, along_y: Map, out: Map) -> None:
    cv2.sepFilter2D(plane, cv2.CV_32F, along_x, along_y, dst=out, borderType=cv2.BORDER_REFLECT)


def _window(plane: Map) -> Map:
    return _smooth_planes(plane[None])[0]


Terms = tuple[Map, Map]


def _terms(ours: Terms, truth: Terms, product: Map, centre: float, data_range: float) -> Terms:
    """Return the two factors of SSIM at every pixel: luminance, and contrast times structure.

    Parameters
    ----------
    ours, truth : tuple of ndarray
        Windowed values minus `centre`, and windowed squares of these.
    product : ndarray
        Windowed product of the two.
    centre : float
        Intensity that was subtracted from all values.
    data_range : float
        Intensity range.
    """
    (mean_a, square_a), (mean_b, square_b) = ours, truth
    c1, c2 = np.float32((0.01 * data_range) ** 2), np.float32((0.03 * data_range) ** 2)
    cross, both = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    contrast = 2 * (product - cross) + c2
    contrast /= square_a + square_b - both + c2
    # luminance needs the means m + c, where c is the centre; contrast and structure do not
    offset = np.float32(2 * centre) * (mean_a + mean_b)
    offset += np.float32(2 * centre**2) + c1
    luminance = 2 * cross + offset
    luminance /= both + offset
    return luminance, contrast


def ssim_map(image: Image, truth: Image, data_range: float, axes: tuple[int, int] = (-2, -1)) -> Map:
    """Return the structural similarity at every pixel.

    Gaussian window of sigma 1.5 cut at 11 x 11 pixels, K1 = 0.01, K2 = 0.03, variances without Bessel's
    correction.

    Parameters
    ----------
    image, truth : ndarray
        Equal shapes; planes span `axes`, other axes stack planes.
    data_range : float
        Intensity range.
    axes : tuple of int
        The two axes that span a plane.

    Returns
    -------
    ndarray
        float32, same shape, values in [-1, 1].

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli 2004, doi 10.1109/TIP.2003.819861.
    """
    planes = [np.moveaxis(values, axes, (-2, -1)) for values in (image, truth)]
    shape = planes[0].shape
    stacks = zip(*(values.reshape(-1, *shape[-2:]) for values in planes), strict=True)
    found = np.stack([np.multiply(*_plane_terms(a, b, data_range)) for a, b in stacks])
    return np.moveaxis(found.reshape(shape), (-2, -1), axes)


def _plane_terms(image: Image, truth: Image, data_range: float) -> Terms:
    """Return the luminance and contrast factors of two planes."""
    centre = float(np.mean(truth, dtype=np.float64))
    a, b = ((values.astype(np.float64) - centre).astype(np.float32) for values in (image, truth))
    ours, theirs = ((_window(values), _window(values * values)) for values in (a, b))
    return _terms(ours, theirs, _window(a * b), centre, data_range)


def ssim(image: Image, truth: Image, data_range: float) -> float:
    """Return the mean of `ssim_map` over the pixels whose window is within the image.

    Returns
    -------
    float
        Without unit; at most 1, for identical images.
    """
    rows, columns = (inside(n) for n in truth.shape)
    return float(ssim_map(image, truth, data_range)[rows, columns].mean(dtype=np.float64))


def ms_ssim(image: Image, truth: Image, data_range: float) -> float:
    """Return the multi-scale structural similarity of two planes.

    The product, over scales, of the mean contrast and structure of SSIM to the power of `SCALE_WEIGHTS`,
    times luminance at the coarsest scale; planes are binned 2 x 2 from scale to scale. Negative
    means count as 0. Planes below 176 pixels a side have fewer scales, with weights rescaled to sum to 1.

    Parameters
    ----------
    image, truth : ndarray
        Planes of equal shape.
    data_range : float
        Intensity range.

    Returns
    -------
    float
        Without unit, in [0, 1]; 1 for identical images.

    References
    ----------
    Wang, Simoncelli and Bovik 2003, doi 10.1109/ACSSC.2003.1292216.
    """
    centre = float(np.mean(truth, dtype=np.float64))
    a, b = ((values.astype(np.float64) - centre).astype(np.float32) for values in (image, truth))
    return _over_scales(a, b, _plane_terms(image, truth, data_range), centre, data_range)


def _over_scales(a: Map, b: Map, finest: Terms, centre: float, data_range: float) -> float:
    """Return MS-SSIM of two centred planes, given the terms of SSIM at the finest scale."""
    window = 2 * MARGIN + 1
    count = max(1, sum(min(a.shape) >> scale >= window for scale in range(len(SCALE_WEIGHTS))))
    factors, terms = [], finest
    for scale in range(count):
        if scale:
            a, b = _halved(a), _halved(b)
            ours, theirs = ((_window(values), _window(values * values)) for values in (a, b))
            terms = _terms(ours, theirs, _window(a * b), centre, data_range)
        values = terms[0] * terms[1] if scale == count - 1 else terms[1]
        rows, columns = (inside(n) for n in a.shape)
        factors.append(max(float(values[rows, columns].mean(dtype=np.float64)), 0.0))
    total = sum(SCALE_WEIGHTS[:count])
    return prod(value ** (weight / total) for value, weight in zip(factors, SCALE_WEIGHTS, strict=False))


def _halved(plane: Map) -> Map:
    """Bin 2 x 2 pixels; an odd last row or column is dropped."""
    rows, columns = (n // 2 * 2 for n in plane.shape)
    half = plane[:rows:2, :columns:2] + plane[1:rows:2, :columns:2]
    half += plane[:rows:2, 1:columns:2]
    half += plane[1:rows:2, 1:columns:2]
    half *= np.float32(0.25)
    return half


class Similarity(Metric):
    """SSIM of planes in all orientations, and MS-SSIM of tiles in xy."""

    measures = (
        Measure("ssim", "SSIM", "no unit, at most 1", 3, 1),
        Measure("ms_ssim", "MS-SSIM", "no unit, at most 1", 3, 1),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.orientations = [name for name in PLANES if name in setting.lengths]
        for name in self.orientations:
            self.per_plane(f"similarity {name}", f"windows {name}", orientation=name)
        self.per_plane("scales", "voxels")

    def add(self, ours: Piece, truth: Piece, block: EvaluationBlock) -> None:
        """Add the similarity at every voxel whose window is within its plane, and MS-SSIM of tiles."""
        mine, theirs = _windowed(ours), truth.once(_windowed)
        products = _oriented(ours.centred * truth.centred, ours)
        scale = (self.setting.centre, self.setting.data_range)
        for name in self.orientations:
            axis = PLANES[name]
            first, second = (other for other in range(3) if other != axis)
            # along the axes of a plane only voxels with a whole window count, across it all planes
            kept = [block.windows[other] if other != axis else block.counted[axis] for other in (1, 2)]
            rows, columns = (slice(k[0], k[-1] + 1) if len(k) else slice(0, 0) for k in kept)
            found = np.zeros(len(block.counted[axis]))
            for row in range(len(block.counted[0])):
                pairs = [[field[row] for field in fields[name]] for fields in (mine, theirs)]
                terms = _terms(
                    (pairs[0][0], pairs[0][1]), (pairs[1][0], pairs[1][1]), products[name][row], *scale
                )
                near = (terms[0] * terms[1])[rows, columns]
                if axis == 0:
                    found[row] = near.sum(dtype=np.float64)
                    self._add_scales(ours.planes[row], truth.planes[row], terms, block, row)
                else:
                    found += near.sum(axis=2 - axis, dtype=np.float64)
            self.sums[f"similarity {name}"][block.places[axis]] += found
            self.sums[f"windows {name}"][block.places[axis]] += len(block.windows[first]) * len(
                block.windows[second]
            )

    def _add_scales(self, ours: Map, truth: Map, terms: Terms, block: EvaluationBlock, row: int) -> None:
        """Add MS-SSIM of a tile, reusing its SSIM as the finest scale."""
        y, x = (slice(own[0], own[-1] + 1) for own in block.counted[1:])
        finest = (terms[0][y, x], terms[1][y, x])
        here, size = block.places[0][row], ours.size
        value = _over_scales(ours, truth, finest, self.setting.centre, self.setting.data_range)
        self.sums["scales"][here] += value * size
        self.sums["voxels"][here] += size

    def score(self) -> Scores:
        """Return SSIM for all orientations, and MS-SSIM in xy."""
        scores = {
            name: {"ssim": ratio(self.sums[f"similarity {name}"], self.sums[f"windows {name}"])}
            for name in self.orientations
        }
        scores["xy"]["ms_ssim"] = ratio(self.sums["scales"], self.sums["voxels"])
        return scores


def _windowed(piece: Piece) -> dict[str, Terms]:
    """Return windowed values and squares of a piece, by orientation."""
    values, squares = (_oriented(field, piece) for field in (piece.centred, piece.centred**2))
    return {name: (values[name], squares[name]) for name in values}


def _oriented(values: Map, piece: Piece) -> dict[str, Map]:
    """Apply the window in the planes of each orientation, at the counted slices.

    The pass along z, which needs the other slices too, is shared by xz and yz.
    """
    counted = piece.block.counted[0]
    found = {"xy": _smooth_planes(values[counted])}
    if not piece.setting.images:
        along_z = _smooth(values, 0)[counted]
        found |= {"xz": _smooth(along_z, 2), "yz": _smooth(along_z, 1)}
    return found
