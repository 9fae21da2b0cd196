"""Classical interpolation and smoothing: what a restored volume or image has to beat.

Conventions
-----------
* Axes are (z, y, x). Output slices are those of `geometry.SliceGrid`: slice z is at z / factor of the real.
* Every kind passes through the real slices, and each output slice depends on four real slices at most, so
  that a part of a volume needs only the few slices around it. Behind the ends the outermost is repeated.
* Of images, ``input`` is the noisy image as it is, ``gaussian`` the same after a Gaussian of `SIGMA` pixels;
  ``nearest`` and ``cubic`` enlarge a coarse one to the pixels of the output.
* Values are rounded and clipped to the dtype of the input as a restored volume's are (`volume.cast_to`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from emdiffuse.resampling import enlarge
from emdiffuse.volume import cast_to

Kind = Literal["nearest", "linear", "cubic"]
KINDS: tuple[Kind, ...] = get_args(Kind)
IMAGE_KINDS = {"emdiffuse-n": ("input", "gaussian"), "emdiffuse-r": ("nearest", "cubic")}
"""What stands beside restored images, by task."""
SIGMA = 1.0
_EVERYTHING = (slice(None), slice(None))


class Slices(Protocol):
    """What slices are read from: a numpy array, or a `volume.Array`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (z, y, x)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""

    def __getitem__(self, box: tuple[slice, ...], /) -> NDArray[Any]:
        """Read a box."""


def kernel(kind: Kind, position: float) -> tuple[float, float, float, float]:
    """Return the weights of the four real slices around a position in a gap.

    ``nearest`` takes the slice before it when both are equally far. ``cubic`` is the cubic convolution of
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
    if kind == "nearest":
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
    factor: Fraction,
    z_range: range,
    kind: Kind,
    window: Sequence[slice] = _EVERYTHING,
) -> NDArray[Any]:
    """Interpolate output slices between real ones.

    Parameters
    ----------
    slices : array-like
        Real slices (z, y, x); only those that are needed are read, so that `z_range` and `window` bound the
        memory.
    factor : Fraction
        Distance of real slices in output slices; need not be an integer.
    z_range : range
        Output slices to make: within ``range(SliceGrid(len(slices), factor).length)``, with step 1.
    kind : str
        nearest, linear or cubic.
    window : sequence of slice
        The part of y and x to make.

    Returns
    -------
    ndarray
        (len(z_range), y, x), the dtype of `slices`; equal to the real slices where z / factor is an integer.
    """
    last = slices.shape[0] - 1
    first, stop = (
        max(floor(z_range.start / factor) - 1, 0),
        min(floor((z_range.stop - 1) / factor) + 2, last) + 1,
    )
    real = slices[(slice(first, stop), *window)]
    work = np.float64 if slices.dtype.itemsize > 2 else np.float32
    weights = np.zeros((len(z_range), len(real)), work)
    for row, z in enumerate(z_range):
        before = floor(z / factor)
        for offset, weight in zip(range(-1, 3), kernel(kind, float(z / factor - before)), strict=True):
            weights[row, min(max(before + offset, 0), last) - first] += weight
    values = np.tensordot(weights, real.astype(work), axes=1)
    return cast_to(values, slices.dtype)


def image_baseline(images: Slices, box: Sequence[slice], kind: str, scale: int) -> NDArray[Any]:
    """Smooth or enlarge images.

    Parameters
    ----------
    images : array-like
        Input images (z, y, x); only what the box needs is read.
    box : sequence of slice
        The part (z, y, x) to make, in pixels of the output.
    kind : str
        One of `IMAGE_KINDS`.
    scale : int
        Output pixels of one input pixel.

    Returns
    -------
    ndarray
        The box, in the dtype of `images`.
    """
    margin = ceil(4 * SIGMA) if kind == "gaussian" else 2
    starts = [max(part.start // scale - margin, 0) for part in box[1:]]
    stops = [
        min(-(-part.stop // scale) + margin, n) for part, n in zip(box[1:], images.shape[1:], strict=True)
    ]
    values = images[(box[0], *(slice(a, b) for a, b in zip(starts, stops, strict=True)))]
    if kind == "gaussian":
        values = cast_to(gaussian_filter(values.astype(np.float32), (0, SIGMA, SIGMA)), images.dtype)
    elif kind == "nearest":
        values = values.repeat(scale, 1).repeat(scale, 2)
    elif kind == "cubic":
        values = cast_to(enlarge(values, scale), images.dtype)
    inner = (slice(p.start - a * scale, p.stop - a * scale) for p, a in zip(box[1:], starts, strict=True))
    return values[(slice(None), *inner)]
