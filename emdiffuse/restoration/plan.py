"""The plan of a restoration: all that its workers need to know, and the stores that they fill.

Conventions
-----------
* The *plan* (``plan.json``) names input, model, tiling and sampler, and how tiles and volume are made of
  these (`stores.provenance.Link`). Making a plan wipes what was made in another way; workers only open what
  the plan's stores are, and refuse stores of another hash. A plan that was edited, or made
  by another version, is refused by its checksum.
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
    """What is to be done: ``plan.json``.

    Attributes
    ----------
    input, model : Path
        The volume that is restored and the folder of the model.
    thickness : Fraction
        Fraction of the slice spacing that each slice averages over.
    images : bool
        Whether each slice is restored by itself, rather than gaps between slices.
    scale : int
        Output pixels of one input pixel along y and x.
    context : int
        Neighbouring slices on each side that each image is restored beside.
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
        Facts of the restored volume; its `made` includes the calibration, if there is one.
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
            raise ValueError("its checksum does not match its content: it was edited")
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


def belongs(plan: Plan, path: Path) -> bool:
    """Tell whether an array is there, and was made for this very plan."""
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
        If there is none, it cannot be read, it was edited, or another version made it.
    """
    try:
        text = read_plain(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no plan here" if missing else f"it cannot be read ({error.strerror})"
        raise StoreError(f"{path}: {why}; run the stage `plan`", path) from None
    try:
        plan = parse_record(Plan, text, path, StoreError, "run the stage `plan` again")
    except StoreError:
        if not _is_as_written(text):
            raise
        why = "another version of emdiffuse made this plan, and its keys differ"
        raise StoreError(f"{path}: {why}; run the stage `plan` again", path) from None
    return plan.model_copy(update={"folder": path.parent})


def _is_as_written(text: bytes | str) -> bool:
    """Tell whether a plan's checksum fits what was written, whatever keys the version that wrote it knows."""
    try:
        content = json.loads(text)
        return bool(content.pop("checksum") == digest(content))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return False
