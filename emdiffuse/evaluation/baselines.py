"""Classical interpolation and smoothing: the baselines that a restoration has to beat.

Conventions
-----------
* Axes are (z, y, x). `geometry.SliceGrid` places output slices relative to the real ones: thin real slices
  are output slices, thick ones are at the centre of their thickness.
* Every kind passes through the real slices. Each output slice depends on at most four real slices (`2 *
  REACH` for the spline), so a part of a volume needs only the few slices around it. Beyond the ends the
  outermost slice is repeated.
* ``spline``, for thick slices, has the least curvature of all volumes that average to the real slices.
* ``flow`` moves the two slices of a gap along the optical flow between them, and blends them.
* For images, ``input`` is the noisy image, ``gaussian`` the same after a Gaussian of `SIGMA` pixels, ``nlm``
  after non-local means, and ``bm3d`` after BM3D, if that library is installed (its licence is for
  non-commercial use); ``nearest`` and ``cubic`` enlarge a coarse image to the pixels of the output.
* A part equals the same part of the whole, except for ``flow``, ``nlm`` and ``bm3d``, which see only `MARGIN`
  pixels around it to estimate flow or noise.
* Values are rounded and clipped to the dtype of the input like those of a restored volume (`volume.cast_to`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid
from emdiffuse.stores.intensity import cast_to
from emdiffuse.stores.resampling import enlarge

DENOISERS = ("gaussian", "nlm", "bm3d")
REACH = 6
"""Real slices on each side of a gap that the spline uses; farther ones weigh less than 1/1000."""
SIGMA = 1.0
MARGIN = 32
_EVERYTHING = (slice(None), slice(None))


class Slices(Protocol):
    """A source of slices: a numpy array or a `volume.Array`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (z, y, x)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""

    def __getitem__(self, box: tuple[slice, ...], /) -> NDArray[Any]:
        """Read a box."""


def make(
    name: str, source: Slices, grid: SliceGrid | ImageStack, box: Sequence[slice], scale: int
) -> NDArray[Any]:
    """Return a part of a baseline's result.

    Parameters
    ----------
    name : str
        A baseline of `emdiffuse.evaluation.methods`.
    source : array-like
        Input (z, y, x): the real slices of a volume, or images.
    grid : SliceGrid or ImageStack
        Output slices.
    box : sequence of slice
        Part to compute (z, y, x), in voxels of the output.
    scale : int
        Output pixels of one input pixel.

    Returns
    -------
    ndarray
        The box, in the dtype of the input.
    """
    if isinstance(grid, ImageStack):
        return image_baseline(source, box, name, scale)
    z, *window = box
    return interpolate(source, grid, range(z.start, z.stop), name, window)


def kernel(kind: str, position: float) -> tuple[float, float, float, float]:
    """Return the weights of the four real slices around a position in a gap.

    ``nearest`` takes the slice before if both are equally far. ``cubic`` is the cubic convolution of
    Keys 1981 (doi 10.1109/TASSP.1981.1163711) with a = -1/2, which is the Catmull-Rom spline.

    Parameters
    ----------
    kind : str
        nearest, linear or cubic.
    position : float
        From 0 (the real slice before) to 1 (the one after).

    Returns
    -------
    tuple of float
        Weights of the second slice before, the one before, the one after and the second after, with sum 1.
    """
    t = position
    if kind in ("input", "nearest"):
        return (0, 1, 0, 0) if t <= 0.5 else (0, 0, 1, 0)
    if kind == "linear":
        return (0, 1 - t, t, 0)
    return (
        t * (t * (2 - t) - 1) / 2,
        (t * t * (3 * t - 5) + 2) / 2,
        t * (t * (4 - 3 * t) + 1) / 2,
        t * t * (t - 1) / 2,
    )


def interpolate(
    slices: Slices,
    grid: SliceGrid,
    z_range: range,
    kind: str,
    window: Sequence[slice] = _EVERYTHING,
) -> NDArray[Any]:
    """Interpolate output slices between real ones.

    Parameters
    ----------
    slices : array-like
        Real slices (z, y, x); only those needed are read, so that `z_range` and `window` bound the
        memory.
    grid : SliceGrid
        Position of the output slices relative to the real ones.
    z_range : range
        Output slices to compute: within ``range(grid.length)``, with step 1.
    kind : str
        nearest (or input: the same), linear, cubic, flow or spline.
    window : sequence of slice
        The part of y and x to compute.

    Returns
    -------
    ndarray
        (len(z_range), y, x), in the dtype of `slices`; real slices are unchanged.
    """
    if kind == "flow":
        return _along_flow(slices, grid, z_range, window)
    first, weights = weights_of(grid, z_range, kind)
    real = slices[(slice(first, first + weights.shape[1]), *window)]
    work = np.float64 if slices.dtype.itemsize > 2 else np.float32
    values = np.tensordot(weights.astype(work), real.astype(work), axes=1)
    return cast_to(values, slices.dtype)


def weights_of(grid: SliceGrid, z_range: range, kind: str) -> tuple[int, NDArray[np.float64]]:
    """Return the first real slice used, and the weights (output slices, real slices).

    Parameters
    ----------
    grid : SliceGrid
        Position of the output slices relative to the real ones.
    z_range : range
        Output slices, with step 1.
    kind : str
        nearest, linear, cubic or spline.
    """
    if kind == "spline":
        return _spline_weights(grid, z_range)
    gaps = [grid.gap_of(z) for z in z_range]
    first, stop = grid.around(gaps[0])[0], grid.around(gaps[-1])[-1] + 1
    weights = np.zeros((len(z_range), stop - first))
    for row, (z, gap) in enumerate(zip(z_range, gaps, strict=True)):
        t = min(max(float(grid.position(gap, z)), 0.0), 1.0)
        for index, weight in zip(grid.around(gap), kernel(kind, t), strict=True):
            weights[row, index - first] += weight
    return first, weights


def _spline_weights(grid: SliceGrid, z_range: range) -> tuple[int, NDArray[np.float64]]:
    """Return the weights of the average-preserving spline; see `weights_of`."""
    gaps = [grid.gap_of(z) for z in z_range]
    splines = {gap: _spline(grid, gap) for gap in gaps}
    first = min(real[0] for real, _ in splines.values())
    stop = max(real[-1] for real, _ in splines.values()) + 1
    weights = np.zeros((len(z_range), stop - first))
    for row, (z, gap) in enumerate(zip(z_range, gaps, strict=True)):
        real, own = splines[gap]
        weights[row, np.array(real) - first] = own[z - grid.first(gap)]
    return first, weights


@lru_cache(maxsize=256)
def _spline(grid: SliceGrid, gap: int) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return the real slices around a gap, and their weights in each of its output slices.

    The slices f minimize the curvature (sum of squared second differences) subject to the averages v, and
    solve ``[[D'D, M'], [M, 0]] [f, multipliers] = [0, v]``, where M averages over each real slice. This is
    the discrete form of a spline through the cumulative sums.
    """
    near = grid.good[max(gap + 1 - REACH, 0) : gap + 1 + REACH]
    windows = [grid.integrated(real) for real in near]
    begin, end = windows[0][0], windows[-1][0] + len(windows[-1][1])
    count = end - begin
    averages = np.zeros((len(near), count))
    for row, (start, weights) in enumerate(windows):
        averages[row, start - begin : start - begin + len(weights)] = weights
    curvature = np.diff(np.eye(count), 2, axis=0)
    none = np.zeros((len(near), len(near)))
    system = np.block([[curvature.T @ curvature, averages.T], [averages, none]])
    solution = np.linalg.solve(system, np.eye(len(system))[:, count:])[:count]
    return tuple(near), solution[grid.first(gap) - begin : grid.first(gap + 1) - begin]


def _along_flow(slices: Slices, grid: SliceGrid, z_range: range, window: Sequence[slice]) -> NDArray[Any]:
    """Interpolate output slices along the optical flow between the real ones; see `interpolate`."""
    spans = [w.indices(n)[:2] for w, n in zip(window, slices.shape[1:], strict=True)]
    outer = [
        slice(max(a - MARGIN, 0), min(b + MARGIN, n))
        for (a, b), n in zip(spans, slices.shape[1:], strict=True)
    ]
    inner = tuple(slice(a - o.start, b - o.start) for (a, b), o in zip(spans, outer, strict=True))
    planes = []
    for gap, members in itertools.groupby(z_range, grid.gap_of):
        before, after = (slices[(slice(z, z + 1), *outer)][0] for z in grid.around(gap)[1:3])
        between = Between(before.astype(np.float32), after.astype(np.float32))
        planes += [between.at(min(max(float(grid.position(gap, z)), 0.0), 1.0))[inner] for z in members]
    return cast_to(np.stack(planes), slices.dtype)


class Between:
    """Two slices, and interpolation along the optical flow between them.

    Parameters
    ----------
    first, second : ndarray
        Planes of equal shape, float32.

    Notes
    -----
    The flow from an intermediate slice to either is combined from the two flows between the slices, assuming
    that points move in straight lines (Jiang et al. 2018, doi 10.1109/CVPR.2018.00938, equation 4).
    """

    def __init__(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> None:
        self.first, self.second = first, second
        self.forward: NDArray[np.float32] | None = None
        self.backward: NDArray[np.float32] | None = None

    def at(self, t: float) -> NDArray[np.float32]:
        """Return the slice at t, from 0 (the first) to 1 (the second)."""
        if t in (0, 1):
            return self.second if t else self.first
        if self.forward is None or self.backward is None:
            self.forward, self.backward = (
                slice_flow(self.first, self.second),
                slice_flow(self.second, self.first),
            )
        to_first = t * (t * self.backward - (1 - t) * self.forward)
        to_second = (1 - t) * ((1 - t) * self.forward - t * self.backward)
        blend: NDArray[Any] = (1 - t) * _moved(self.first, to_first) + t * _moved(self.second, to_second)
        return blend.astype(np.float32)


def slice_flow(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the optical flow from one slice to the next, by dense inverse search.

    Parameters
    ----------
    first, second : ndarray
        Planes of equal shape; below 16 pixels a side no motion is found.

    Returns
    -------
    ndarray
        (H, W, 2), displacement along x and y, in pixels, from a pixel in the first to the second.

    References
    ----------
    Kroeger, Timofte, Dai and Van Gool 2016, doi 10.1007/978-3-319-46493-0_29; OpenCV's implementation.
    """
    if min(first.shape) < 16:
        return np.zeros((*first.shape, 2), np.float32)
    low, high = float(min(first.min(), second.min())), float(max(first.max(), second.max()))
    scale = 255 / (high - low) if high > low else 0.0
    gray = [np.rint((plane - low) * scale).astype(np.uint8) for plane in (first, second)]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(method.calc(gray[0], gray[1], np.zeros((*first.shape, 2), np.float32)), np.float32)


def _moved(plane: NDArray[np.float32], flow: NDArray[Any]) -> NDArray[np.float32]:
    """Return a plane sampled where the flow points to, with cubic interpolation."""
    y, x = np.mgrid[: plane.shape[0], : plane.shape[1]].astype(np.float32)
    moved = cv2.remap(
        plane, x + flow[..., 0], y + flow[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.float32)


def denoised(image: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """Denoise a plane by a classical method.

    Parameters
    ----------
    image : ndarray
        One plane.
    kind : str
        ``gaussian``; ``nlm``, non-local means of 5 x 5 patches within 6 pixels (Buades et al. 2005, doi
        10.1109/CVPR.2005.38; scikit-image's fast mode, filter strength 0.8 times the noise); or ``bm3d``
        (Dabov et al. 2007, doi 10.1109/TIP.2007.901238). The latter two use `noise_of` the plane.
    """
    plane = image.astype(np.float32)
    if kind == "gaussian":
        from scipy.ndimage import gaussian_filter

        return np.asarray(gaussian_filter(plane, SIGMA), np.float32)
    noise = noise_of(plane)
    if kind == "nlm":
        from skimage.restoration import denoise_nl_means

        return np.asarray(
            denoise_nl_means(plane, 5, 6, h=0.8 * noise, sigma=noise, fast_mode=True), np.float32
        )
    from bm3d import bm3d

    return np.asarray(bm3d(plane, noise), np.float32)


def noise_of(plane: NDArray[Any]) -> float:
    """Return the standard deviation of the noise, from the median of diagonal Haar wavelets.

    The larger estimate of the two finest scales is used (Donoho and Johnstone 1994, doi
    10.1093/biomet/81.3.425, use the finest): registration or the microscope may have smoothed the finest.
    """
    found = []
    for _ in range(2):
        rows, columns = (n // 2 * 2 for n in plane.shape)
        a, b, c, d = (plane[i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1))
        found.append(float(np.median(np.abs(a - b - c + d))) / 2 / 0.6745)
        plane = (a + b + c + d) / 2
    return max(*found, 1e-6)


def image_baseline(images: Slices, box: Sequence[slice], kind: str, scale: int) -> NDArray[Any]:
    """Smooth or enlarge images.

    Parameters
    ----------
    images : array-like
        Input images (z, y, x); only the part that the box needs is read.
    box : sequence of slice
        Part to compute (z, y, x), in pixels of the output.
    kind : str
        A baseline of images.
    scale : int
        Output pixels of one input pixel.

    Returns
    -------
    ndarray
        The box, in the dtype of `images`.
    """
    margin = MARGIN if kind in DENOISERS else 2
    starts = [max(part.start // scale - margin, 0) for part in box[1:]]
    stops = [
        min(-(-part.stop // scale) + margin, n) for part, n in zip(box[1:], images.shape[1:], strict=True)
    ]
    values = images[(box[0], *(slice(a, b) for a, b in zip(starts, stops, strict=True)))]
    if kind in DENOISERS:
        values = cast_to(np.stack([denoised(plane, kind) for plane in values]), images.dtype)
    elif kind in ("input", "nearest"):
        values = values.repeat(scale, 1).repeat(scale, 2)
    elif kind == "cubic":
        values = cast_to(enlarge(values, scale), images.dtype)
    inner = (slice(p.start - a * scale, p.stop - a * scale) for p, a in zip(box[1:], starts, strict=True))
    return values[(slice(None), *inner)]
