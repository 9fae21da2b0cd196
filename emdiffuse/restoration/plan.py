"""Plan: all that the workers of a restoration need to know, and their empty stores.

Conventions
-----------
* The *plan* (``plan.json``) names input, model, tiling and sampler, and how tiles and volume are made of
  these (`stores.provenance.Link`). Making a plan wipes what was made in another way; workers only open what
  the plan's stores are, and refuse stores of another hash. An edited plan is refused by its checksum.
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
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from emdiffuse import __version__
from emdiffuse.config import Restoration, Sampler, Tiling
from emdiffuse.config.settings import Record, parse_record
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import (
    WEIGHTS_FILE,
    Description,
    model_link,
    read_description,
    weights_hash,
)
from emdiffuse.models.numbers import require_numbers
from emdiffuse.restoration.footprint import memory_mb
from emdiffuse.restoration.geometry import BlockGrid, ImageStack, SliceGrid, TileAxis, slice_grid
from emdiffuse.restoration.intervals import read_calibration
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.disks import read_plain
from emdiffuse.runtime.errors import ConfigError, DataError, StoreError
from emdiffuse.runtime.outputs import emptied, require_apart
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.array import Array, create_array, create_image_array
from emdiffuse.stores.facts import CalibrationFacts, RealSlices, RestoredFacts, require_made
from emdiffuse.stores.intensity import Intensity
from emdiffuse.stores.provenance import Link, digest, made_by
from emdiffuse.stores.volume import Volume, open_volume

BOUNDS = ("lower", "upper")
MARKS = {"restore": "restored-*.done", "stitch": "stitched-*.done"}


class Plan(Record):
    """What is to be done: ``plan.json``.

    Attributes
    ----------
    input, model : Path
        The volume that is restored and the folder of the model.
    thickness : Fraction
        Share of the distance of slices that one integrates over.
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
    tiling : Tiling
        How the work is cut.
    reliable : float
        Score up to which an image is called reliable.
    restored_by : Link
        How the tiles are made: by sampler and tiling, of the input and the model.
    facts : RestoredFacts
        What the restored volume says of itself; `made` of it is also of the calibration, where there is one.
    blocks : int
        Number of blocks.
    memory_mb : dict
        Memory that a worker of each stage needs, in MB.
    checksum : str
        Of all this; a plan that was read is compared with it.
    folder : Path
        Where the plan lies, with the tile store and the restored volume beside it; not written.
    """

    version: Literal[2] = 2
    input: Path
    model: Path
    thickness: Fraction
    images: bool
    scale: Literal[1, 2]
    slices: int = Field(ge=1)
    missing: tuple[int, ...]
    shape: tuple[int, int, int]
    tiling: Tiling
    reliable: float
    restored_by: Link
    facts: RestoredFacts
    blocks: int = 0
    memory_mb: dict[str, int] = Field(default_factory=dict)
    checksum: str = ""
    folder: Path = Field(Path(), exclude=True)

    @model_validator(mode="after")
    def _own_checksum(self) -> Plan:
        own = digest(self.model_dump(mode="json", exclude={"checksum"}))
        if self.checksum not in ("", own):
            raise ValueError("its checksum is not that of its content: it was edited")
        object.__setattr__(self, "checksum", own)  # a record is frozen for all others
        return self

    @property
    def made(self) -> Link:
        """How the restored volume is made."""
        return require_made(self.facts, self.folder / "plan.json")

    @property
    def hash(self) -> str:
        """What identifies the restored volume."""
        return self.made.hash

    @property
    def source(self) -> Link:
        """How the input was made."""
        return self.restored_by.inputs[0]

    @property
    def factor(self) -> Fraction:
        """Anisotropy factor; 1 for images."""
        return self.facts.factor or Fraction(1)

    @property
    def sampler(self) -> Sampler:
        """The sampler, with nothing left open."""
        assert self.facts.sampler is not None
        return self.facts.sampler

    @property
    def intensity(self) -> Intensity:
        """How the restored slices are scaled."""
        assert self.facts.intensity is not None
        return self.facts.intensity

    @property
    def calibration(self) -> CalibrationFacts | None:
        """How intervals were calibrated."""
        return self.facts.calibration

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
    task = TASKS[description.task]
    slices, height, width = volume.array.shape
    grid: SliceGrid | ImageStack = ImageStack(slices)
    if task.volumetric:
        if slices < 2:
            raise DataError(f"{dataset}: one slice has no gap to fill; at least two are needed", dataset)
        grid = slice_grid(volume)
        _check_gaps(grid, dataset, model, description)
    require_numbers(model / WEIGHTS_FILE)
    facts, link = _facts(volume, model, description, settings, grid, calibration)
    plan = Plan(
        folder=out.parent,
        input=dataset,
        model=model,
        images=not task.volumetric,
        scale=task.scale,
        slices=slices,
        thickness=grid.thickness if isinstance(grid, SliceGrid) else Fraction(0),
        missing=volume.facts.missing if task.volumetric else (),
        shape=(grid.length, height * task.scale, width * task.scale),
        tiling=settings.tiling,
        reliable=settings.reliable,
        restored_by=link,
        facts=facts,
    )
    blocks = plan.grid
    known = {"blocks": len(blocks), "memory_mb": memory_mb(blocks, len(plan.quantities), description)}
    plan = Plan(**{**dict(plan), **known, "checksum": ""})
    _make_stores(plan, volume)
    logger.info(
        "%s voxels in %d blocks of at most %s voxels; %d calls a tile",
        " x ".join(map(str, plan.shape)), len(blocks), " x ".join(map(str, blocks.chunk)),
        description.calls(plan.sampler),
    )  # fmt: skip
    write_atomically(out, json.dumps(plan.model_dump(mode="json", exclude_none=True), indent=2))
    return plan


def _facts(
    volume: Volume,
    model: Path,
    description: Description,
    settings: Restoration,
    grid: SliceGrid | ImageStack,
    calibration: Path | None,
) -> tuple[RestoredFacts, Link]:
    """Return what the restored volume says of itself, and how its tiles are made."""
    sampler = description.resolve(settings.sampler)
    if sampler.ensemble > 1 and not description.native:
        raise ConfigError(
            f"sampler.ensemble: {model} is a published network, which has no mean in one call; leave it out"
        )
    sampler = sampler.model_copy(update={"consistent": _consistent(sampler, grid, volume.path)})
    weights, name = weights_hash(model), f"{settings.dataset} by {settings.model}"
    how = {"sampler": sampler.model_dump(mode="json"), "tiling": settings.tiling.model_dump(mode="json")}
    made = link = made_by("restore", name, how, volume.made, model_link(model))
    calibrated = None
    if calibration is not None:
        found = read_calibration(calibration, weights, sampler, volume.facts.sources)
        made = made_by("intervals", name, {}, link, require_made(found, calibration))
        calibrated = found.model_copy(update={"made": None})  # it is in `made`
    facts = RestoredFacts(
        dataset=settings.dataset,
        made=made,
        kind=volume.facts.kind,
        intensity=volume.intensity.stretched(
            float(grid.factor), float(grid.centre(0)) if isinstance(grid, SliceGrid) else 0.0
        ),
        thickness=0.0 if TASKS[description.task].volumetric else volume.facts.thickness,
        sources=volume.facts.sources,
        missing=() if TASKS[description.task].volumetric else volume.facts.missing,
        factor=grid.factor,
        version=__version__,
        model=settings.model,
        task=description.task,
        estimator=description.estimator(sampler),
        sampler=sampler,
        weights=weights,
        calibration=calibrated,
        training_sources=(*description.sources, *volume.restoration.training_sources),
        real_slices=_restored_before(volume, settings),
    )
    return facts, link


def open_input(plan: Plan) -> Volume:
    """Open the input of a plan.

    Raises
    ------
    StoreError
        If it is missing, or not the one that the plan was made for.
    """
    volume = open_volume(plan.input)
    if volume.made.hash != plan.source.hash:
        raise StoreError(
            f"{plan.input}: changed since {plan.folder}/plan.json was made; run the stage `plan` again",
            plan.input,
        )
    return volume


def _restored_before(volume: Volume, settings: Restoration) -> RealSlices | None:
    """Return by what the slices of an input were restored; None where they are as they were acquired."""
    facts = volume.restoration
    if facts.model != settings.real_slices:
        raise DataError(
            f"{volume.path}: its slices were restored by {facts.model or 'no model'}, but "
            f"`real_slices` says {settings.real_slices or 'none'}; give the volume that belongs to it",
            volume.path,
        )
    if facts.model is None:
        return None
    return RealSlices(
        model=facts.model,
        estimator=facts.estimator or "",
        weights=facts.weights or "",
        hash=volume.made.hash,
    )


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
    create_array(path, shape, np.float32, chunk=chunk, attributes={"hash": plan.restored_by.hash})


def create_output(plan: Plan, name: str, path: Path, dtype: np.dtype[Any]) -> None:
    """Make the empty level 0 of an output; `dtype` is that of the input."""
    own = np.dtype(np.float32) if name == "uncertainty" else dtype
    create_image_array(path, plan.shape, own, {"hash": plan.hash})


def _hash_of(plan: Plan, path: Path) -> str:
    """Return the hash of an array of a plan: that of its tiles, or that of the restored volume."""
    return (plan.restored_by if path == plan.tiles else plan.made).hash


def _is_of(plan: Plan, path: Path) -> bool:
    try:
        return bool(Array(path).attributes.get("hash") == _hash_of(plan, path))
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
    if array.attributes.get("hash") != _hash_of(plan, path):
        raise StoreError(
            f"{path}: made with other settings than {plan.folder}/plan.json; run the stage `plan` again", path
        )
    return array


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises
    ------
    StoreError
        If there is none, it cannot be read, or it was edited.
    """
    try:
        text = read_plain(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no plan here" if missing else f"it cannot be read ({error.strerror})"
        raise StoreError(f"{path}: {why}; run the stage `plan`", path) from None
    plan = parse_record(Plan, text, path, StoreError, "run the stage `plan` again")
    return plan.model_copy(update={"folder": path.parent})
