"""A restored volume beside its input and its truth: opened together, and refused where they do not fit.

Conventions
-----------
* Axes are (z, y, x). Output slice 0 is real slice 0 is truth slice 0; all volumes share the lateral grid of
  the output (the input of emdiffuse-r has half of it).
* What was trained on is never measured on: the checksums of the raw files say so, wherever they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.tasks import TASKS
from emdiffuse.restoration.geometry import ImageStack, SliceGrid, slice_grid
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.provenance import digests
from emdiffuse.stores.volume import Box, Volume, open_volume

Grid = SliceGrid | ImageStack


@dataclass(frozen=True)
class Comparison:
    """Volumes that fit together.

    Attributes
    ----------
    restored, input, truth : Volume
        Opened.
    grid : SliceGrid or ImageStack
        Output slices.
    data_range : float
        Range of intensities: 255 for 8-bit data, else that of a typical slice of the truth.
    extras : dict
        What else was restored: uncertainty, interval bounds, the regression, and by other models.
    """

    restored: Volume
    input: Volume
    truth: Volume
    grid: Grid
    data_range: float
    extras: dict[str, Volume]

    @property
    def images(self) -> bool:
        """Whether these are images, each restored by itself."""
        return isinstance(self.grid, ImageStack)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of what is compared."""
        _, height, width = self.truth.array.shape
        return (self.grid.length, height, width)

    @property
    def low(self) -> float:
        """The intensity that the range begins at."""
        return 0.0 if self.truth.array.dtype == np.uint8 else self.truth.intensity.low

    def names(self) -> dict[str, str | None]:
        """Return the names of dataset, model and truth."""
        facts = self.restored.facts
        return {
            "dataset": facts.get("dataset") or _name(self.input.path),
            "model": facts.get("model"),
            "truth": _name(self.truth.path),
        }


def compare(restored: Path, dataset: Path, truth: Path) -> Comparison:
    """Open a restored volume, the registered volume that it was made of, and the registered truth.

    Raises
    ------
    DataError
        If the truth does not fit the restored volume or either was among the model's training data.
    """
    ours, given, wanted = (open_volume(path) for path in (restored, dataset, truth))
    extras = {
        name: open_volume(restored / name)
        for name in ("uncertainty", "lower", "upper", "regression")
        if (restored / name / "zarr.json").exists()
    }
    grid = _check(ours, given, wanted)
    return Comparison(ours, given, wanted, grid, _data_range(wanted), extras)


def read(volume: Volume, box: Box) -> NDArray[Any]:
    """Read a box, and refuse voxels that are not finite."""
    values = volume.array[box]
    if not np.isfinite(values).all():
        raise DataError(f"{volume.path}: some voxels are not finite numbers; it cannot be evaluated")
    return values


def _check(restored: Volume, input: Volume, truth: Volume) -> Grid:
    """Return the output slices, when the three volumes fit together."""
    task = TASKS[restored.facts.get("task", "vemdiffuse-i")]
    grid: Grid = ImageStack(input.array.shape[0])
    if task.volumetric:
        grid = slice_grid(input)
    expected = (grid.length, *(n * task.scale for n in input.array.shape[1:]))
    if restored.array.shape != expected:
        raise DataError(
            f"{restored.path}: it has {_by(restored.array.shape)} voxels, but {input.path} restored has "
            f"{_by(expected)}; run the stage `restore` again"
        )
    if truth.array.shape[1:] != expected[1:]:
        raise DataError(
            f"{truth.path}: its slices have {_by(truth.array.shape[1:])} pixels, those of {input.path} "
            f"{_by(expected[1:])}; the truth must show the same field"
        )
    if truth.array.shape[0] < grid.length:
        raise DataError(
            f"{truth.path}: it has {truth.array.shape[0]} slices, but the restored volume has {grid.length}; "
            "the truth must reach as deep"
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
    # slices kept of a thinned volume may be learned from: those left out are what is measured
    kept = [source for source in input.facts.get("sources", []) if "kept_every" in source]
    trained = digests([s for s in restored.facts.get("training_sources", []) if s not in kept])
    for volume in (truth, input):
        if trained & digests(volume.facts.get("sources")):
            raise DataError(f"{volume.path}: the model was trained on these files; take others")
    return grid


def _data_range(truth: Volume) -> float:
    """Return the range that PSNR and SSIM refer to: 255 for 8-bit data, else that of a typical true slice."""
    return 255.0 if truth.array.dtype == np.uint8 else truth.intensity.span


def _name(path: Path) -> str:
    return path.name.removesuffix(".ome.zarr")


def _by(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
