"""The work of the widget, without Qt: restore the voxels of a layer.

Conventions
-----------
* The stages of the pipeline run in a temporary folder; the result equals that of `emdiffuse enhance`.
* Arrays are (z, y, x), or (y, x) for one image. Voxel sizes are (z, y, x) in nanometers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.config import MAXIMUM_FACTOR, MINIMUM_FACTOR, Restoration, Sampler, Tiling, anisotropy_factor
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import Description, read_description
from emdiffuse.project.estimate import Extent, RestorationCost, grid_of
from emdiffuse.project.speed import Speed, measure
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.runtime.locks import lock
from emdiffuse.stores.array import Array
from emdiffuse.stores.volume import open_volume

DTYPES = ("uint8", "uint16", "int16", "float32")
SHARES = 500
"""Maximum number of parts, between which progress is reported and the work can be cancelled."""
PREFIX, LOCK = "emdiffuse-napari-", "in-use.lock"
SMALL_BLOCKS = Tiling(block=(1, 1, 1))
"""Blocks of one gap (or image) and one tile, so that Cancel takes effect quickly."""


@dataclass(frozen=True)
class Job:
    """A layer to restore, and how.

    Attributes
    ----------
    name : str
        Name of the layer.
    data : array
        Its voxels, possibly lazy: anything that slices like a numpy array.
    size : tuple of float
        Voxel size.
    model : Path
        Folder of the model.
    sampler : Sampler
        Sampler settings.
    device : str
        "auto", "cpu" or a CUDA device.
    """

    name: str
    data: Any
    size: tuple[float, float, float]
    model: Path
    sampler: Sampler
    device: str = "auto"

    @cached_property
    def description(self) -> Description:
        """Description of the model."""
        return read_description(self.model)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x)."""
        z, y, x = (1, *self.data.shape)[-3:]
        return (int(z), int(y), int(x))

    @cached_property
    def cost(self) -> RestorationCost:
        """Cost of the restoration.

        Raises
        ------
        DataError, ConfigError
            If it cannot be restored; the widget shows the sentence.
        """
        if self.data.ndim not in (2, 3):
            raise DataError(
                f"{self.name}: has {self.data.ndim} axes; choose an image or a volume of one channel"
            )
        if np.dtype(self.data.dtype).name not in DTYPES:
            raise DataError(
                f"{self.name}: has pixels of type {self.data.dtype}; convert to {', '.join(DTYPES)}"
            )
        item = Restoration(dataset="layer", model="model", sampler=self.sampler, tiling=SMALL_BLOCKS)
        if TASKS[self.description.task].volumetric:
            if self.shape[0] < 2:
                raise DataError(
                    f"{self.name}: a single image has no gaps; choose a volume, or an image model"
                )
            self._require_thick()
        extent = Extent(self.shape, np.dtype(self.data.dtype).itemsize, self.size)
        return RestorationCost(item, self.description, extent, grid_of(item, self.description, extent))

    def _require_thick(self) -> None:
        factor = self.size[0] / self.size[1]
        if not MINIMUM_FACTOR <= factor <= MAXIMUM_FACTOR:
            raise ConfigError(
                f"{self.name}: the slice spacing is {factor:g} pixels; set it to between "
                f"{MINIMUM_FACTOR} and {MAXIMUM_FACTOR}"
            )

    def told(self, speed: Speed) -> str:
        """Return in a few words what will happen."""
        task = TASKS[self.description.task]
        shape = " x ".join(map(str, self.cost.grid.volume))
        what = task.title.capitalize()
        if task.volumetric:
            factor = anisotropy_factor(self.size)
            what = f"Gaps of {factor} pixels between {self.shape[0]} slices are filled"
            if not self.description.trained_for(Fraction(factor)):
                known = self.description.factors
                what += f", but the model learned {min(known)} to {max(known)}"
        seconds = self.cost.pixels * speed.seconds
        estimator = self.description.estimator(self.description.resolve(self.sampler))
        return (
            f"{what}. Result: {shape} voxels, the {estimator}; "
            f"{self.cost.evaluations} network evaluations, about {_duration(seconds)} on {_device(speed)}."
        )

    def speed(self) -> Speed:
        """Time the network here, with one thread."""
        return measure(self.description, self.cost.slices, self.device, count=False)


@dataclass(frozen=True)
class Result:
    """A restored layer: quantities by name, each (z, y, x), and their voxel size."""

    images: dict[str, NDArray[Any]]
    size: tuple[float, float, float]
    facts: dict[str, Any]


def run(job: Job) -> Iterator[tuple[int, int, Result | None]]:
    """Restore a layer; yield the parts done, their number, and at the end the result.

    Closing the generator cancels the work and removes the folder.

    Raises
    ------
    EmdiffuseError
        If the data or the model cannot be used.
    """
    from emdiffuse.acquisition.acquire import acquire
    from emdiffuse.models.inference import RestorationModel
    from emdiffuse.restoration.planning import make_plan
    from emdiffuse.restoration.stitch import pyramid, stitch
    from emdiffuse.restoration.tiles import restore
    from emdiffuse.runtime.devices import place_of

    cost = job.cost
    volumetric = TASKS[job.description.task].volumetric
    with work_folder() as work:
        raw, volume, path = work / "raw.tif", work / "input.ome.zarr", work / "plan.json"
        planes = (np.asarray(job.data[z]) for z in range(job.shape[0])) if job.data.ndim == 3 else None
        stack = planes if planes is not None else iter([np.asarray(job.data)])
        tifffile.imwrite(raw, stack, shape=job.shape, dtype=job.data.dtype, photometric="minisblack")
        acquire(str(raw), job.size, volume, "layer", images=not volumetric)
        plan = make_plan(volume, job.model, cost.item, path)
        model = RestorationModel.load(job.model, place_of(job.device))
        parts = min(len(plan.grid), SHARES)
        yield 0, parts, None
        for part in range(1, parts + 1):
            restore(path, part, parts, job.device, model)
            yield part, parts, None
        stitch(path, 1, 1)
        pyramid(path)
        images = {name: Array(plan.restored / name / "0")[:, :, :] for name in plan.outputs}
        restored = open_volume(plan.restored / "restored")
        yield parts, parts, Result(images, restored.voxel_size, restored.facts.as_json())


@contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a temporary folder, which is removed at the end.

    If the viewer is closed meanwhile, it is removed when Python exits; if the viewer is killed, the next call
    removes it, recognized by its free lock.
    """
    for abandoned in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_abandoned(abandoned):
            shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        work = Path(name)
        with (work / "new.lock").open("w") as held:
            lock(held, "the widget of napari")
            (work / "new.lock").rename(work / LOCK)  # locked before it gets its name
            yield work


def _is_abandoned(folder: Path) -> bool:
    """Return whether the process that worked in a folder has ended; False if uncertain."""
    try:
        with (folder / LOCK).open("r+") as held:
            return lock(held, "the widget of napari")
    except OSError:  # locked, of another user, or not locked yet
        return False


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _device(speed: Speed) -> str:
    return "this GPU" if speed.device == "cuda" else "one core of this computer"
