"""The configuration: pydantic models that are the one truth of every key.

Conventions
-----------
* Lengths are in voxels unless a key says otherwise; voxel sizes carry their own unit and are kept in
  nanometers.
* The workflow's JSON schema (``workflow/schemas/config.schema.yaml``) is generated from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from emdiffuse.config.datasets import (
    MAXIMUM_FACTOR,
    MINIMUM_FACTOR,
    Alignment,
    Dataset,
    Factor,
    KeepEvery,
    Name,
    Pairs,
    VoxelSize,
    anisotropy_factor,
)
from emdiffuse.config.models import Augmentation, Model, Network, Patches, Training
from emdiffuse.config.restorations import Calibration, Restoration, Sampler, Tiling
from emdiffuse.errors import ConfigError
from emdiffuse.settings import Section, parse
from emdiffuse.sources import parse_source
from emdiffuse.tasks import TASKS

__all__ = [
    "MAXIMUM_FACTOR",
    "MINIMUM_FACTOR",
    "Alignment",
    "Augmentation",
    "Calibration",
    "Config",
    "Dataset",
    "Factor",
    "KeepEvery",
    "Model",
    "Name",
    "Network",
    "Pairs",
    "Patches",
    "Report",
    "Restoration",
    "Sampler",
    "Tiling",
    "Training",
    "VoxelSize",
    "anisotropy_factor",
    "json_schema",
    "validate",
]


class Report(Section):
    """The report; nothing here changes a number."""

    title: str = Field("emdiffuse", description="Title of the report.")
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="Percentiles of the truth shown as black and white, the same in every panel."
    )
    width: int = Field(320, ge=64, le=2000, description="Width of a panel, in pixels.")


class Config(Section):
    """The whole configuration."""

    datasets: dict[Name, Dataset] = Field(min_length=1, description="The data, by name.")
    models: dict[Name, Model] = Field(min_length=1, description="The models, by name.")
    restorations: tuple[Restoration, ...] = Field(
        min_length=1, description="What is restored, by which model."
    )
    report: Report = Field(default_factory=Report, description="The report.")

    @field_validator("datasets")
    @classmethod
    def _derived_exist(cls, datasets: dict[str, Dataset]) -> dict[str, Dataset]:
        for name, dataset in datasets.items():
            origin = dataset.keep_every and dataset.keep_every.dataset
            if origin and (origin not in datasets or datasets[origin].source is None):
                raise ValueError(f"{name}.keep_every.dataset: there is no raw dataset named '{origin}'")
        return datasets

    @model_validator(mode="after")
    def _references(self) -> Config:
        pairs = set()
        for name, model in self.models.items():
            for dataset in model.datasets:
                self._known(f"models.{name}.datasets", dataset, self.datasets)
                wants = not TASKS[model.task].volumetric
                if wants != (self.datasets[dataset].pairs is not None):
                    kind = "image pairs" if wants else "volumes"
                    raise ValueError(
                        f"models.{name}.datasets: {model.task} learns from {kind}, not '{dataset}'"
                    )
        for index, item in enumerate(self.restorations):
            key = f"restorations.{index}"
            self._known(f"{key}.dataset", item.dataset, self.datasets)
            self._known(f"{key}.model", item.model, self.models)
            if self.datasets[item.dataset].pairs is not None:
                raise ValueError(
                    f"{key}.dataset: '{item.dataset}' are image pairs; give the images as `source`"
                )
            if (item.dataset, item.model) in pairs:
                raise ValueError(f"{key}: '{item.dataset}' by '{item.model}' is listed twice")
            pairs.add((item.dataset, item.model))
            task = self.models[item.model].task
            if TASKS[task].volumetric == self.datasets[self.origin(item.dataset)].images:
                kind = "a volume" if TASKS[task].volumetric else "images (`images: true` of the dataset)"
                raise ValueError(f"{key}.dataset: {task} restores {kind}, not '{item.dataset}'")
            size = self.voxel_size(item.dataset)
            if TASKS[task].volumetric and size is not None:
                # an isotropic volume may have slices that are missing, which is known when it is acquired
                anisotropy_factor(size, f"{key}.dataset", isotropic=True)
            truth = self.truth(item)
            if truth is not None:
                self._known(f"{key}.truth", truth, self.datasets)
                self._separate(key, item, truth)
            if item.calibration is not None:
                self._calibrated(f"{key}.calibration.dataset", item)
        return self

    @staticmethod
    def _known(key: str, name: str, names: dict[str, Any]) -> None:
        if name not in names:
            raise ValueError(f"{key}: there is no '{name}'; known: {', '.join(names)}")

    def _separate(self, key: str, item: Restoration, truth: str) -> None:
        """Refuse to evaluate a model on a volume that it was trained on."""
        trained = {self.origin(name) for name in self.models[item.model].datasets}
        sources = {self.datasets[name].source for name in trained} - {None}
        for name in (item.dataset, truth):
            if self.origin(name) in trained or self.datasets[self.origin(name)].source in sources:
                raise ValueError(
                    f"{key}: model '{item.model}' was trained on '{self.origin(name)}' and cannot be "
                    "evaluated on it"
                )

    def _calibrated(self, key: str, item: Restoration) -> None:
        """Refuse to calibrate on what is restored, or on what has no truth or another sampler."""
        assert item.calibration is not None
        other = self.calibrated_on(item)
        if other is None or self.truth(other) is None:
            raise ValueError(
                f"{key}: '{item.calibration.dataset}' must be restored by '{item.model}' too, and have a "
                "truth"
            )
        if self.origin(other.dataset) == self.origin(item.dataset):
            raise ValueError(f"{key}: '{other.dataset}' is what is restored; calibrate on other data")
        if other.sampler.model_copy(update={"seed": item.sampler.seed}) != item.sampler:
            raise ValueError(f"{key}: '{other.dataset}' is restored with another `sampler`; use the same")

    def calibrated_on(self, item: Restoration) -> Restoration | None:
        """Return the restoration that another one is calibrated on, if there is one."""
        name = item.calibration and item.calibration.dataset
        found = (o for o in self.restorations if (o.dataset, o.model) == (name, item.model))
        return next(found, None)

    def origin(self, dataset: str) -> str:
        """Return the raw dataset that a dataset comes from (itself, when it is raw)."""
        keep = self.datasets[dataset].keep_every
        return keep.dataset if keep else dataset

    def truth(self, item: Restoration) -> str | None:
        """Return the dataset that a restoration is compared with, if there is one."""
        keep = self.datasets[item.dataset].keep_every
        return item.truth or (keep.dataset if keep else None)

    def voxel_size(self, dataset: str) -> tuple[float, float, float] | None:
        """Return the voxel size (z, y, x) of a dataset in nanometers, None where its source is to tell it."""
        keep = self.datasets[dataset].keep_every
        size = self.datasets[self.origin(dataset)].voxel_size
        if size is None:
            return None
        z, y, x = size.nanometers
        return (z * keep.factor if keep else z, y, x)


def validate(values: Any, where: str = "config") -> Config:
    """Validate a whole configuration, and that the files it names exist.

    Parameters
    ----------
    values : Any
        The mapping that YAML gave.
    where : str
        Name of the file, for the error.

    Raises
    ------
    ConfigError
        One sentence that names the key.
    """
    config = parse(Config, values, where)
    for name, dataset in config.datasets.items():
        if dataset.source is not None and not parse_source(dataset.source).exists:
            raise ConfigError(
                f"{where}: datasets.{name}.source: there is no '{dataset.source}'; check the path"
            )
        if dataset.pairs is not None and not Path(dataset.pairs.folder).is_dir():
            raise ConfigError(
                f"{where}: datasets.{name}.pairs.folder: there is no folder '{dataset.pairs.folder}'; "
                "check the path"
            )
    return config


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
