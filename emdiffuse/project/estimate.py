"""`emdiffuse estimate`: estimate what a configuration will cost before running it.

Conventions
-----------
* Voxels, tiles, blocks and files are counted exactly, by the code that restores them; the sizes of stores are
  those before compression, and therefore upper bounds.
* Time is that of the networks only, without reading, blending, registration and evaluation.
* A training step costs three evaluations of each of its patches: one forward, two backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, prod

import numpy as np

from emdiffuse.config import Config, Model, Restoration, anisotropy_factor
from emdiffuse.config.shipped import model_folder
from emdiffuse.config.tasks import CONDITION_OFFSETS, TASKS
from emdiffuse.models.description import Description, UnetSpec, read_description
from emdiffuse.readers import open_source
from emdiffuse.restoration.footprint import memory_mb
from emdiffuse.restoration.geometry import BlockGrid, TileAxis
from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.stores.array import shard_shape

PYRAMID = 8 / 7
"""Size of a pyramid that halves three axes, relative to its finest level."""
BACKWARD = 3
"""Cost of a training step per patch, in network evaluations of a restoration."""


@dataclass(frozen=True)
class Extent:
    """The size of a dataset.

    Attributes
    ----------
    shape : tuple of int
        Shape (z, y, x).
    itemsize : int
        Bytes of a voxel.
    size : tuple of float or None
        Voxel size (z, y, x) in nanometers.
    thickness : float
        Fraction of the slice spacing that each slice averages over.
    """

    shape: tuple[int, int, int]
    itemsize: int
    size: tuple[float, float, float] | None
    thickness: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes of all voxels."""
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class RestorationCost:
    """The cost of a restoration.

    Attributes
    ----------
    item : Restoration
        The restoration.
    description : Description
        The model.
    extent : Extent
        Size of the input.
    grid : BlockGrid
        The blocks.
    """

    item: Restoration
    description: Description
    extent: Extent
    grid: BlockGrid

    @property
    def slices(self) -> int:
        """Slices per evaluation: those of a gap."""
        return max((len(self.grid.z.generated(gap)) for gap in range(min(self.grid.z.gaps, 64))), default=1)

    @property
    def tiles(self) -> int:
        """Number of tiles of all gaps or images."""
        return self.grid.z.gaps * len(self.grid.y.starts) * len(self.grid.x.starts)

    @property
    def evaluations(self) -> int:
        """Number of network evaluations, each of one tile."""
        return self.tiles * self.description.calls(self.item.sampler)

    @property
    def pixels(self) -> int:
        """Pixels of all evaluations, including margins."""
        return self.evaluations * self.grid.y.tile * self.grid.x.tile

    @property
    def voxels(self) -> int:
        """Number of voxels of the restored volume."""
        return prod(self.grid.volume)

    @cached_property
    def quantities(self) -> int:
        """Number of quantities stored per voxel during restoration."""
        return 1 + (self.item.sampler.samples > 1)

    @property
    def scratch_bytes(self) -> int:
        """Size of the tile store in bytes."""
        return len(self.grid) * prod(self.grid.chunk) * self.quantities * 4

    @property
    def result_bytes(self) -> int:
        """Size of the restored volume in bytes, with uncertainty and intervals, in all levels."""
        voxel = self.extent.itemsize * (1 + 2 * (self.item.calibration is not None))
        voxel += 4 * (self.item.sampler.samples > 1)
        return ceil(self.voxels * voxel * PYRAMID)

    @property
    def files(self) -> tuple[int, int]:
        """Number of files during restoration (one per block), and of the result (shards of all levels)."""
        images = self.quantities + 2 * (self.item.calibration is not None)
        shards, shape = 0, self.grid.volume
        while True:
            shard = shard_shape(shape)
            shards += prod(ceil(n / s) for n, s in zip(shape, shard, strict=True))
            if max(shape) <= max(shard):
                break
            shape = tuple(ceil(n / 2) for n in shape)  # type: ignore[assignment]
        return len(self.grid), shards * images

    @property
    def memory(self) -> dict[str, int]:
        """Memory of a worker in MB, by stage."""
        return memory_mb(self.grid, self.quantities, self.description)


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a training.

    Attributes
    ----------
    name : str
        The model's name.
    model : Model
        Its settings.
    description : Description
        Description of the future model.
    """

    name: str
    model: Model
    description: Description

    @property
    def slices(self) -> int:
        """Number of slices of a gap."""
        return max(self.model.factors) - 1 or 1

    @property
    def evaluations(self) -> int:
        """Network evaluations of all steps, forward and backward."""
        return self.model.training.steps * self.model.training.batch * BACKWARD

    @property
    def pixels(self) -> int:
        """Pixels of all evaluations."""
        return self.evaluations * self.model.patches.size**2

    @property
    def patch_bytes(self) -> int:
        """Maximum size of the patch store in bytes, in half precision."""
        volumetric = TASKS[self.model.task].volumetric
        planes = len(CONDITION_OFFSETS) + max(self.model.factors) - 1 if volumetric else 2
        return self.model.patches.limit * planes * self.model.patches.size**2 * 2


@dataclass(frozen=True)
class Estimate:
    """The cost of a configuration.

    Attributes
    ----------
    acquired : int
        Bytes of the stored datasets; registered volumes share them.
    restorations, trainings
        Costs of restorations and trainings.
    """

    acquired: int
    restorations: tuple[RestorationCost, ...]
    trainings: tuple[TrainingCost, ...]

    @property
    def peak_bytes(self) -> int:
        """Bytes on disk at the end, if nothing is removed."""
        restored = sum(cost.scratch_bytes + cost.result_bytes for cost in self.restorations)
        return self.acquired + restored + sum(cost.patch_bytes for cost in self.trainings)


def estimate(config: Config) -> Estimate:
    """Count the work of a configuration, without reading pixels.

    Raises
    ------
    DataError
        If data cannot be opened.
    ConfigError
        If neither the configuration nor the data state a voxel size.
    """
    from emdiffuse.training.state import network_spec

    extents = {
        name: _extent(config, name) for name in config.datasets if not config.datasets[name].holds_pairs
    }
    descriptions = {
        name: _described(model) if model.weights else Description(
            task=model.task, factors=model.factors, network=network_spec(model, 1.0)
        )
        for name, model in config.models.items()
    }  # fmt: skip
    restorations = tuple(
        RestorationCost(
            item,
            descriptions[item.model],
            extents[item.dataset],
            grid_of(item, descriptions[item.model], extents[item.dataset]),
        )
        for item in config.restorations
    )
    trainings = tuple(
        TrainingCost(name, model, descriptions[name])
        for name, model in config.models.items()
        if not model.weights
    )
    return Estimate(sum(extent.bytes for extent in extents.values()), restorations, trainings)


def _described(model: Model) -> Description:
    """Return the description of an existing model: of its folder, or of the published network."""
    assert model.weights is not None
    folder = model_folder(model.weights)
    if folder.is_dir():
        return read_description(folder)
    task = TASKS[model.task]
    spec = UnetSpec(in_channels=task.published_channels, slice_index=task.volumetric)
    return Description(task=model.task, network=spec)


def _extent(config: Config, name: str) -> Extent:
    """Return the size of a dataset, from its files or derived from another dataset."""
    dataset = config.datasets[name]
    origin = config.datasets[config.origin(name)]
    assert origin.source is not None
    source = open_source(origin.source, origin.repairs_slices, origin.reading, origin.images)
    z, y, x = source.shape
    size = config.voxel_size(name)
    if size is None and source.voxel_size is not None and None not in source.voxel_size:
        told = source.voxel_size
        assert told[0] is not None and told[1] is not None and told[2] is not None
        size = (told[0], told[1], told[2])
        if dataset.keep_every:
            size = (size[0] * dataset.keep_every.factor, size[1], size[2])
    if dataset.keep_every:
        z = ceil(z / dataset.keep_every.factor)
    if dataset.degrade:
        z, y, x = ceil(z / dataset.degrade.every), y // dataset.degrade.bin, x // dataset.degrade.bin
    thickness = dataset.keep_every.thickness if dataset.keep_every else origin.slice_thickness
    return Extent((z, y, x), np.dtype(source.dtype).itemsize, size, thickness)


def grid_of(item: Restoration, description: Description, extent: Extent) -> BlockGrid:
    """Return the blocks of a restoration, as `restoration.plan` will make them."""
    slices, height, width = extent.shape
    task, tiling = TASKS[description.task], item.tiling
    z: SliceGrid | ImageStack = ImageStack(slices)
    if task.volumetric:
        if extent.size is None:
            raise ConfigError(
                f"datasets.{item.dataset}: neither the configuration nor the data state the voxel size; add "
                "`voxel_size`"
            )
        factor = anisotropy_factor(extent.size, item.dataset, isotropic=True)
        z = SliceGrid(slices, factor, (), Fraction(extent.thickness).limit_denominator(1000))
    y, x = (
        TileAxis(length * task.scale, tiling.tile, tiling.halo, tiling.blend) for length in (height, width)
    )
    return BlockGrid(z, y, x, tiling.block)
