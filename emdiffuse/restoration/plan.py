"""The plan of a restoration: everything that its workers need to know, and the stores that they fill.

Conventions
-----------
* The *plan* (``plan.json``) names input, model, tiling and sampler, and records the provenance of tiles and
  volume (`stores.provenance.Link`). Planning removes stores that were made with other settings; workers only
  open the plan's stores, and refuse those with another hash. A plan that was edited, or made by another
  version, is refused by its checksum.
* The *tile store* is one array (quantity, z, y, x), float32, with one chunk per block, at the position of the
  block in the grid of blocks: the weighted partial sums of the block's tiles over its support
  (`geometry.Block`). Quantity 0 is the restored value, in [-1, 1]; with more than one sample, their standard
  deviation follows. Real slices are 0: stitching copies them from the input. A block without slices to
  restore has no chunk.
* The *input* is a registered volume, or its slices restored by another model (`Restoration.real_slices`).
* The *outputs* of a calibrated restoration include the bounds of the interval of every voxel.
* A worker that has finished its share leaves a *mark* (`MARKS`) beside the plan. If a later stage finds
  damage, it removes the marks: at the next start the workers check their chunks, and recompute those that
  cannot be read.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from emdiffuse.config import Sampler, Tiling
from emdiffuse.config.settings import Record, parse_record
from emdiffuse.restoration.geometry import BlockGrid, TileAxis
from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid
from emdiffuse.runtime.disks import read_plain
from emdiffuse.runtime.errors import StoreError
from emdiffuse.stores.array import Array, create_array, create_image_array
from emdiffuse.stores.facts import CalibrationFacts, RestoredFacts, require_made
from emdiffuse.stores.intensity import Intensity
from emdiffuse.stores.provenance import Link, digest
from emdiffuse.stores.volume import Volume, open_volume

BOUNDS = ("lower", "upper")
MARKS = {"restore": "restored-*.done", "stitch": "stitched-*.done"}


class Plan(Record):
    """The plan of a restoration: ``plan.json``.

    Attributes
    ----------
    input, model : Path
        The volume to restore, and the folder of the model.
    thickness : Fraction
        Fraction of the slice spacing that each slice averages over.
    images : bool
        Whether slices are restored one by one, rather than gaps between slices.
    scale : int
        Output pixels of one input pixel along y and x.
    context : int
        Neighbouring slices on each side that condition each image.
    slices : int
        Number of slices of the input.
    missing : tuple of int
        Slices of the input that are missing or damaged.
    shape : tuple of int
        Shape (z, y, x) of the restored volume.
    tiling : Tiling
        Tiles and blocks.
    reliable : float
        Largest score of a reliable image.
    restored_by : Link
        Provenance of the tiles: input, model, sampler and tiling.
    facts : RestoredFacts
        Facts of the restored volume; its `made` includes the calibration, if there is one.
    blocks : int
        Number of blocks.
    memory_mb : dict
        Memory that a worker of each stage needs, in MB.
    checksum : str
        Checksum of all other fields, verified on reading.
    folder : Path
        Folder of the plan, the tile store and the restored volume; not written.
    """

    version: Literal[2] = 2
    input: Path
    model: Path
    thickness: Fraction
    images: bool
    scale: Literal[1, 2]
    context: Literal[0, 1] = 0
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
            raise ValueError("the checksum does not match the content: the plan was edited")
        object.__setattr__(self, "checksum", own)  # bypass the frozen model
        return self

    @property
    def made(self) -> Link:
        """Provenance of the restored volume."""
        return require_made(self.facts, self.folder / "plan.json")

    @property
    def hash(self) -> str:
        """Hash that identifies the restored volume."""
        return self.made.hash

    @property
    def source(self) -> Link:
        """Provenance of the input."""
        return self.restored_by.inputs[0]

    @property
    def factor(self) -> Fraction:
        """Anisotropy factor; 1 for images."""
        return self.facts.factor or Fraction(1)

    @property
    def sampler(self) -> Sampler:
        """The sampler, with all defaults resolved."""
        assert self.facts.sampler is not None
        return self.facts.sampler

    @property
    def intensity(self) -> Intensity:
        """Intensity scaling of the restored slices."""
        assert self.facts.intensity is not None
        return self.facts.intensity

    @property
    def calibration(self) -> CalibrationFacts | None:
        """Calibration of the intervals, if any."""
        return self.facts.calibration

    @property
    def tiles(self) -> Path:
        """Path of the tile store."""
        return self.folder / "tiles.zarr"

    @property
    def restored(self) -> Path:
        """Path of the restored volume."""
        return self.folder / "restored.ome.zarr"

    @property
    def quantities(self) -> tuple[str, ...]:
        """Quantities restored per voxel, in the order of the tile store."""
        wanted = {"restored": True, "uncertainty": self.sampler.samples > 1}
        return tuple(name for name, there in wanted.items() if there)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the images of the restored volume."""
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
        """Remove the marks of a stage's workers, which then check their shares at the next start."""
        for mark in self.folder.glob(MARKS[stage]):
            mark.unlink(missing_ok=True)


def open_input(plan: Plan) -> Volume:
    """Open the input of a plan.

    Raises
    ------
    StoreError
        If it is missing, or changed since the plan was made.
    """
    volume = open_volume(plan.input)
    if volume.made.hash != plan.source.hash:
        raise StoreError(
            f"{plan.input}: changed since {plan.folder}/plan.json was made; run the stage `plan` again",
            plan.input,
        )
    return volume


def restored_voxel_size(plan: Plan) -> tuple[float, float, float]:
    """Return the voxel size (z, y, x) of the restored volume, in nanometers: of a volume, isotropic."""
    z, y, x = open_volume(plan.input).voxel_size
    return (z, y / plan.scale, x / plan.scale) if plan.images else (y, y, y)


def create_tiles(plan: Plan, path: Path) -> None:
    """Create an empty tile store."""
    grid = plan.grid
    chunk = (len(plan.quantities), *grid.chunk)
    shape = (chunk[0], *(n * c for n, c in zip(grid.counts, grid.chunk, strict=True)))
    create_array(path, shape, np.float32, chunk=chunk, attributes={"hash": plan.restored_by.hash})


def create_output(plan: Plan, name: str, path: Path, dtype: np.dtype[Any]) -> None:
    """Create the empty level 0 of an output; `dtype` is that of the input."""
    own = np.dtype(np.float32) if name == "uncertainty" else dtype
    create_image_array(path, plan.shape, own, {"hash": plan.hash})


def _hash_of(plan: Plan, path: Path) -> str:
    """Return the hash that an array of a plan must have: that of the tiles, or of the restored volume."""
    return (plan.restored_by if path == plan.tiles else plan.made).hash


def belongs(plan: Plan, path: Path) -> bool:
    """Return whether an array exists and belongs to this plan."""
    try:
        return bool(Array(path).attributes.get("hash") == _hash_of(plan, path))
    except StoreError:
        return False


def open_array_of(plan: Plan, path: Path) -> Array:
    """Open an array that `make_plan` created.

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
        If it is missing, unreadable, edited, or made by another version.
    """
    try:
        text = read_plain(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no plan" if missing else f"cannot be read ({error.strerror})"
        raise StoreError(f"{path}: {why}; run the stage `plan`", path) from None
    try:
        plan = parse_record(Plan, text, path, StoreError, "run the stage `plan` again")
    except StoreError:
        if not _is_as_written(text):
            raise
        why = "this plan was made by another version of emdiffuse, with different keys"
        raise StoreError(f"{path}: {why}; run the stage `plan` again", path) from None
    return plan.model_copy(update={"folder": path.parent})


def _is_as_written(text: bytes | str) -> bool:
    """Return whether a plan matches its checksum, whatever keys the version that wrote it had."""
    try:
        content = json.loads(text)
        return bool(content.pop("checksum") == digest(content))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return False
