"""Restore: fill the gaps of a worker's blocks tile by tile.

Conventions
-----------
* A block is done if its chunk exists and can be read. Worker w of N owns the blocks w - 1, w - 1 + N, ...
* Reading, noise, blending and writing run in separate threads, ahead of the network or behind it.
* Tiles go through the network in batches of equal depth, within a block. On a GPU a batch is as large as
  memory allows, and is halved if it still runs out of memory.
* Beyond the volume's edges the input is mirrored.
* Images (emdiffuse-n, emdiffuse-r) are a stack of slices restored one by one, whose tiles are on the pixel
  grid of the output, `scale` times as fine as the input's. A volume denoiser also sees the slices before and
  after (`stores.neighbours`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from emdiffuse.models.description import model_link
from emdiffuse.models.inference import RestorationModel, WhiteNoise
from emdiffuse.models.processes import Batch
from emdiffuse.restoration.device_noise import device_noise
from emdiffuse.restoration.geometry import Block, BlockGrid, owned
from emdiffuse.restoration.noise import noise_field
from emdiffuse.restoration.plan import Plan, open_array_of, open_input, read_plan
from emdiffuse.restoration.slice_grid import ImageStack
from emdiffuse.runtime.devices import fitting_batch, memory_of, pinned, place_of
from emdiffuse.runtime.errors import ConfigError, StoreError
from emdiffuse.runtime.progress import logger, progress
from emdiffuse.runtime.threads import ahead, allowed, behind
from emdiffuse.stores.array import Array
from emdiffuse.stores.intensity import shown
from emdiffuse.stores.neighbours import beside
from emdiffuse.stores.resampling import enlarge
from emdiffuse.stores.volume import Volume

NOISE_THREADS = 4
"""Maximum number of threads that draw the noise of a batch on a CPU."""


class Tile(NamedTuple):
    """A tile: its gap (or image), and its position in the grid along y and x."""

    gap: int
    row: int
    column: int


def restore(
    path: Path,
    worker: int,
    workers: int,
    device: str = "auto",
    model: RestorationModel | None = None,
    batch: int | None = None,
    compilation: str | None = None,
    precision: str = "auto",
) -> None:
    """Restore the unfinished blocks that a worker owns.

    Parameters
    ----------
    path : Path
        ``plan.json``.
    worker, workers : int
        This worker, counted from 1, of how many.
    device : str
        "auto", "cpu" or a CUDA device.
    model : RestorationModel, optional
        The plan's model, if already loaded.
    batch : int, optional
        Tiles per network call; by default as many as fit into GPU memory, and one on a CPU.
    compilation : {"default", "reduce-overhead", "max-autotune"}, optional
        Compile the network, in this mode of `torch.compile`.
    precision : str
        Precision of the network; see `networks.precision`.

    Raises
    ------
    StoreError
        If the input or the model changed since the plan was made.
    ConfigError
        If not even one tile fits into the device's memory, or the network cannot be compiled.
    """
    plan = read_plan(path)
    volume, tiles, grid = open_input(plan), open_array_of(plan, plan.tiles), plan.grid
    if model_link(plan.model).hash != plan.restored_by.inputs[1].hash:
        raise StoreError(f"{plan.model}: changed since {path} was made; run the stage `plan` again")
    mine = [number for number in owned(len(grid), worker, workers) if not grid.idle(grid[number])]
    todo = [number for number in mine if not tiles.intact((0, *grid[number].index))]
    if not todo:
        logger.info("all %d blocks of worker %d are done", len(mine), worker)
        return
    model = model or RestorationModel.load(plan.model, place_of(device), precision)
    if batch is None:
        batch = _batch_for(plan, todo, volume, model)
    if compilation is not None:
        model = model.compiled(compilation)
    what = f"restoring, worker {worker} of {workers}"
    sums = restore_blocks(plan, todo, volume, model, batch)
    done = len(mine) - len(todo)
    with behind(partial(_write, tiles)) as write:
        for number in progress(todo, len(mine), what, "block", done, voxels=lambda n: grid[n].voxels):
            write(grid[number], next(sums))


def _write(tiles: Array, block: Block, sums: NDArray[np.float32]) -> None:
    """Write the whole chunk of a block, so that nothing must be read back first."""
    chunk = np.zeros(tiles.chunk, np.float32)
    chunk[:, : sums.shape[1], : sums.shape[2], : sums.shape[3]] = sums
    tiles[tiles.box((0, *block.index))] = chunk


def restore_blocks(
    plan: Plan, numbers: Sequence[int], volume: Volume, model: RestorationModel, batch: int = 1
) -> Iterator[NDArray[np.float32]]:
    """Yield the weighted partial sums of blocks, one by one.

    Parameters
    ----------
    plan : Plan
        The plan.
    numbers : sequence of int
        Numbers of the blocks.
    volume : Volume
        The registered input.
    model : RestorationModel
        The plan's model.
    batch : int
        Tiles per network call; halved if the device runs out of memory.

    Yields
    ------
    ndarray
        (quantity, z, y, x), float32, over the support of a block.

    Raises
    ------
    ConfigError
        If the device has too little memory for one tile.
    """
    done = 0
    while done < len(numbers):
        try:
            for sums in _block_sums(plan, numbers[done:], volume, model, batch):
                done += 1
                yield sums
        except torch.OutOfMemoryError:
            if batch == 1:
                raise ConfigError(
                    f"tiling.tile: not even one tile of {plan.tiling.tile} pixels fits into the memory of "
                    f"{model.device}; use smaller tiles, or another device"
                ) from None
            batch //= 2
            logger.warning("%s ran out of memory: continuing with %d tiles at once", model.device, batch)
        torch.cuda.empty_cache()


def _block_sums(
    plan: Plan, numbers: Sequence[int], volume: Volume, model: RestorationModel, batch: int
) -> Iterator[NDArray[np.float32]]:
    """Run `restore_blocks` once at a fixed batch size; raises `torch.OutOfMemoryError`."""
    grid = plan.grid

    def batches() -> Iterator[list[Tile]]:
        for number in numbers:
            yield from _batches(grid, grid[number], batch)

    conditions = (_read_batch(plan, grid, tiles, volume) for tiles in batches())
    with ahead(conditions) as condition, _noises(plan, batches(), model) as noise:

        def white(sample: int, step: int) -> torch.Tensor:
            return next(noise)

        for block in map(grid.__getitem__, numbers):
            sums = np.zeros((len(plan.quantities), *block.shape), np.float32)
            with behind(partial(_blend_batch, sums, block, grid)) as blend:
                for tiles in _batches(grid, block, batch):
                    blend(tiles, _restore_batch(plan, model, next(condition), white))
            yield sums


@contextmanager
def _noises(
    plan: Plan, batches: Iterable[list[Tile]], model: RestorationModel
) -> Iterator[Iterator[torch.Tensor]]:
    """Yield the noise of a restoration in order, drawn on the GPU, or ahead by CPU threads."""
    wanted = (
        (tiles, sample, step) for tiles in batches for sample, step in model.description.draws(plan.sampler)
    )
    if model.device.type == "cuda":  # a GPU draws noise faster than threads could supply it
        yield (_noise(plan, plan.grid, *one, model.device) for one in wanted)
        return
    with ThreadPoolExecutor(allowed(NOISE_THREADS)) as pool:
        drawn = (_noise(plan, plan.grid, *one, model.device, pool.map) for one in wanted)
        with ahead(drawn) as noise:
            yield noise


def _batch_for(plan: Plan, numbers: Sequence[int], volume: Volume, model: RestorationModel) -> int:
    """Return how many tiles fit into the device's memory, measured with a tile of the deepest gap."""
    grid, sampler, memory = plan.grid, plan.sampler, memory_of(model.device)
    largest = grid[0]
    most = prod(map(len, (largest.gaps, largest.rows, largest.columns)))
    if memory is None or most == 1:
        return 1
    # more steps or samples need no more memory
    few = {"steps": min(sampler.steps or 1, 2), "samples": min(sampler.samples, 2)}
    facts = plan.facts.model_copy(update={"sampler": sampler.model_copy(update=few)})
    short = plan.model_copy(update={"facts": facts})
    gap = max(grid[numbers[0]].gaps, key=lambda gap: len(grid.z.generated(gap)))
    tiles = [Tile(gap, 0, 0)]

    def white(sample: int, step: int) -> torch.Tensor:
        return _noise(plan, grid, tiles, sample, step, model.device)

    condition = _read_batch(plan, grid, tiles, volume)
    try:
        batch = fitting_batch(lambda: _restore_batch(short, model, condition, white), memory, most)
    except torch.OutOfMemoryError:
        batch = 1
    logger.info("%d tiles at once fit into the memory of %s", batch, model.device)
    return batch


def _batches(grid: BlockGrid, block: Block, size: int) -> Iterator[list[Tile]]:
    """Yield the tiles of a block that have slices to restore, in batches of equal depth."""
    gaps = [gap for gap in block.gaps if grid.z.generated(gap)]
    tiles = itertools.starmap(Tile, itertools.product(gaps, block.rows, block.columns))
    for _, same in itertools.groupby(tiles, lambda tile: len(grid.z.generated(tile.gap))):
        while batch := list(itertools.islice(same, size)):
            yield batch


def _restore_batch(
    plan: Plan, model: RestorationModel, batch: Batch, white: WhiteNoise
) -> list[NDArray[np.float32]]:
    """Return the plan's quantities of a batch of tiles, (N, D, tile, tile) each, in units of [-1, 1]."""
    restored, deviation = model.restore(batch, plan.sampler, white)
    made = {"restored": restored, "uncertainty": deviation}
    return [made[name].cpu().numpy() for name in plan.quantities]


def _blend_batch(
    sums: NDArray[np.float32],
    block: Block,
    grid: BlockGrid,
    tiles: list[Tile],
    values: list[NDArray[np.float32]],
) -> None:
    """Add a batch's values of each quantity, (N, D, tile, tile), to the sums of its block, in order."""
    for number, tile in enumerate(tiles):
        _blend(sums, block, grid, tile, [value[number] for value in values])


def _blend(
    sums: NDArray[np.float32], block: Block, grid: BlockGrid, tile: Tile, values: list[NDArray[np.float32]]
) -> None:
    """Add a tile's values of each quantity, (D, tile, tile), to the sums of its block, windowed."""
    (y0, y1), (x0, x1) = grid.y.support(tile.row, tile.row + 1), grid.x.support(tile.column, tile.column + 1)
    weights = np.outer(grid.y.window(tile.row), grid.x.window(tile.column))
    top, left = grid.y.starts[tile.row], grid.x.starts[tile.column]
    zs = grid.z.generated(tile.gap)
    outer = tuple(
        slice(begin - origin, end - origin)
        for begin, end, origin in zip((zs.start, y0, x0), (zs.stop, y1, x1), block.begin, strict=True)
    )
    for total, value in zip(sums, values, strict=True):
        total[outer] += weights * value[:, y0 - top : y1 - top, x0 - left : x1 - left]


def _read_batch(plan: Plan, grid: BlockGrid, tiles: Iterable[Tile], volume: Volume) -> Batch:
    """Read the condition of tiles."""
    shape = (grid.y.tile, grid.x.tile)
    conditions, positions, factors, thicknesses = [], [], [], []
    for gap, row, column in tiles:
        origin = (grid.y.starts[row], grid.x.starts[column])
        if isinstance(grid.z, ImageStack):
            slices = beside(gap, plan.slices, volume.facts.missing) if plan.context else (gap,)
            images = [read_image(volume, z, origin, shape, plan.scale) for z in slices]
            conditions.append(np.concatenate(images))
        else:
            conditions.append(read_condition(volume, grid.z.around(gap), origin, shape))
        positions.append(grid.z.positions(gap))
        width = grid.z.width(gap)
        factors.append(float(width))
        thicknesses.append(float(grid.z.thickness_of(gap)))
    known, places = (torch.from_numpy(np.stack(parts)) for parts in (conditions, positions))
    return Batch(*map(pinned, (known, places, torch.tensor(factors), torch.tensor(thicknesses))))


def _noise(
    plan: Plan,
    grid: BlockGrid,
    tiles: Sequence[Tile],
    sample: int,
    step: int,
    device: torch.device,
    each: Any = map,
) -> torch.Tensor:
    """Return the noise of tiles (N, D, H, W), cut from the global field; `each` maps over the tiles."""
    depth = len(grid.z.generated(tiles[0].gap))
    shape = (depth, grid.y.tile, grid.x.tile)
    origins = [
        (grid.z.generated(gap).start, grid.y.starts[row], grid.x.starts[column]) for gap, row, column in tiles
    ]
    seed = plan.sampler.seed
    if device.type == "cuda":
        return device_noise(seed, sample, step, origins, shape, device)
    fields = each(lambda origin: noise_field(seed, sample, step, origin, shape), origins)
    return torch.from_numpy(np.stack(list(fields)))


def read_condition(
    volume: Volume, slices: Sequence[int], origin: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the real slices that condition a gap, in a tile that may extend past the volume's edges.

    Parameters
    ----------
    volume : Volume
        The registered input.
    slices : sequence of int
        Numbers of the slices, in order.
    origin, shape : tuple of int
        The tile (y, x), in pixels; mirrored beyond the edges.

    Returns
    -------
    ndarray
        (len(slices), H, W), float32, each slice scaled to [-1, 1] by its own range.
    """
    _, height, width = volume.array.shape
    first, last = slices[0], slices[-1]
    ends = (min(origin[0] + shape[0], height), min(origin[1] + shape[1], width))
    values = volume.array[slice(first, last + 1), slice(origin[0], ends[0]), slice(origin[1], ends[1])]
    missing = [(0, shape[i] - (ends[i] - origin[i])) for i in range(2)]
    unit = shown(values, volume.intensity.at(range(first, last + 1)))
    unit = np.pad(unit, [(0, 0), *missing], mode="symmetric")
    return np.ascontiguousarray(unit[[z - first for z in slices]], np.float32)


def read_image(
    volume: Volume, z: int, origin: tuple[int, int], shape: tuple[int, int], scale: int
) -> NDArray[np.float32]:
    """Return an input image on the pixel grid of the output, in a tile that may extend past the edges.

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
        (1, H, W), float32, in [-1, 1]. An enlarged tile equals that of the whole input, except for two input
        pixels along inner borders, which are in the tile's halo.
    """
    begin = [o // scale for o in origin]
    ends = [
        min(b + n // scale, side) for b, n, side in zip(begin, shape, volume.array.shape[1:], strict=True)
    ]
    values = volume.array[slice(z, z + 1), slice(begin[0], ends[0]), slice(begin[1], ends[1])]
    unit = enlarge(shown(values, volume.intensity.at([z])), scale)
    missing = [(0, n - have) for n, have in zip(shape, unit.shape[1:], strict=True)]
    return np.ascontiguousarray(np.pad(unit, [(0, 0), *missing], mode="symmetric"))
