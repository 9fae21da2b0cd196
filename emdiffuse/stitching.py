"""Stitch and pyramid: add up the sums of the blocks, put the real slices back, finish the OME-Zarr volume.

Conventions
-----------
* A stitch worker owns whole shards of the output and writes each once; the sums of the blocks that meet a
  shard are added in the order of the blocks' numbers. The windows of all tiles add up to one, so that no
  division is needed.
* Real slices are copied from the input, unchanged. Generated slices are mapped from [-1, 1] to the input's
  intensities, rounded and clipped to its type. The uncertainty is in the input's intensities, float32, and 0
  in real slices.
* The volume's ``zarr.json`` is written last, by the pyramid: without it the volume is not finished.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdiffuse.acquisition import from_unit
from emdiffuse.errors import StoreError
from emdiffuse.geometry import owned
from emdiffuse.planning import Plan, open_array_of, read_plan
from emdiffuse.progress import logger, progress
from emdiffuse.volume import Array, Box, Volume, build_pyramid, cast_to, multiscale, open_volume, write_group


def stitch(path: Path, worker: int, workers: int) -> None:
    """Write the shards of level 0 that a worker owns and that are not done.

    Parameters
    ----------
    path : Path
        ``plan.json``; all blocks must be done.
    worker, workers : int
        This worker, counted from 1, of how many.

    Raises
    ------
    StoreError
        If a block is missing, or a store belongs to another plan.
    """
    plan = read_plan(path)
    volume, tiles = open_volume(plan.input), open_array_of(plan, plan.tiles)
    outputs = [open_array_of(plan, plan.restored / name / "0") for name in plan.quantities]
    grid = outputs[0].grid
    mine = [
        tuple(int(i) for i in np.unravel_index(n, grid)) for n in owned(int(np.prod(grid)), worker, workers)
    ]
    todo = [index for index in mine if not all(array.exists(index) for array in outputs)]
    if not todo:
        logger.info("all %d shards of worker %d are done", len(mine), worker)
        return
    what = f"stitching, worker {worker} of {workers}"
    for index in progress(todo, len(mine), what, "shard", done=len(mine) - len(todo)):
        box = outputs[0].box(index)
        for quantity, array in enumerate(outputs):
            array[box] = stitch_box(plan, volume, tiles, quantity, box)


def stitch_box(plan: Plan, volume: Volume, tiles: Array, quantity: int, box: Box) -> NDArray[np.generic]:
    """Return one box (z, y, x) of the restored volume (quantity 0) or the uncertainty (quantity 1)."""
    grid, nx = plan.grid, plan.grid.counts[2]
    begin = (box[0].start, box[1].start, box[2].start)
    end = (box[0].stop, box[1].stop, box[2].stop)
    sums = np.zeros([e - b for b, e in zip(begin, end, strict=True)], np.float32)
    for block in grid.overlapping(begin, end):
        number = (block.index[0] * grid.counts[1] + block.index[1]) * nx + block.index[2]
        chunk = tiles.chunk_path((number, 0, 0, 0, 0))
        if not chunk.exists():
            raise StoreError(f"{chunk}: block {number} is missing; run again with `--forcerun restore`")
        low = [max(a, b) for a, b in zip(begin, block.begin, strict=True)]
        high = [min(a, b) for a, b in zip(end, block.end, strict=True)]
        there = tuple(slice(lo - b, hi - b) for lo, hi, b in zip(low, high, block.begin, strict=True))
        here = tuple(slice(lo - b, hi - b) for lo, hi, b in zip(low, high, begin, strict=True))
        try:
            sums[here] += tiles[(slice(number, number + 1), slice(quantity, quantity + 1), *there)][0, 0]
        except StoreError:
            hint = "delete this file and run again with `--forcerun restore`"
            raise StoreError(f"{chunk}: block {number} is damaged; {hint}") from None
    intensity = volume.facts["intensity"]
    if quantity == 1:
        return sums * np.float32((intensity["high"] - intensity["low"]) / 2)
    values = cast_to(from_unit(sums, intensity), volume.array.dtype)
    for z in range(begin[0], end[0]):
        real = grid.z.real(z)
        if real is not None:
            values[z - begin[0]] = volume.array[slice(real, real + 1), box[1], box[2]][0]
    return values


def pyramid(path: Path) -> None:
    """Add the coarser levels to the restored volume, and finish it.

    Parameters
    ----------
    path : Path
        ``plan.json``; all shards of level 0 must be written.

    Raises
    ------
    StoreError
        If a shard is missing.
    """
    plan = read_plan(path)
    z, y, x = open_volume(plan.input).voxel_size
    voxel_size = (z, y / plan.scale, x / plan.scale) if plan.images else (y, y, y)
    images = []
    for name in plan.quantities:
        array = open_array_of(plan, plan.restored / name / "0")
        for index in np.ndindex(*array.grid):
            if not array.exists(index):
                raise StoreError(f"{array.path}: shard {index} is missing; run the stage `stitch` again")
        scales = build_pyramid(plan.restored / name, voxel_size)
        levels = [str(i) for i in range(len(scales))]
        own = multiscale(name, voxel_size, levels, scales)
        write_group(
            plan.restored / name, {"ome": {"version": "0.5", "multiscales": [own]}, "emdiffuse": plan.facts}
        )
        images.append(multiscale(name, voxel_size, [f"{name}/{level}" for level in levels], scales))
        logger.info("%s: %d levels", plan.restored / name, len(scales))
    write_group(plan.restored, {"ome": {"version": "0.5", "multiscales": images}, "emdiffuse": plan.facts})
