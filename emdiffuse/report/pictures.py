"""The images of the report: planes of the volumes, side by side and slice by slice.

Conventions
-----------
* All images of a restoration show the same region, around the middle of the volume, with the same contrast:
  percentiles of the ground truth, or of the input without one. A pixel is a voxel; in xz and yz planes z
  points down.
* The input is shown as its nearest real slice, so that the gaps are visible.
* Images are WebP, lossless unless they would exceed their budget; nothing is burned into them.
* Memory is bounded by the region shown, not by the volume.
"""

from __future__ import annotations

import base64
import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Config, Restoration
from emdiffuse.config.tasks import TASKS
from emdiffuse.evaluation.baselines import make
from emdiffuse.evaluation.methods import beside, is_beside
from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid, slice_grid
from emdiffuse.stores.volume import Volume, open_volume

QUALITIES = (None, 98, 96, 94, 92, 90, 87, 84, 80, 75, 68, 60)
"""WebP qualities, best first; None is lossless."""
BYTES_A_PIXEL = 16
"""Bytes per pixel of the region that all images together may take, with few slices in the viewer."""
PERCENTILES = (0.5, 99.5)
"""Percentiles of the truth that are shown as black and white, the same in every panel."""
SIDE = 320
"""Largest side of the region that is shown, in pixels."""
COLUMNS = ("input", "linear", "restored", "truth")
"""Volumes shown side by side, if they exist."""


@dataclass(frozen=True)
class View:
    """The volumes of a restoration, and the region that is shown.

    Attributes
    ----------
    volumes : dict
        input, restored, truth and uncertainty if they exist, and other restorations.
    grid : SliceGrid or ImageStack
        Output slices.
    box : tuple of range
        The region (z, y, x), around the middle.
    middle : tuple of int
        Where the planes intersect (z, y, x); z is a generated slice in the middle of a gap.
    contrast : tuple of float
        Intensities shown as black and white.
    """

    volumes: dict[str, Volume]
    grid: SliceGrid | ImageStack
    box: tuple[range, range, range]
    middle: tuple[int, int, int]
    contrast: tuple[float, float]

    @property
    def others(self) -> list[str]:
        """Names of other restorations of the input, as in `evaluation`."""
        return [name for name in self.volumes if is_beside(name)]

    @property
    def scale(self) -> int:
        """Output pixels of one input pixel."""
        return self.volumes["restored"].array.shape[1] // self.volumes["input"].array.shape[1]

    @property
    def cropped(self) -> bool:
        """Whether the region is only part of the slices."""
        whole = self.volumes["restored"].array.shape[1:]
        return any(len(side) < n for side, n in zip(self.box[1:], whole, strict=True))

    @property
    def reference(self) -> str:
        """Name of the volume that sets the contrast."""
        return "truth" if "truth" in self.volumes else "input"

    def read(self, name: str, box: tuple[range, range, range]) -> NDArray[np.float32]:
        """Return a box of a volume, or of the interpolated input (nearest for `input`)."""
        part = tuple(slice(r.start, r.stop) for r in box)
        if name == "input" or name not in self.volumes:
            with np.errstate(invalid="ignore"):  # without ground truth, NaN voxels were never refused
                values = make(name, self.volumes["input"].array, self.grid, part, self.scale)
        else:
            values = self.volumes[name].array[part]
        return np.nan_to_num(values.astype(np.float32))

    def plane(self, name: str, axis: int, at: int | None = None) -> NDArray[np.float32]:
        """Return the plane of the region that is perpendicular to an axis."""
        at = self.middle[axis] if at is None else at
        box = tuple(range(at, at + 1) if a == axis else r for a, r in enumerate(self.box))
        return self.read(name, (box[0], box[1], box[2])).squeeze(axis)


def open_view(config: Config, item: Restoration, truth: str | None, results: Path, budget: int) -> View:
    """Open the volumes of a restoration, and choose a region whose images fit into the budget."""
    made = results / "restored" / item.dataset
    restored = made / item.model / "restored.ome.zarr"
    given = results / "registered" / f"{item.dataset}.ome.zarr"
    if item.real_slices:
        given = made / item.real_slices / "restored.ome.zarr"
    volumes = {"input": open_volume(given), "restored": open_volume(restored)}
    if truth:
        volumes["truth"] = open_volume(results / "registered" / f"{truth}.ome.zarr")
    if (restored / "uncertainty" / "zarr.json").exists():
        volumes["uncertainty"] = open_volume(restored / "uncertainty")
    for other in config.beside(item):
        store = results / "restored" / other.dataset / other.model / "restored.ome.zarr"
        volumes[beside(other.model)] = open_volume(store)
    depth = volumes["input"].array.shape[0]
    grid: SliceGrid | ImageStack = ImageStack(depth)
    if TASKS[config.models[item.model].task].volumetric:
        grid = slice_grid(volumes["input"])
    shape = (grid.length, *volumes["restored"].array.shape[1:])
    side = min(SIDE, math.isqrt(budget // BYTES_A_PIXEL))
    starts = [max((n - side) // 2, 0) for n in shape]
    box = [range(s, min(s + side, n)) for s, n in zip(starts, shape, strict=True)]
    filled = [gap for gap in range(grid.gaps) if grid.generated(gap)]
    generated = grid.generated(filled[len(filled) // 2])
    middle = (generated[len(generated) // 2], *((r.start + r.stop) // 2 for r in box[1:]))
    reference = volumes["truth" if truth else "input"].array
    scale = 1 if truth else shape[1] // volumes["input"].array.shape[1]
    window = [slice(r.start // scale, -(-r.stop // scale)) for r in box[1:]]
    chosen = np.unique(np.linspace(0, reference.shape[0] - 1, 16).astype(int))
    sample = [reference[(slice(z, z + 1), *window)] for z in chosen.tolist()]
    values = np.concatenate(sample)
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    return View(
        volumes,
        grid,
        (box[0], box[1], box[2]),
        (middle[0], middle[1], middle[2]),
        (low, high if high > low else low + 1),
    )


def panels(
    view: View, names: list[str], budget: int, marked: NDArray[np.float32] | None = None
) -> tuple[list[dict[str, Any]], float]:
    """Return rows of images, and the difference that is shown as white.

    The rows are three planes; with ground truth, the differences and the structures in xy; and `marked`, the
    xy plane with empty regions hatched, if there are any.
    """
    voxel = view.volumes["restored"].voxel_size[2]
    rows: list[dict[str, Any]] = []
    pictures: list[NDArray[np.uint8]] = []
    top = 0.0

    def add(kind: str, at: str, cells: dict[str, NDArray[np.float32]], black: float, white: float) -> None:
        height, width = next(iter(cells.values())).shape
        bar = scale_bar(width, voxel)
        rows.append({"kind": kind, "at": at, "bar": bar, "wide": width >= 2 * height, "cells": list(cells)})
        pictures.extend(to_gray(values, black, white) for values in cells.values())

    planes = (("xy", 0),) if isinstance(view.grid, ImageStack) else (("xy", 0), ("xz", 1), ("yz", 2))
    for plane, axis in planes:
        cells = {name: view.plane(name, axis) for name in names}
        at = f"{'zyx'[axis]} = {view.middle[axis] * voxel:.4g} nm"
        add(plane, at, cells, *view.contrast)
        if axis == 0 and marked is not None:
            add("empty", at, {"restored": marked}, *view.contrast)
        if axis == 0 and "truth" in cells:
            errors = {name: np.abs(cells[name] - cells["truth"]) for name in names if name != "truth"}
            top = max(float(np.percentile(values, 99)) for values in errors.values())
            top = float(np.ceil(top)) if top > 1 else top or 1.0
            if "uncertainty" in view.volumes:
                errors["uncertainty"] = view.plane("uncertainty", 0)
            add("difference", at, errors, 0, top)
            add("structures", at, {name: _structures(cells[name], voxel) for name in names}, 0, 255)
    queue = iter(encode(pictures, budget))
    for row in rows:
        row["cells"] = [{"name": name, "image": next(queue)} for name in row["cells"]]
    return rows, top


def _structures(plane: NDArray[np.float32], voxel: float) -> NDArray[np.float32]:
    """Return the segmentation of a plane: membranes white, large dark regions grey."""
    from emdiffuse.evaluation.metrics.structures import segment

    found = segment(plane, voxel)
    return np.where(found["membranes"], 255, np.where(found["dark"], 120, 0)).astype(np.float32)


def to_gray(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """Return intensities as 8-bit grey values: linear from black (0) to white (255), clipped outside."""
    shown = np.clip(values.astype(np.float32), np.float32(black), np.float32(white))
    return np.rint((shown - np.float32(black)) * np.float32(255 / (white - black))).astype(np.uint8)


def encode(pictures: list[NDArray[np.uint8]], budget: int) -> list[str]:
    """Return grey images as data URIs, in the best quality that stays within the budget in bytes."""

    @cache
    def encoded(place: int) -> list[bytes]:
        quality = QUALITIES[place]
        options = {"lossless": True} if quality is None else {"lossless": False, "level": quality}
        colors = (np.repeat(picture[..., None], 3, axis=2) for picture in pictures)
        return [bytes(imagecodecs.webp_encode(color, **options)) for color in colors]

    last = len(QUALITIES) - 1
    best = bisect_left(range(last), True, key=lambda place: sum(map(len, encoded(place))) <= budget)
    return [f"data:image/webp;base64,{base64.b64encode(data).decode()}" for data in encoded(best)]


def picture_bytes(picture: str) -> int:
    """Return the approximate number of bytes that a data URI encodes."""
    return len(picture) * 3 // 4


def scale_bar(pixels: int, voxel: float) -> dict[str, Any]:
    """Return a scale bar for an image: 1, 2 or 5 times a power of ten, at most a third of its width.

    Returns
    -------
    dict
        percent of the image's width, and text: nm below 1000 nm, else µm.
    """
    limit = pixels * voxel / 3
    power = 10.0 ** math.floor(math.log10(limit))
    length = max(step * power for step in (1, 2, 5) if step * power <= limit * (1 + 1e-9))
    text = f"{length:g} nm" if length < 1000 else f"{length / 1000:g} µm"
    return {"percent": round(100 * length / (pixels * voxel), 3), "text": text}
