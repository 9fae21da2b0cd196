"""Plan: all that the workers of a restoration need to know, and their empty stores.

Conventions
-----------
* The *plan* (``plan.json``) names input, model, tiling, sampler, and the hash of these. Making a plan wipes
  what another plan left; workers only open what the plan's stores are, and refuse stores of another hash.
* The *tile store* is one array (quantity, z, y, x), float32, one chunk a block, in the place of the block in
  the grid of blocks: the weighted partial sums of the block's tiles over its support (`geometry.Block`).
  Quantity 0 is what is restored, in [-1, 1]; with more than one sample there is their standard deviation
  too. Real slices are left at 0: stitching takes them from the input. A block without a slice to restore has
  no chunk.
* The *input* is a registered volume, or its slices restored by another model (`Restoration.real_slices`).
* Of a calibrated restoration the *outputs* hold the bounds of the interval of every voxel too.
* A worker that has done its share leaves a *mark* (`MARKS`) beside the plan. Where a later stage finds
  something damaged, it removes the marks: at the next start the workers look at their chunks, and make those
  anew that cannot be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from emdiffuse import __version__
from emdiffuse.config import Restoration, Sampler, Tiling
from emdiffuse.config.settings import settings_hash
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import WEIGHTS_FILE, Description, read_description, weights_hash
from emdiffuse.models.numbers import require_numbers
from emdiffuse.restoration.footprint import memory_mb
from emdiffuse.restoration.geometry import BlockGrid, ImageStack, SliceGrid, TileAxis, slice_grid
from emdiffuse.restoration.intervals import read_calibration
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.errors import ConfigError, DataError, StoreError
from emdiffuse.runtime.outputs import emptied, require_apart
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.volume import Array, Volume, create_array, create_image_array, open_volume

BOUNDS = ("lower", "upper")
MARKS = {"restore": "restored-*.done", "stitch": "stitched-*.done"}


@dataclass(frozen=True)
class Plan:
    """What is to be done, read from ``plan.json``.

    Attributes
    ----------
    folder : Path
        Where the plan lies, with the tile store and the restored volume beside it.
    hash : str
        Identifies input, model and settings.
    source : str
        Identifies the input.
    input, model : Path
        The volume that is restored and the folder of the model.
    weights : str
        SHA-256 of the model's weights.
    factor, thickness : Fraction
        Anisotropy factor, 1 for images; share of the distance of slices that one integrates over.
    images : bool
        Whether each slice is restored by itself, rather than gaps between slices.
    scale : int
        Output pixels of one input pixel along y and x.
    slices : int
        Slices of the input.
    missing : tuple of int
        Those of them that are not to be trusted.
    shape : tuple of int
        Shape (z, y, x) of the restored volume.
    sampler, tiling
        Settings.
    calibration : dict or None
        What `calibration.calibrate` wrote.
    reliable : float
        Score up to which an image is called reliable.
    facts : dict
        What the restored volume says of itself.
    """

    folder: Path
    hash: str
    source: str
    input: Path
    model: Path
    weights: str
    factor: Fraction
    thickness: Fraction
    images: bool
    scale: int
    slices: int
    missing: tuple[int, ...]
    shape: tuple[int, int, int]
    sampler: Sampler
    tiling: Tiling
    calibration: dict[str, Any] | None
    reliable: float
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
        """What is restored for every voxel, in the order of the tile store."""
        wanted = {"restored": True, "uncertainty": self.sampler.samples > 1}
        return tuple(name for name, there in wanted.items() if there)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The images of the restored volume."""
        return self.quantities + (BOUNDS if self.calibration else ())

    @property
    def grid(self) -> BlockGrid:
        """The blocks."""
        t = self.tiling
        y, x = (TileAxis(length, t.tile, t.halo, t.blend) for length in self.shape[1:])
        z: SliceGrid | ImageStack = ImageStack(self.slices)
        if not self.images:
            z = SliceGrid(self.slices, self.factor, self.missing, self.thickness)
        return BlockGrid(z, y, x, t.block)

    def forget(self, stage: str) -> None:
        """Remove the marks of a stage's workers, which look at their shares again at the next start."""
        for mark in self.folder.glob(MARKS[stage]):
            mark.unlink(missing_ok=True)


def make_plan(
    dataset: Path, model: Path, settings: Restoration, out: Path, calibration: Path | None = None
) -> Plan:
    """Plan the restoration of a volume, and make its empty stores.

    Parameters
    ----------
    dataset : Path
        Registered OME-Zarr volume, anisotropic; where `settings` names `real_slices`, as that model restored
        it.
    model : Path
        Folder of a trained model.
    settings : Restoration
        Sampler, tiling, and what else is written.
    calibration : Path, optional
        What the stage `calibrate` wrote for this model and sampler.
    out : Path
        ``plan.json``. The tile store and the level 0 of the restored volume are made beside it, unless they
        are there with the same hash.

    Raises
    ------
    DataError
        If the volume has fewer than two slices, or no anisotropy that a model could remove, or was restored
        otherwise than `settings` says.
    """
    volume, description = open_volume(dataset), read_description(model)
    restored = _restored_before(volume, settings)
    task = TASKS[description.task]
    slices, height, width = volume.array.shape
    grid: SliceGrid | ImageStack = ImageStack(slices)
    if task.volumetric:
        if slices < 2:
            raise DataError(f"{dataset}: one slice has no gap to fill; at least two are needed")
        grid = slice_grid(volume)
        _check_gaps(grid, dataset, model, description)
    sampler = description.resolve(settings.sampler)
    if sampler.ensemble > 1 and not description.native:
        raise ConfigError(
            f"sampler.ensemble: {model} is a published network, which has no mean in one call; leave it out"
        )
    sampler = sampler.model_copy(update={"consistent": _consistent(sampler, grid, dataset)})
    require_numbers(model / WEIGHTS_FILE)
    weights = weights_hash(model)
    asked = sampler.model_dump(mode="json")
    calibrated = None
    if calibration is not None:
        calibrated = read_calibration(calibration, weights, asked, volume.facts.get("sources"))
    identity = settings_hash(
        sampler, settings.tiling, input_hash(volume), weights, description.model_dump(mode="json"),
        calibrated and calibrated["scale"],
    )  # fmt: skip
    content = {
        "hash": identity,
        "source": input_hash(volume),
        "input": str(dataset),
        "model": str(model),
        "weights": weights,
        "factor": str(grid.factor),
        "thickness": str(grid.thickness) if isinstance(grid, SliceGrid) else "0",
        "images": not task.volumetric,
        "scale": task.scale,
        "slices": slices,
        "missing": list(volume.facts.get("missing", [])) if task.volumetric else [],
        "shape": [grid.length, height * task.scale, width * task.scale],
        "sampler": asked,
        "calibration": calibrated,
        "reliable": settings.reliable,
        "tiling": settings.tiling.model_dump(mode="json"),
        "facts": {
            "stage": "restored",
            "version": __version__,
            "dataset": settings.dataset,
            "model": settings.model,
            "task": description.task,
            "factor": str(grid.factor),
            "estimator": description.estimator(sampler),
            "sampler": asked,
            "weights": weights,
            "calibration": calibrated,
            "sources": volume.facts.get("sources", []),
            "training_sources": [source.model_dump(exclude_none=True) for source in description.sources]
            + volume.facts.get("training_sources", []),
            "intensity": volume.intensity.stretched(
                float(grid.factor), float(grid.centre(0)) if isinstance(grid, SliceGrid) else 0.0
            ).as_facts(),
            "thickness": 0.0 if task.volumetric else volume.facts.get("thickness", 0.0),
            "missing": [] if task.volumetric else volume.facts.get("missing", []),
            "real_slices": restored,
            "hash": identity,
        },
    }
    plan = _parse_plan(content, out.parent)
    _make_stores(plan, volume)
    blocks = plan.grid
    content["blocks"] = len(blocks)
    content["memory_mb"] = memory_mb(blocks, len(plan.quantities), description)
    logger.info(
        "%s voxels in %d blocks of at most %s voxels; %d calls a tile",
        " x ".join(map(str, plan.shape)), len(blocks), " x ".join(map(str, blocks.chunk)),
        description.calls(sampler),
    )  # fmt: skip
    write_atomically(out, json.dumps(content, indent=2))
    return plan


def input_hash(volume: Volume) -> str:
    """Return what identifies an input: its raw files, and what was made of them."""
    facts = [volume.facts.get(key) for key in ("sources", "intensity", "missing", "thickness", "hash")]
    return settings_hash(facts, list(volume.array.shape), list(volume.voxel_size))


def open_input(plan: Plan) -> Volume:
    """Open the input of a plan.

    Raises
    ------
    StoreError
        If it is missing, or not the one that the plan was made for.
    """
    volume = open_volume(plan.input)
    if input_hash(volume) != plan.source:
        raise StoreError(
            f"{plan.input}: changed since {plan.folder}/plan.json was made; run the stage `plan` again"
        )
    return volume


def _restored_before(volume: Volume, settings: Restoration) -> dict[str, Any] | None:
    """Return by what the slices of an input were restored; None where they are as they were acquired."""
    facts = volume.facts if volume.facts.get("stage") == "restored" else {}
    if facts.get("model") != settings.real_slices:
        raise DataError(
            f"{volume.path}: its slices were restored by {facts.get('model') or 'no model'}, but "
            f"`real_slices` says {settings.real_slices or 'none'}; give the volume that belongs to it"
        )
    return {key: facts[key] for key in ("model", "estimator", "weights", "hash")} if facts else None


def _consistent(sampler: Sampler, grid: SliceGrid | ImageStack, dataset: Path) -> bool:
    """Tell whether restored slices are made consistent with the real ones that integrate over them."""
    if sampler.consistent and not grid.thick:
        raise DataError(
            f"{dataset}: `sampler.consistent` is for thick slices, but none is known to be; say "
            "`slice_thickness`"
        )
    return grid.thick if sampler.consistent is None else sampler.consistent


def _check_gaps(grid: SliceGrid, dataset: Path, model: Path, description: Description) -> None:
    """Warn of gaps that the model was not trained for, and of missing slices that nothing can restore."""
    widths = {grid.width(gap) for gap in range(grid.gaps) if grid.generated(gap)}
    strange = sorted(width for width in widths if not description.trained_for(width))
    if strange:
        factors = ", ".join(map(str, strange))
        logger.warning(
            "%s: factor %s, but %s was trained for %s", dataset, factors, model, description.factors
        )
    if kept := sorted(set(grid.missing) & set(grid.good)):
        logger.warning(
            "%s: slices %s are missing at an end, where only one neighbour is: their copies stay",
            dataset,
            kept,
        )


def _make_stores(plan: Plan, volume: Volume) -> None:
    """Make the tile store and the level 0 of the restored volume, unless they are of this very plan."""
    inputs = (plan.input, plan.model)
    for store in (plan.tiles, plan.restored):
        require_apart(store, inputs)
    if not _is_of(plan, plan.tiles):
        create_tiles(plan, emptied(plan.tiles, inputs))
    if not all(_is_of(plan, plan.restored / name / "0") for name in plan.outputs):
        emptied(plan.restored, inputs)
        for name in plan.outputs:
            create_output(plan, name, plan.restored / name / "0", volume.array.dtype)


def create_tiles(plan: Plan, path: Path) -> None:
    """Make an empty tile store."""
    grid = plan.grid
    chunk = (len(plan.quantities), *grid.chunk)
    shape = (chunk[0], *(n * c for n, c in zip(grid.counts, grid.chunk, strict=True)))
    create_array(path, shape, np.float32, chunk=chunk, attributes={"hash": plan.hash})


def create_output(plan: Plan, name: str, path: Path, dtype: np.dtype[Any]) -> None:
    """Make the empty level 0 of an output; `dtype` is that of the input."""
    own = np.dtype(np.float32) if name == "uncertainty" else dtype
    create_image_array(path, plan.shape, own, {"hash": plan.hash})


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
        source=content["source"],
        input=Path(content["input"]),
        model=Path(content["model"]),
        weights=content["weights"],
        factor=Fraction(content["factor"]),
        thickness=Fraction(content["thickness"]),
        images=content["images"],
        scale=content["scale"],
        slices=content["slices"],
        missing=tuple(content["missing"]),
        shape=(z, y, x),
        sampler=Sampler.model_validate(content["sampler"]),
        tiling=Tiling.model_validate(content["tiling"]),
        calibration=content["calibration"],
        reliable=content["reliable"],
        facts=content["facts"],
    )
