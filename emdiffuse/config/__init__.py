"""The configuration: pydantic models, the single source of truth for every key.

Conventions
-----------
* Lengths are in voxels unless a key says otherwise; voxel sizes carry their own unit and are kept in
  nanometers.
* ``emdiffuse schema`` prints their JSON schema, for editors that complete and check keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from emdiffuse.config.datasets import (
    MAXIMUM_FACTOR,
    MINIMUM_FACTOR,
    Alignment,
    Dataset,
    Degrade,
    Factor,
    KeepEvery,
    Name,
    Noise,
    Pairs,
    VoxelSize,
    anisotropy_factor,
)
from emdiffuse.config.evaluation import Evaluation, require_lpips
from emdiffuse.config.models import Augmentation, Model, Network, Patches, Training
from emdiffuse.config.restorations import Calibration, Restoration, Sampler, Tiling
from emdiffuse.config.settings import Section, parse
from emdiffuse.config.sheet import expand
from emdiffuse.config.shipped import SHIPPED, model_folder
from emdiffuse.config.sources import parse_source
from emdiffuse.config.tasks import TASKS
from emdiffuse.runtime.errors import ConfigError

__all__ = [
    "MAXIMUM_FACTOR",
    "MINIMUM_FACTOR",
    "Alignment",
    "Augmentation",
    "Calibration",
    "Config",
    "Dataset",
    "Degrade",
    "Evaluation",
    "Factor",
    "KeepEvery",
    "Model",
    "Name",
    "Network",
    "Noise",
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
    "read_config",
    "validate",
]


SHAPE = {"architecture", "channels", "multipliers"}
"""Keys of a network without which weights do not fit; of blocks a native network may have more."""


class Report(Section):
    """The report; nothing here changes a number."""

    title: str = Field(
        "emdiffuse",
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Title of the report, one line.",
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="Percentiles of the truth shown as black and white, the same in every panel."
    )
    width: int = Field(320, ge=64, le=2000, description="Width of a panel, in pixels.")

    @model_validator(mode="after")
    def _percentiles(self) -> Report:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("`percentiles` are two numbers from 0 to 100, the lower one first")
        return self


class Config(Section):
    """The whole configuration."""

    datasets: dict[Name, Dataset] = Field(default_factory=dict, description="The data, by name.")
    sheet: str | None = Field(
        None,
        description="A table of more datasets, tab-separated: name, source and other keys of a dataset. A "
        'restoration whose dataset is "*" is one of every row.',
    )
    models: dict[Name, Model] = Field(min_length=1, description="The models, by name.")
    restorations: tuple[Restoration, ...] = Field(
        (), description="What is restored, by which model; without it models are only trained."
    )
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What is measured.")
    report: Report = Field(default_factory=Report, description="The report.")

    @field_validator("datasets")
    @classmethod
    def _derived_exist(cls, datasets: dict[str, Dataset]) -> dict[str, Dataset]:
        for name, dataset in datasets.items():
            if dataset.derived is None:
                continue
            key, origin = "keep_every" if dataset.keep_every else "degrade", dataset.derived.dataset
            if origin not in datasets or datasets[origin].source is None:
                raise ValueError(f"{name}.{key}.dataset: there is no raw dataset named '{origin}'")
        return datasets

    @model_validator(mode="after")
    def _references(self) -> Config:
        if not self.datasets:
            raise ValueError("`datasets` is missing: name the data, or give a `sheet` of them")
        pairs = set()
        for name, model in self.models.items():
            for dataset in model.datasets:
                self._known(f"models.{name}.datasets", dataset, self.datasets)
                wants = not TASKS[model.task].volumetric
                if wants != self.datasets[dataset].holds_pairs and model.task != "emdiffuse-n":
                    kind = "image pairs" if wants else "volumes"
                    raise ValueError(
                        f"models.{name}.datasets: {model.task} learns from {kind}, not '{dataset}'"
                    )
            self._noisy(name)
            self._transfer(name)
        for index, item in enumerate(self.restorations):
            key = f"restorations.{index}"
            self._known(f"{key}.dataset", item.dataset, self.datasets)
            self._known(f"{key}.model", item.model, self.models)
            if self.datasets[item.dataset].holds_pairs:
                raise ValueError(
                    f"{key}.dataset: '{item.dataset}' are image pairs; give the images as `source`, or say "
                    "`images: true` beside `degrade`"
                )
            if (item.dataset, item.model) in pairs:
                raise ValueError(f"{key}: '{item.dataset}' by '{item.model}' is listed twice")
            pairs.add((item.dataset, item.model))
            if self.learns_from_noisy(item.model) and item.sampler.draws:
                raise ValueError(
                    f"{key}.sampler: '{item.model}' learns from noisy images alone, so that it knows their "
                    "mean and has no samples; remove `samples`, `steps`, `texture` and `sharpen`"
                )
            task = self.models[item.model].task
            if TASKS[task].volumetric and self.holds_images(item.dataset):
                raise ValueError(
                    f"{key}.dataset: {task} restores a volume, not the images of '{item.dataset}'"
                )
            size = self.voxel_size(item.dataset)
            if TASKS[task].volumetric and size is not None:
                # of an isotropic volume, too
                repair = self.datasets[self.origin(item.dataset)].repairs_slices
                anisotropy_factor(size, f"{key}.dataset", isotropic=repair)
            if item.real_slices is not None:
                self._restored_slices(f"{key}.real_slices", item, item.real_slices)
            truth = self.truth(item)
            if truth is not None:
                self._known(f"{key}.truth", truth, self.datasets)
                self._separate(key, item, truth)
            if item.second_scan is not None:
                self._known(f"{key}.second_scan", item.second_scan, self.datasets)
                if task != "emdiffuse-n":
                    raise ValueError(f"{key}.second_scan: it is for emdiffuse-n; remove it, this is {task}")
                self._separate(key, item, item.second_scan)
            if item.calibration is not None:
                self._calibrated(f"{key}.calibration.dataset", item)
        return self

    def learns_from_noisy(self, model: str) -> bool:
        """Tell whether a model learns from noisy images alone, since some of its data have no truth.

        Pairs with a truth beside those are measured on, and not learned from.
        """
        own = self.models[model]
        return own.task == "emdiffuse-n" and not all(
            self.datasets[name].holds_clean_images for name in own.datasets
        )

    def _noisy(self, name: str) -> None:
        """Refuse to learn in two ways at once, and neighbours of images that have none."""
        model = self.models[name]
        own = [self.datasets[dataset] for dataset in model.datasets]
        scans = [dataset.pairs is not None and bool(dataset.pairs.scans) for dataset in own]
        if any(scans) and not all(dataset.holds_pairs for dataset in own):
            raise ValueError(
                f"models.{name}.datasets: repeated scans (`pairs.scans`) and single images are learned from "
                "in different ways; make a model of each"
            )
        for dataset, key in zip(own, model.datasets, strict=True):
            separate = dataset.pairs is not None or (dataset.images and not dataset.degrade)
            if model.patches.context and (separate or (dataset.degrade and dataset.degrade.every > 1)):
                raise ValueError(
                    f"models.{name}.patches.context: '{key}' holds separate images, which have no "
                    "neighbouring slices; remove this key"
                )

    def _transfer(self, name: str) -> None:
        """Refuse a model that starts from itself, directly or not, or from a different network."""
        begun, seen = name, [name]
        while (begun := self.models[begun].training.init_from or "") in self.models:
            if begun in seen:
                raise ValueError(f"models.{name}.training.init_from: '{begun}' would start from itself")
            seen.append(begun)
            if self.models[begun].weights is not None:
                return  # what network that is, training finds out
            models = self.models[name], self.models[begun]
            own, other = (
                (
                    TASKS[model.task].volumetric,
                    model.patches.context,
                    *model.network.model_dump(include=SHAPE).values(),
                )
                for model in models
            )
            more = models[0].network.blocks - models[1].network.blocks
            if own != other or more < 0 or (more and models[0].network.architecture == "unet"):
                raise ValueError(
                    f"models.{name}.training.init_from: '{begun}' has a different network; make them the same"
                )

    @staticmethod
    def _known(key: str, name: str, names: dict[str, Any]) -> None:
        if name not in names:
            raise ValueError(f"{key}: there is no '{name}'; known: {', '.join(names)}")

    def _separate(self, key: str, item: Restoration, truth: str) -> None:
        """Refuse to evaluate a model on a volume that it, or a model it starts from, was trained on.

        The slices kept of a volume may be learned from (vemdiffuse-a) where those left out are measured, and
        so may noisy images by a model that never saw the clean ones.
        """
        keep = self.datasets[item.dataset].keep_every
        allowed = item.dataset if keep and keep.dataset == truth else None
        models = self.lineage(item.model) + (self.lineage(item.real_slices) if item.real_slices else [])
        learned = [
            (name, self.learns_from_noisy(model)) for model in models for name in self.models[model].datasets
        ]
        trained = {
            self.origin(name) for name, noisy in learned if name != (item.dataset if noisy else allowed)
        }
        sources = {self.datasets[name].source for name in trained} - {None}
        # as they are: noisy images that were learned from are no truth
        shown = {self.datasets[name].source for name, _ in learned} - {None}
        for name in (item.dataset, truth):
            source = self.datasets[self.origin(name)].source
            if self.origin(name) in trained or source in (shown if name == truth else sources):
                model = " or ".join(f"'{own}'" for own in (item.model, item.real_slices) if own)
                raise ValueError(
                    f"{key}: model {model} was trained on '{self.origin(name)}' and cannot be evaluated on it"
                )

    def _restored_slices(self, key: str, item: Restoration, model: str) -> None:
        """Refuse real slices that are not restored, or not on the grid of the dataset."""
        self._known(key, model, self.models)
        if not TASKS[self.models[item.model].task].volumetric:
            raise ValueError(f"{key}: {self.models[item.model].task} restores every slice; remove this key")
        if self.models[model].task != "emdiffuse-n":
            raise ValueError(f"{key}: '{model}' is not an emdiffuse-n model; name one that denoises")
        if not any((other.dataset, other.model) == (item.dataset, model) for other in self.restorations):
            raise ValueError(
                f"{key}: '{item.dataset}' is not restored by '{model}'; add that to `restorations`"
            )

    def _calibrated(self, key: str, item: Restoration) -> None:
        """Refuse to calibrate on what is restored, or on what has no truth or is restored otherwise."""
        assert item.calibration is not None
        other = self.calibrated_on(item)
        if other is None or (other.second_scan or self.truth(other)) is None:
            raise ValueError(
                f"{key}: '{item.calibration.dataset}' must be restored by '{item.model}' too, and have a "
                "truth or a `second_scan`"
            )
        if self.origin(other.dataset) == self.origin(item.dataset):
            raise ValueError(
                f"{key}: '{other.dataset}' is the dataset being restored; calibrate on other data"
            )
        if other.sampler.model_copy(update={"seed": item.sampler.seed}) != item.sampler:
            raise ValueError(f"{key}: '{other.dataset}' is restored with another `sampler`; use the same")
        if other.real_slices is not None:
            raise ValueError(f"{key}: '{other.dataset}' is restored with `real_slices`; remove that there")

    def calibrated_on(self, item: Restoration) -> Restoration | None:
        """Return the restoration that another one is calibrated on, if there is one."""
        name = item.calibration and item.calibration.dataset
        found = (o for o in self.restorations if (o.dataset, o.model) == (name, item.model))
        return next(found, None)

    def beside(self, item: Restoration) -> list[Restoration]:
        """Return the other restorations of the same dataset that are compared with the same truth."""
        truth = self.truth(item)
        return [
            other
            for other in self.restorations
            if truth and other is not item and (other.dataset, self.truth(other)) == (item.dataset, truth)
        ]

    def baselines_task(self, item: Restoration) -> str:
        """Return the task whose baselines a restoration has; gaps have the same, whatever fills them."""
        task = self.models[item.model].task
        return "vemdiffuse-i" if TASKS[task].volumetric else task

    def baselines(self, item: Restoration) -> str:
        """Return what names the baselines of a restoration, among those of its dataset."""
        kind = "gaps" if TASKS[self.models[item.model].task].volumetric else self.baselines_task(item)
        between = f"-between-{item.real_slices}" if item.real_slices else ""
        return f"{kind}-of-{self.truth(item)}{between}"

    def lineage(self, model: str) -> list[str]:
        """Return a model, the model it starts from, and so on."""
        found = [model]
        while (name := self.models[found[-1]].training.init_from) in self.models:
            assert name is not None
            found.append(name)
        return found

    def origin(self, dataset: str) -> str:
        """Return the raw dataset that a dataset comes from (itself, when it is raw)."""
        derived = self.datasets[dataset].derived
        return derived.dataset if derived else dataset

    def holds_images(self, dataset: str) -> bool:
        """Tell whether a dataset holds separate images, rather than the slices of a volume."""
        own = self.datasets[dataset]
        return own.images or (own.keep_every is not None and self.datasets[own.keep_every.dataset].images)

    def truth(self, item: Restoration) -> str | None:
        """Return the dataset that a restoration is compared with, if there is one."""
        own, gaps = self.datasets[item.dataset], TASKS[self.models[item.model].task].volumetric
        complete = own.keep_every if gaps else own.degrade if own.degrade and own.degrade.every == 1 else None
        return item.truth or (complete.dataset if complete else None)

    def voxel_size(self, dataset: str) -> tuple[float, float, float] | None:
        """Return the voxel size (z, y, x) of a dataset in nanometers, None where its source is to tell it.

        Of pairs it is that of the clean images.
        """
        own, size = self.datasets[dataset], self.datasets[self.origin(dataset)].voxel_size
        if size is None:
            return None
        z, y, x = size.nanometers
        along = own.keep_every.factor if own.keep_every else 1
        lateral = own.degrade.bin if own.degrade and own.images else 1
        return (z * along, y * lateral, x * lateral)


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
    config = parse(Config, expand(values), where)
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
    for name, model in config.models.items():
        if model.weights is not None and not model_folder(model.weights).exists():
            raise ConfigError(
                f"{where}: models.{name}.weights: there is no '{model.weights}'; give a shipped model "
                f"({', '.join(SHIPPED)}), the folder of a model, or a published checkpoint (.pth)"
            )
        begun = model.training.init_from
        if (
            begun is not None
            and begun not in config.models
            and not (model_folder(begun) / "model.json").exists()
        ):
            raise ConfigError(
                f"{where}: models.{name}.training.init_from: '{begun}' is neither a model of this "
                f"configuration, nor a shipped one ({', '.join(SHIPPED)}), nor the folder of one; check the "
                "name"
            )
    if config.evaluation.lpips is not None:
        require_lpips(Path(config.evaluation.lpips), f"{where}: evaluation.lpips")
    return config


def read_config(path: Path) -> Config:
    """Read a configuration file; its paths are relative to the working directory.

    Raises
    ------
    ConfigError
        If it cannot be read, or is wrong; one sentence.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return validate(values, str(path))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
