"""The viewer of the report: a small volume for each method, which the browser slices along all three axes.

Conventions
-----------
* One *sheet* per method is embedded: the xy slices of one region (z, y, x) in a single WebP image, side by
  side and row by row. The browser converts grey values back to intensities,
  ``low + grey / 255 * (high - low)``, for all planes, differences and uncertainties that it draws.
* For volumes, nearest, linear and cubic interpolation are not embedded: the browser computes them from the
  real slices and the embedded weights (`baselines.weights_of`).
* Grey values equal the intensities if these are 8-bit; otherwise they span the contrast plus a quarter of it
  on either side.
* Sheets are lossless if their budget allows; otherwise ``error`` is the root mean square error of an
  intensity.
* Memory is bounded by the region.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.baselines import weights_of
from emdiffuse.evaluation.methods import METHODS, baselines_of
from emdiffuse.report.pictures import View, encode, to_gray
from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid

DEPTH = 61
"""Maximum number of slices in the viewer."""
SIDE = 16000
"""Longest side of a sheet; WebP allows 16383."""


def viewer(view: View, task: str, white: float | None, budget: int) -> dict[str, Any]:
    """Return the viewer's data for a restoration.

    Parameters
    ----------
    view : View
        Volumes and region.
    task : str
        A key of `tasks.TASKS`.
    white : float or None
        Difference from the truth, or uncertainty, that is drawn in full colour; None without truth.
    budget : int
        Bytes that the sheets may take.

    Returns
    -------
    dict
        JSON data: names of the methods, their sheets, and their place; see ``templates/report.js``.
    """
    images = isinstance(view.grid, ImageStack)
    wanted = ("input", *(name for name in baselines_of(task) if name not in ("input", "nearest", "bm3d")))
    present = ("restored", "truth", "uncertainty")
    names = [*wanted, *view.others, *(name for name in present if name in view.volumes)]
    made = [] if images else [n for n in wanted if METHODS[n].linear_in_slices]
    embedded = [name for name in names if name not in made]
    region = _region(view, embedded, budget)
    low, high = _span(view)
    stacks: dict[str, NDArray[np.uint8]] = {}
    spans = dict.fromkeys(embedded, (low, high))
    for name in embedded:
        values = view.read(name, region)
        if name == "uncertainty":
            spans[name] = (0.0, float(values.max()) or 1.0)
        stacks[name] = to_gray(values, *spans[name])
    weights = {}
    if isinstance(view.grid, SliceGrid):
        for name in made:
            first, own = weights_of(view.grid, region[0], name)
            weights[name] = [[[int(i), round(float(row[i]), 6)] for i in np.flatnonzero(row)] for row in own]
        window = (slice(region[1].start, region[1].stop), slice(region[2].start, region[2].stop))
        real = view.volumes["input"].array[(slice(first, first + own.shape[1]), *window)]
        stacks["real"], spans["real"] = to_gray(np.nan_to_num(real), low, high), (low, high)
    columns = {name: _columns(*stack.shape) for name, stack in stacks.items()}
    sheets = [sheet(stack, columns[name]) for name, stack in stacks.items()]
    pictures = dict(zip(stacks, encode(sheets, budget), strict=True))
    error = max(
        _error(picture, plain) * (spans[name][1] - spans[name][0]) / 255
        for (name, picture), plain in zip(pictures.items(), sheets, strict=True)
    )
    if white is None and "uncertainty" in names:
        white = float(np.percentile(stacks["uncertainty"], 99)) * spans["uncertainty"][1] / 255 or 1.0
    voxel, box = view.volumes["restored"].voxel_size, (region[0], region[1], region[2])
    return {
        "names": [name for name in names if name != "uncertainty"],
        "overlays": [name for name in ("truth", "uncertainty") if name in names],
        "sheets": {
            name: {
                "image": picture,
                "low": spans[name][0],
                "high": spans[name][1],
                "slices": len(stacks[name]),
                "columns": columns[name],
            }
            for name, picture in pictures.items()
        },
        "made": weights,
        "whole": view.volumes["restored"].array.dtype.kind != "f",
        "shape": [len(extent) for extent in box],
        "start": [at - extent.start for at, extent in zip(view.middle, box, strict=True)],
        "origin": [extent.start for extent in box],
        "voxel": voxel[2],
        "contrast": view.contrast,
        "white": white,
        "error": error,
        "step": (high - low) / 255,
        "slices": _titles(view, region[0], voxel[0]),
        "volume": not images,
    }


def _region(view: View, names: list[str], budget: int) -> tuple[range, range, range]:
    """Choose as many slices around the middle as fit into the budget at the lowest quality."""
    probe = to_gray(view.plane(names[-1], 0), *view.contrast)
    smallest = len(encode([probe], 0)[0]) * 3 // 4 * len(names)
    count = max(min(DEPTH, budget // smallest, view.grid.length), 1)
    first = min(max(view.middle[0] - count // 2, 0), view.grid.length - count)
    return range(first, first + count), *view.box[1:]


def _span(view: View) -> tuple[float, float]:
    """Return the intensities of the grey values 0 and 255."""
    if view.volumes["restored"].array.dtype == np.uint8:
        return 0.0, 255.0
    black, white = view.contrast
    margin = (white - black) / 4
    return black - margin, white + margin


def _columns(depth: int, height: int, width: int) -> int:
    """Return how many slices stand side by side, for a nearly square sheet that is not too large."""
    columns = max(round(math.sqrt(depth * height / width)), 1)
    while math.ceil(depth / columns) * height > SIDE:
        columns += 1
    return min(columns, depth, max(SIDE // width, 1))


def sheet(stack: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Arrange the slices of a stack (z, y, x) side by side, row by row; the rest of the last row is black."""
    depth, height, width = stack.shape
    rows = math.ceil(depth / columns)
    padded = np.pad(stack, ((0, rows * columns - depth), (0, 0), (0, 0)))
    grid = padded.reshape(rows, columns, height, width).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width)


def _error(picture: str, plain: NDArray[np.uint8]) -> float:
    """Return the root mean square error, in grey values, of an encoded picture."""
    decoded = imagecodecs.webp_decode(base64.b64decode(picture.partition(",")[2]))
    return float(np.sqrt(np.mean((decoded[..., 0].astype(np.float32) - plain) ** 2)))


def _titles(view: View, slices: range, spacing: float) -> list[str]:
    """Return a title for each slice."""
    if isinstance(view.grid, ImageStack):
        return [f"image {z + 1} of {view.grid.length}" for z in slices]
    kinds = ["generated" if view.grid.real(z) is None else "real" for z in slices]
    return [f"z = {z * spacing:.4g} nm, {kind} slice" for z, kind in zip(slices, kinds, strict=True)]
