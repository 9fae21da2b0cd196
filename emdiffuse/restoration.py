"""Restore: fill the gaps of a worker's blocks, tile by tile.

Conventions
-----------
* A chunk that exists is a block that is done. Worker w of N owns the blocks w - 1, w - 1 + N, ...
* Beyond the volume's edges the input is mirrored.
* Images (emdiffuse-n, emdiffuse-r) take the same path: a stack of slices, each restored by itself, whose
  tiles lie on the pixel grid of the output, `scale` times as fine as the input's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emdiffuse.acquisition import to_unit
from emdiffuse.errors import StoreError
from emdiffuse.geometry import Block, BlockGrid, noise_field, owned
from emdiffuse.inference import RestorationModel
from emdiffuse.planning import WEIGHTS, Plan, file_hash, open_array_of, read_plan
from emdiffuse.processes import Batch
from emdiffuse.progress import logger, progress
from emdiffuse.resampling import enlarge
from emdiffuse.tasks import CONDITION_OFFSETS
from emdiffuse.volume import Volume, open_volume


def place_of(device: str) -> str:
    """Return the device that "auto" stands for: the GPU, where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def restore(
    path: Path, worker: int, workers: int, device: str = "auto", model: RestorationModel | None = None
) -> None:
    """Restore the blocks that a worker owns and that are not done.

    Parameters
    ----------
    path : Path
        ``plan.json``.
    worker, workers : int
        This worker, counted from 1, of how many.
    device : str
        "auto", "cpu" or a CUDA device.
    model : RestorationModel, optional
        The plan's model, where it is loaded already.

    Raises
    ------
    StoreError
        If the input or the model changed since the plan was made.
    """
    plan = read_plan(path)
    volume, tiles, grid = open_volume(plan.input), open_array_of(plan, plan.tiles), plan.grid
    if volume.facts.get("sources") != plan.facts["sources"]:
        raise StoreError(f"{plan.input}: changed since {path} was made; run the stage `plan` again")
    if file_hash(plan.model / WEIGHTS) != plan.weights:
        raise StoreError(f"{plan.model}: changed since {path} was made; run the stage `plan` again")
    mine = owned(len(grid), worker, workers)
    todo = [number for number in mine if not tiles.exists((number, 0, 0, 0, 0))]
    if not todo:
        logger.info("all %d blocks of worker %d are done", len(mine), worker)
        return
    model = model or RestorationModel.load(plan.model, place_of(device))
    what = f"restoring, worker {worker} of {workers}"
    for number in progress(todo, len(mine), what, "block", done=len(mine) - len(todo)):
        sums = restore_block(plan, grid, grid[number], volume, model)
        # the whole chunk is written, so that no write ever has to read what was there before
        chunk = np.zeros(tiles.chunk, np.float32)
        chunk[0, :, : sums.shape[1], : sums.shape[2], : sums.shape[3]] = sums
        tiles[(slice(number, number + 1), *(slice(0, n) for n in tiles.chunk[1:]))] = chunk


def restore_block(
    plan: Plan, grid: BlockGrid, block: Block, volume: Volume, model: RestorationModel
) -> NDArray[np.float32]:
    """Return the weighted partial sums of a block's tiles, (quantity, z, y, x), over its support."""
    sums = np.zeros((len(plan.quantities), *block.shape), np.float32)
    for gap in block.gaps:
        zs = grid.z.generated(gap)
        if not zs:
            continue
        for row in block.rows:
            for column in block.columns:
                made = _restore_tile(plan, grid, gap, row, column, volume, model)
                (y0, y1), (x0, x1) = grid.y.support(row, row + 1), grid.x.support(column, column + 1)
                weights = np.outer(grid.y.window(row), grid.x.window(column))
                top, left = grid.y.starts[row], grid.x.starts[column]
                inner = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
                outer = (
                    slice(zs.start - block.begin[0], zs.stop - block.begin[0]),
                    slice(y0 - block.begin[1], y1 - block.begin[1]),
                    slice(x0 - block.begin[2], x1 - block.begin[2]),
                )
                for total, values in zip(sums, made, strict=True):
                    total[outer] += weights * values[inner]
    return sums


def _restore_tile(
    plan: Plan, grid: BlockGrid, gap: int, row: int, column: int, volume: Volume, model: RestorationModel
) -> list[NDArray[np.float32]]:
    """Fill one gap in one tile; return the plan's quantities, (D, tile, tile) each, in units of [-1, 1]."""
    top, left = grid.y.starts[row], grid.x.starts[column]
    shape = (grid.y.tile, grid.x.tile)
    zs = grid.z.generated(gap)
    if plan.images:
        condition = read_image(volume, gap, (top, left), shape, plan.scale)
    else:
        condition = read_condition(volume, gap, (top, left), shape)
    batch = Batch(
        torch.from_numpy(condition)[None],
        torch.from_numpy(grid.z.positions(gap))[None],
        torch.full((1,), float(plan.factor)),
    )
    noise = tile_noise(plan.sampler.seed, (zs.start, top, left), (len(zs), *shape), model.device)
    mean, deviation = model.restore(batch, plan.sampler, noise)
    made = {"restored": mean, "uncertainty": deviation}
    if plan.regression:
        once = plan.sampler.model_copy(update={"steps": 1, "samples": 1})
        made["regression"] = model.restore(batch, once, noise)[0]
    return [made[name][0].cpu().numpy() for name in plan.quantities]


def tile_noise(
    seed: int, origin: tuple[int, int, int], shape: tuple[int, int, int], device: torch.device
) -> Callable[[int, int], torch.Tensor]:
    """Return the noise of a tile as a function of (sample, step): part of the global field."""

    def white(sample: int, step: int) -> torch.Tensor:
        return torch.from_numpy(noise_field(seed, sample, step, origin, shape))[None].to(device)

    return white


def read_condition(
    volume: Volume, gap: int, origin: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the real slices that condition a gap, in a tile that may reach past the volume's edges.

    Parameters
    ----------
    volume : Volume
        The registered input.
    gap : int
        The gap behind real slice `gap`.
    origin, shape : tuple of int
        The tile (y, x), in pixels; mirrored beyond the edges.

    Returns
    -------
    ndarray
        (4, H, W), float32, in [-1, 1]; slices before the first or behind the last repeat the nearest.
    """
    depth, height, width = volume.array.shape
    first, last = max(gap + CONDITION_OFFSETS[0], 0), min(gap + CONDITION_OFFSETS[-1], depth - 1)
    ends = (min(origin[0] + shape[0], height), min(origin[1] + shape[1], width))
    values = volume.array[slice(first, last + 1), slice(origin[0], ends[0]), slice(origin[1], ends[1])]
    missing = [(0, shape[i] - (ends[i] - origin[i])) for i in range(2)]
    unit = np.pad(to_unit(values, volume.facts["intensity"]), [(0, 0), *missing], mode="symmetric")
    rows = [min(max(gap + offset, 0), depth - 1) - first for offset in CONDITION_OFFSETS]
    return np.ascontiguousarray(unit[rows], np.float32)


def read_image(
    volume: Volume, z: int, origin: tuple[int, int], shape: tuple[int, int], scale: int
) -> NDArray[np.float32]:
    """Return an input image on the pixel grid of the output, in a tile that may reach past the edges.

    Parameters
    ----------
    volume : Volume
        The registered input.
    z : int
        The slice.
    origin, shape : tuple of int
        The tile (y, x), in output pixels, multiples of `scale`; mirrored beyond the edges.
    scale : int
        Output pixels of one input pixel.

    Returns
    -------
    ndarray
        (1, H, W), float32, in [-1, 1]. Enlarged images are those of the whole input, but for two input pixels
        along an inner border, which lie in the tile's halo.
    """
    begin = [o // scale for o in origin]
    ends = [
        min(b + n // scale, side) for b, n, side in zip(begin, shape, volume.array.shape[1:], strict=True)
    ]
    values = volume.array[slice(z, z + 1), slice(begin[0], ends[0]), slice(begin[1], ends[1])]
    unit = enlarge(to_unit(values, volume.facts["intensity"]), scale)
    missing = [(0, n - have) for n, have in zip(shape, unit.shape[1:], strict=True)]
    return np.ascontiguousarray(np.pad(unit, [(0, 0), *missing], mode="symmetric"))
