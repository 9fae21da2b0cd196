"""Open a restored volume, its input and its ground truth together; refuse volumes that do not match.

Conventions
-----------
* Axes are (z, y, x). Output slice 0 is real slice 0 is truth slice 0; all volumes share the lateral grid of
  the output (the input of emdiffuse-r has half of it).
* Training data are never used for evaluation: they are recognized by the checksums of the raw files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.tasks import TASKS
from emdiffuse.evaluation.blocks import Grid
from emdiffuse.restoration.slice_grid import ImageStack, slice_grid
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.array import Box
from emdiffuse.stores.volume import Volume, open_volume


@dataclass(frozen=True)
class Ground:
    """A matching input and ground truth, on which methods are measured.

    Attributes
    ----------
    input, truth : Volume
        Opened.
    task : str
        Task: a key of `tasks.TASKS`.
    grid : SliceGrid or ImageStack
        Output slices.
    data_range : float
        Intensity range: 255 for 8-bit data, otherwise that of a typical slice of the truth.
    """

    input: Volume
    truth: Volume
    task: str
    grid: Grid
    data_range: float

    @property
    def images(self) -> bool:
        """Whether these are separate images, not slices of a volume."""
        return isinstance(self.grid, ImageStack)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the compared volumes."""
        _, height, width = self.truth.array.shape
        return (self.grid.length, height, width)

    @property
    def low(self) -> float:
        """Lowest intensity of the range."""
        return 0.0 if self.truth.array.dtype == np.uint8 else self.truth.intensity.low


@dataclass(frozen=True)
class Comparison(Ground):
    """A restored volume with its input and ground truth.

    Attributes
    ----------
    restored : Volume
        Opened.
    extras : dict
        Further outputs: uncertainty, interval bounds.
    """

    restored: Volume
    extras: dict[str, Volume]

    def names(self) -> dict[str, str | None]:
        """Return the names of dataset, model and truth."""
        facts = self.restored.restoration
        return {
            "dataset": facts.dataset or name_of(self.input),
            "model": facts.model,
            "truth": name_of(self.truth),
        }


def lay_ground(dataset: Path, truth: Path, task: str) -> Ground:
    """Open the registered input and the registered ground truth.

    Raises
    ------
    DataError
        If the truth does not cover the same field and depth.
    """
    given, wanted = open_volume(dataset), open_volume(truth)
    grid: Grid = slice_grid(given) if TASKS[task].volumetric else ImageStack(given.array.shape[0])
    sides = tuple(n * TASKS[task].scale for n in given.array.shape[1:])
    if wanted.array.shape[1:] != sides:
        raise DataError(
            f"{wanted.path}: its slices have {_by(wanted.array.shape[1:])} pixels, but those of {given.path} "
            f"have {_by(sides)}; the truth must show the same field"
        )
    if wanted.array.shape[0] < grid.length:
        raise DataError(
            f"{wanted.path}: it has {wanted.array.shape[0]} slices, but the restored volume has "
            f"{grid.length}; the truth must be at least as deep"
        )
    if wanted.array.dtype != given.array.dtype:
        raise DataError(
            f"{wanted.path}: its voxels are {wanted.array.dtype}, those of {given.path} {given.array.dtype}; "
            "the truth must have the same intensities"
        )
    return Ground(given, wanted, task, grid, _data_range(wanted))


def compare(restored: Path, dataset: Path, truth: Path) -> Comparison:
    """Open a restored volume, its registered input, and the registered ground truth.

    Raises
    ------
    DataError
        If the truth does not match the restored volume, or either was among the training data.
    """
    ours = open_volume(restored)
    ground = lay_ground(dataset, truth, ours.restoration.task or "vemdiffuse-i")
    _check(ours, ground)
    extras = {
        name: open_volume(restored / name)
        for name in ("uncertainty", "lower", "upper")
        if (restored / name / "zarr.json").exists()
    }
    return Comparison(ground.input, ground.truth, ground.task, ground.grid, ground.data_range, ours, extras)


def read(volume: Volume, box: Box) -> NDArray[Any]:
    """Read a box; refuse voxels that are not finite."""
    values = volume.array[box]
    if not np.isfinite(values).all():
        raise DataError(f"{volume.path}: some voxels are not finite numbers; it cannot be evaluated")
    return values


def _check(restored: Volume, ground: Ground) -> None:
    """Refuse a restored volume that does not match, or whose model was trained on the evaluation data."""
    truth, given = ground.truth, ground.input
    if restored.array.shape != ground.shape:
        raise DataError(
            f"{restored.path}: it has {_by(restored.array.shape)} voxels, but {given.path} restored has "
            f"{_by(ground.shape)}; run the stage `restore` again"
        )
    if truth.array.dtype != restored.array.dtype:
        raise DataError(
            f"{truth.path}: its voxels are {truth.array.dtype}, the restored ones {restored.array.dtype}; "
            "the truth must have the same intensities"
        )
    if not np.allclose(truth.voxel_size, restored.voxel_size, rtol=0.01):
        raise DataError(
            f"{truth.path}: its voxel is {_by(truth.voxel_size)} nm, but the restored one is "
            f"{_by(restored.voxel_size)} nm; the truth must have the same voxel size"
        )
    # a model may learn from the kept slices of a thinned volume, as only the left-out ones are measured
    kept = {file.sha256: file.kept_every for file in given.facts.sources if file.kept_every}
    learned = restored.restoration.training_sources
    trained = [file for file in learned if kept.get(file.sha256, 0) != file.kept_every]
    # a model may learn from the noisy images if it never saw the clean ones
    shown = {file.sha256 for file in trained if file.seen_as != "degraded"}
    answered = {file.sha256 for file in trained if file.seen_as is None}
    for volume, files in ((truth, shown), (given, answered)):
        if any(file.sha256 in files for file in volume.facts.sources):
            raise DataError(f"{volume.path}: the model was trained on these files; use others")


def _data_range(truth: Volume) -> float:
    """Return the range of PSNR and SSIM: 255 for 8-bit data, otherwise that of a typical truth slice."""
    return 255.0 if truth.array.dtype == np.uint8 else truth.intensity.span


def name_of(volume: Volume) -> str:
    """Return the name of a volume's folder, without its suffix."""
    return volume.path.name.removesuffix(".ome.zarr")


def _by(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
