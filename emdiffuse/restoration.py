"""Plan and restore: cut the work into blocks, and fill the gaps of each block tile by tile.

Conventions
-----------
* The *plan* says all that a worker needs: input, model, tiling, sampler, and the hash of these. Making a plan
  wipes what another plan left; workers only open what the plan's stores are, and refuse stores of another
  hash.
* The *tile store* is one array (block, quantity, z, y, x), float32, one chunk a block: the weighted partial
  sums of the block's tiles over its support (`geometry.Block`). Quantity 0 is the mean over the samples, in
  [-1, 1]; quantity 1, with more than one sample, their standard deviation. Real slices are left at 0:
  stitching takes them from the input.
* A chunk that exists is a block that is done. Worker w of N owns the blocks w - 1, w - 1 + N, ...
* Beyond the volume's edges the input is mirrored.
* Images (emdiffuse-n, emdiffuse-r) take the same path: a stack of slices, each restored by itself, whose
  tiles lie on the pixel grid of the output, `scale` times as fine as the input's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emdiffuse.acquisition import to_unit
from emdiffuse.atomic import write_atomically
from emdiffuse.config import Restoration, Sampler, Tiling, anisotropy_factor
from emdiffuse.errors import DataError, StoreError
from emdiffuse.geometry import Block, BlockGrid, ImageStack, SliceGrid, TileAxis, noise_field, owned
from emdiffuse.inference import RestorationModel, differ, estimator, resolve, trained_for
from emdiffuse.networks.weights import load_description
from emdiffuse.processes import Batch
from emdiffuse.progress import logger, progress
from emdiffuse.resampling import enlarge
from emdiffuse.settings import settings_hash
from emdiffuse.tasks import CONDITION_OFFSETS, TASKS
from emdiffuse.volume import Array, Volume, create_array, create_image_array, open_volume

WEIGHTS = "model.safetensors"
QUANTITIES = ("restored", "uncertainty")


@dataclass(frozen=True)
class Plan:
    """What is to be done, read from ``plan.json``.

    Attributes
    ----------
    folder : Path
        Where the plan lies, with the tile store and the restored volume beside it.
    hash : str
        Identifies input, model and settings.
    input, model : Path
        The registered volume and the folder of the model.
    weights : str
        SHA-256 of the model's weights.
    factor : Fraction
        Anisotropy factor; 1 for images.
    images : bool
        Whether each slice is restored by itself, rather than gaps between slices.
    scale : int
        Output pixels of one input pixel along y and x.
    slices : int
        Slices of the input.
    shape : tuple of int
        Shape (z, y, x) of the restored volume.
    sampler, tiling
        Settings.
    facts : dict
        What the restored volume says of itself.
    """

    folder: Path
    hash: str
    input: Path
    model: Path
    weights: str
    factor: Fraction
    images: bool
    scale: int
    slices: int
    shape: tuple[int, int, int]
    sampler: Sampler
    tiling: Tiling
    facts: dict[str, Any]

    @property
    def tiles(self) -> Path:
        """The tile store."""
        return self.folder / "tiles.zarr"

    @property
    def restored(self) -> Path:
        """The restored volume."""
        return self.folder / "restored.ome.zarr"

    @property
    def quantities(self) -> tuple[str, ...]:
        """What is written for every voxel."""
        return QUANTITIES if self.sampler.samples > 1 else QUANTITIES[:1]

    @property
    def grid(self) -> BlockGrid:
        """The blocks."""
        t = self.tiling
        y, x = (TileAxis(length, t.tile, t.halo, t.blend) for length in self.shape[1:])
        z = ImageStack(self.slices) if self.images else SliceGrid(self.slices, self.factor)
        return BlockGrid(z, y, x, t.block)


def make_plan(dataset: Path, model: Path, settings: Restoration, out: Path) -> Plan:
    """Plan the restoration of a volume, and make its empty stores.

    Parameters
    ----------
    dataset : Path
        Registered OME-Zarr volume, anisotropic.
    model : Path
        Folder of a trained model.
    settings : Restoration
        Sampler and tiling.
    out : Path
        ``plan.json``. The tile store and the level 0 of the restored volume are made beside it, unless they
        are there with the same hash.

    Raises
    ------
    DataError
        If the volume has fewer than two slices, or no anisotropy that a model could remove.
    """
    volume, description = open_volume(dataset), load_description(model)
    task = TASKS[description["task"]]
    slices, height, width = volume.array.shape
    factor = Fraction(1)
    if task.volumetric:
        factor = anisotropy_factor(volume.voxel_size, str(dataset))
        if slices < 2:
            raise DataError(f"{dataset}: one slice has no gap to fill; at least two are needed")
        if not trained_for(description, factor):
            logger.warning(
                "%s: factor %s, but %s was trained for %s", dataset, factor, model, description["factors"]
            )
    sampler = resolve(settings.sampler, description)
    if not differ(description, sampler):
        sampler = sampler.model_copy(update={"samples": 1})
    weights = _file_hash(model / WEIGHTS)
    identity = settings_hash(
        sampler, settings.tiling, str(factor), [slices, height, width],
        volume.facts.get("sources"), volume.facts.get("intensity"),
        weights, description,
    )  # fmt: skip
    content = {
        "hash": identity,
        "input": str(dataset),
        "model": str(model),
        "weights": weights,
        "factor": str(factor),
        "images": not task.volumetric,
        "scale": task.scale,
        "slices": slices,
        "shape": [
            SliceGrid(slices, factor).length if task.volumetric else slices,
            height * task.scale,
            width * task.scale,
        ],
        "sampler": sampler.model_dump(mode="json"),
        "tiling": settings.tiling.model_dump(mode="json"),
        "facts": {
            "stage": "restored",
            "dataset": settings.dataset,
            "model": settings.model,
            "task": description["task"],
            "factor": str(factor),
            "estimator": estimator(sampler, description),
            "sampler": sampler.model_dump(mode="json"),
            "sources": volume.facts.get("sources", []),
            "training_sources": description.get("sources", []),
            "intensity": volume.facts["intensity"],
            "hash": identity,
        },
    }
    plan = _parse_plan(content, out.parent)
    _make_stores(plan, volume)
    grid = plan.grid
    content["blocks"] = len(grid)
    logger.info(
        "%s voxels in %d blocks of at most %s voxels; %d calls a tile",
        " x ".join(map(str, plan.shape)), len(grid), " x ".join(map(str, grid.chunk)),
        (sampler.steps or 1) * sampler.samples,
    )  # fmt: skip
    write_atomically(out, json.dumps(content, indent=2))
    return plan


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise StoreError(f"{path}: there are no weights here; train or import the model first") from None


def _make_stores(plan: Plan, volume: Volume) -> None:
    """Make the tile store and the level 0 of the restored volume, unless they are of this very plan."""
    grid = plan.grid
    if not _is_of(plan, plan.tiles):
        chunk = (1, len(plan.quantities), *grid.chunk)
        create_array(
            plan.tiles, (len(grid), *chunk[1:]), np.float32, chunk=chunk, attributes={"hash": plan.hash}
        )
    if not all(_is_of(plan, plan.restored / name / "0") for name in plan.quantities):
        shutil.rmtree(plan.restored, ignore_errors=True)
        for name in plan.quantities:
            dtype = volume.array.dtype if name == "restored" else np.dtype(np.float32)
            create_image_array(plan.restored / name / "0", plan.shape, dtype, {"hash": plan.hash})


def _is_of(plan: Plan, path: Path) -> bool:
    try:
        return bool(Array(path).attributes.get("hash") == plan.hash)
    except StoreError:
        return False


def open_array_of(plan: Plan, path: Path) -> Array:
    """Open an array that `make_plan` made.

    Raises
    ------
    StoreError
        If it is missing, or belongs to another plan.
    """
    array = Array(path)
    if array.attributes.get("hash") != plan.hash:
        raise StoreError(
            f"{path}: made with other settings than {plan.folder}/plan.json; run the stage `plan` again"
        )
    return array


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises
    ------
    StoreError
        If there is none, or it cannot be read.
    """
    try:
        return _parse_plan(json.loads(path.read_text()), path.parent)
    except FileNotFoundError:
        raise StoreError(f"{path}: there is no plan here; run the stage `plan`") from None
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f"{path}: not a plan that this version can read; run the stage `plan` again"
        ) from None


def _parse_plan(content: dict[str, Any], folder: Path) -> Plan:
    z, y, x = content["shape"]
    return Plan(
        folder=folder,
        hash=content["hash"],
        input=Path(content["input"]),
        model=Path(content["model"]),
        weights=content["weights"],
        factor=Fraction(content["factor"]),
        images=content["images"],
        scale=content["scale"],
        slices=content["slices"],
        shape=(z, y, x),
        sampler=Sampler.model_validate(content["sampler"]),
        tiling=Tiling.model_validate(content["tiling"]),
        facts=content["facts"],
    )


def restore(path: Path, worker: int, workers: int, device: str = "auto") -> None:
    """Restore the blocks that a worker owns and that are not done.

    Parameters
    ----------
    path : Path
        ``plan.json``.
    worker, workers : int
        This worker, counted from 1, of how many.
    device : str
        "auto", "cpu" or a CUDA device.

    Raises
    ------
    StoreError
        If the input or the model changed since the plan was made.
    """
    plan = read_plan(path)
    volume, tiles, grid = open_volume(plan.input), open_array_of(plan, plan.tiles), plan.grid
    if volume.facts.get("sources") != plan.facts["sources"]:
        raise StoreError(f"{plan.input}: changed since {path} was made; run the stage `plan` again")
    if _file_hash(plan.model / WEIGHTS) != plan.weights:
        raise StoreError(f"{plan.model}: changed since {path} was made; run the stage `plan` again")
    mine = owned(len(grid), worker, workers)
    todo = [number for number in mine if not tiles.exists((number, 0, 0, 0, 0))]
    if not todo:
        logger.info("all %d blocks of worker %d are done", len(mine), worker)
        return
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = RestorationModel.load(plan.model, place)
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
                mean, deviation = _restore_tile(plan, grid, gap, row, column, volume, model)
                (y0, y1), (x0, x1) = grid.y.support(row, row + 1), grid.x.support(column, column + 1)
                weights = np.outer(grid.y.window(row), grid.x.window(column))
                top, left = grid.y.starts[row], grid.x.starts[column]
                inner = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
                outer = (
                    slice(zs.start - block.begin[0], zs.stop - block.begin[0]),
                    slice(y0 - block.begin[1], y1 - block.begin[1]),
                    slice(x0 - block.begin[2], x1 - block.begin[2]),
                )
                for quantity, values in zip(range(len(sums)), (mean, deviation), strict=False):
                    sums[quantity][outer] += weights * values[inner]
    return sums


def _restore_tile(
    plan: Plan, grid: BlockGrid, gap: int, row: int, column: int, volume: Volume, model: RestorationModel
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fill one gap in one tile; return mean and standard deviation, (D, tile, tile), in units of [-1, 1]."""
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
    return mean[0].cpu().numpy(), deviation[0].cpu().numpy()


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
