"""Align the slices of a volume: remove jitter and jumps, and keep oblique tissue.

Conventions
-----------
* See `warping` and `volumes`. Between neighbouring slices the tissue moves by a flow (RAFT, refined). Only
  its smooth part is used: a rigid movement, and the rest averaged over `SMOOTH` pixels.
* The sum of these movements up to slice z is the path of the tissue. Its trend over `WINDOW` slices is
  oblique tissue, and is kept; a slice is moved by the deviation of its path from the trend::

      warped(z, p) = slice(z, p + path(z, p) - trend(z, p))

* Slices are compared after reduction to at most `SIDE` pixels; paths are stored on a grid of `GRID` such
  pixels. The volume is read and written a shard at a time, and interpolated (cubic) only once, whatever the
  number of rounds.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from emdiffuse.config import Alignment
from emdiffuse.registration.flow_weights import link_of_weights
from emdiffuse.registration.homography import shift_of
from emdiffuse.registration.refinement import refined
from emdiffuse.registration.volumes import NotAligned, check_alignment
from emdiffuse.registration.warping import Image, Map, identity, smoothed, warp
from emdiffuse.runtime.atomic import scratch
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.array import Array, create_image_array
from emdiffuse.stores.intensity import cast_to
from emdiffuse.stores.provenance import made_by
from emdiffuse.stores.volume import Volume, open_volume, write_image

if TYPE_CHECKING:
    from emdiffuse.registration.raft import Flow

SIDE = 512
GRID = 16
SMOOTH = 64.0
WINDOW = 15
WINDOWS = (40.0, 24.0)
"""Windows of the refinement, in pixels; wide, as neighbouring slices show only similar tissue."""
ROUNDS = 2

logger = logging.getLogger(__name__)


def align_slices(volume: Path, alignment: Alignment, out: Path, quality: Path, figure: Path) -> None:
    """Align the slices of a volume, unless they are already aligned.

    Parameters
    ----------
    volume : Path
        The acquired OME-Zarr image.
    alignment : Alignment
        Settings of the check, and the weights of RAFT.
    out : Path
        Registered image to write; hard links to the same chunks if the volume was aligned.
    quality, figure : Path
        Measurements as JSON, after alignment if slices were moved, and a PNG.

    Raises
    ------
    DataError
        If the slices cannot be aligned; `out` is not written.
    """
    try:
        check_alignment(volume, alignment, out, quality, figure)
        return
    except NotAligned as problem:
        logger.info("%s: %s: they are aligned now", volume, problem.reason)
        before = problem.reason
    # imports torch, which an aligned volume does not need
    from emdiffuse.registration.raft import Flow

    opened = open_volume(volume)
    made = made_by(
        "register",
        opened.facts.dataset or "",
        {"method": "warp"},
        opened.made,
        link_of_weights(alignment.weights),
    )
    with scratch(out) as folder:
        moves = corrections(opened, Flow(alignment.weights))
        largest = float(np.hypot(*moves.transpose(1, 0, 2, 3)).max())
        candidate = folder / volume.name
        array = create_image_array(candidate / "0", opened.array.shape, opened.array.dtype)
        _write(opened.array, moves, array)
        told = {"slices_moved": {"reason": before, "largest": largest}}
        write_image(candidate, volume.name, opened.voxel_size, opened.facts.model_copy(update=told))
        try:
            check_alignment(candidate, alignment, out, quality, figure, made)
        except NotAligned as problem:
            raise DataError(
                f"{volume}: the slices cannot be aligned ({before}; after warping {problem.reason}); align "
                "the "
                "volume first, or raise `alignment.tolerance` of the dataset"
            ) from None
    report = json.loads(quality.read_text())
    report["conclusion"] += f" They were moved by up to {largest:.1f} pixels; before: {before}."
    write_json(quality, report)


def corrections(volume: Volume, flow: Flow) -> NDArray[np.float32]:
    """Return the displacements that align the slices.

    Parameters
    ----------
    volume : Volume
        Slices (z, y, x).
    flow : Flow
        RAFT.

    Returns
    -------
    ndarray
        float32 (z, 2, rows, columns): displacements (y, x) in pixels on an even grid over a slice, including
        the corners.
    """
    depth, height, width = volume.array.shape
    reduced = max(1, -(-max(height, width) // SIDE))
    shape = height // reduced, width // reduced
    grid = tuple(max(n // GRID, 2) for n in shape)
    moves = np.zeros((depth, 2, *grid), np.float32)

    def look(z: int) -> Image:
        box = slice(z, z + 1), slice(0, shape[0] * reduced), slice(0, shape[1] * reduced)
        image = volume.array[box][0].astype(np.float32)
        image = image.reshape(shape[0], reduced, shape[1], reduced).mean((1, 3))
        return warp(image, identity(shape) + _spread(moves[z], shape) / np.float32(reduced))

    for number in range(ROUNDS):
        steps = np.zeros_like(moves)
        before = look(0)
        for z in progress(range(1, depth), depth - 1, f"slice-to-slice flow, round {number + 1}", "slice"):
            after = look(z)
            if min(np.ptp(before), np.ptp(after)) > 0:
                steps[z] = reduced * _movement(before, after, grid, flow)
            before = after
        path = np.cumsum(steps, axis=0)
        length = min(WINDOW, depth - 1 + depth % 2)
        trend = savgol_filter(path, length, min(1, length - 1), axis=0, mode="interp")
        moves += (path - trend).astype(np.float32)
    return moves


def _movement(before: Image, after: Image, grid: tuple[int, ...], flow: Flow) -> Map:
    """Return the smooth movement of tissue from a slice to the next: (2, *grid), in pixels."""
    shift = shift_of(before, after)
    places = identity(before.shape)
    seen = warp(after, places + shift[:, None, None].astype(np.float32))
    found = refined(before, seen, flow(before, seen), WINDOWS)
    rest = found - (rigid := _rigid(found))
    smooth = np.stack([smoothed(np.clip(part, *np.percentile(part, (5, 95))), SMOOTH) for part in rest])
    total = rigid + smooth + shift[:, None, None]
    rows, columns = (np.linspace(0, n - 1, k) for n, k in zip(before.shape, grid, strict=True))
    there = np.stack(np.meshgrid(rows, columns, indexing="ij")).astype(np.float32)
    return np.stack([warp(part, there, cubic=False) for part in total])


def _rigid(flow: Map) -> Map:
    """Return the shift and small rotation that best fit a flow (2, y, x), ignoring outliers."""
    places = identity(flow.shape[1:])
    y, x = places - places.mean((1, 2), keepdims=True)
    kept = np.ones(y.shape, np.bool_)
    for _ in range(3):
        shift = flow[:, kept].mean(1)
        turn = float(np.sum(flow[1][kept] * y[kept] - flow[0][kept] * x[kept])) / float(
            np.sum(y[kept] ** 2 + x[kept] ** 2)
        )
        fitted = np.stack([shift[0] - turn * x, shift[1] + turn * y]).astype(np.float32)
        apart = np.hypot(*(flow - fitted))
        kept = apart <= 2 * np.median(apart) + 1e-3
    return fitted


def _spread(moves: Map, shape: tuple[int, ...], box: tuple[slice, ...] | None = None) -> Map:
    """Interpolate displacements from a grid to every pixel of an image, or of a box of it."""
    ys, xs = box or tuple(slice(0, n) for n in shape)
    rows, columns = (
        np.arange(part.start, part.stop) * (k - 1) / max(n - 1, 1)
        for part, n, k in zip((ys, xs), shape, moves.shape[1:], strict=True)
    )
    there = np.stack(np.meshgrid(rows, columns, indexing="ij")).astype(np.float32)
    return np.stack([warp(part, there, cubic=False) for part in moves])


def _write(source: Array, moves: NDArray[np.float32], target: Array) -> None:
    """Write the warped volume, shard by shard."""
    _, height, width = source.shape
    margin = int(np.ceil(np.abs(moves).max())) + 3
    count = int(np.prod(target.grid))
    for zs, ys, xs in progress(target.boxes(), count, "warp slices", "shard"):
        rows, columns = (
            slice(max(part.start - margin, 0), min(part.stop + margin, n))
            for part, n in ((ys, height), (xs, width))
        )
        values = source[zs, rows, columns]
        corner = np.array([rows.start, columns.start], np.float32)[:, None, None]
        start = np.array([ys.start, xs.start], np.float32)[:, None, None]
        places = identity((ys.stop - ys.start, xs.stop - xs.start)) + start - corner
        warped = [
            warp(image, places + _spread(moves[z], (height, width), (ys, xs)))
            for z, image in zip(range(zs.start, zs.stop), values, strict=True)
        ]
        target[zs, ys, xs] = cast_to(np.stack(warped), source.dtype)
