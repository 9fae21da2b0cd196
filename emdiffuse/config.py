"""The configuration: pydantic models that are the one truth of every key.

Conventions
-----------
* Lengths are in voxels unless a key says otherwise; voxel sizes carry their own unit and are kept in
  nanometers.
* The workflow's JSON schema (``workflow/schemas/config.schema.yaml``) is generated from here.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from emdiffuse.errors import ConfigError
from emdiffuse.settings import Section, parse
from emdiffuse.tasks import TASKS

NANOMETERS = {"nanometer": 1.0, "micrometer": 1000.0, "angstrom": 0.1}
MINIMUM_FACTOR, MAXIMUM_FACTOR = 2, 12
Factor = Annotated[int, Field(ge=MINIMUM_FACTOR, le=MAXIMUM_FACTOR)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class VoxelSize(Section):
    """Size of a voxel along z, y and x."""

    z: float = Field(gt=0, description="Distance between slices, in `unit`.")
    y: float = Field(gt=0, description="Height of a pixel, in `unit`.")
    x: float = Field(gt=0, description="Width of a pixel, in `unit`.")
    unit: Literal["nanometer", "micrometer", "angstrom"] = Field(
        "nanometer", description="Unit of the three numbers."
    )

    @property
    def nanometers(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in nanometers."""
        scale = NANOMETERS[self.unit]
        return (self.z * scale, self.y * scale, self.x * scale)


class KeepEvery(Section):
    """An anisotropic volume made from an isotropic one, whose left-out slices are the truth."""

    dataset: Name = Field(description="The dataset that is thinned out.")
    factor: int = Field(ge=2, le=12, description="Every factor-th slice is kept, from the first.")


class Alignment(Section):
    """The check of slice-to-slice alignment of a volume."""

    tolerance: float = Field(
        1.0,
        gt=0,
        description="Largest misplacement of a slice in an aligned volume, in pixels, for slices as far "
        "apart as pixels; more is allowed the further they are apart.",
    )
    slices: int = Field(64, ge=2, description="How many neighbouring pairs are looked at, at most.")


class Pairs(Section):
    """Image pairs: the same fields imaged twice, noisy and clean, or of low and of high resolution."""

    folder: str = Field(description="The folder that holds the images, also in folders within it.")
    pattern: str | None = Field(
        None,
        description="How the files are named, if in none of the known layouts: `{role}` and `{field}`, and "
        "if there are any `{specimen}` and `{level}`, such as `{specimen}/{role}-{field}.tif`.",
    )
    keep_going: bool = Field(
        False, description="Leave out pairs that cannot be used, with a warning, instead of stopping."
    )


class Dataset(Section):
    """A raw volume, one derived from another, or image pairs."""

    source: str | None = Field(
        None,
        description="A multi-page TIFF, a folder of numbered slices (0.tif ... n.tif), or a glob of them.",
    )
    images: bool = Field(False, description="The source holds separate images, not the slices of a volume.")
    voxel_size: VoxelSize | None = Field(
        None, description="Voxel size, of pairs that of the clean images; required with `source` and `pairs`."
    )
    keep_every: KeepEvery | None = Field(
        None, description="Instead of `source`: keep every n-th slice of another dataset."
    )
    pairs: Pairs | None = Field(None, description="Instead of `source`: image pairs to learn from.")
    alignment: Alignment = Field(default_factory=Alignment, description="The check of the slices' alignment.")

    @model_validator(mode="after")
    def _one_origin(self) -> Dataset:
        if sum(origin is not None for origin in (self.source, self.keep_every, self.pairs)) != 1:
            raise ValueError("give one of `source`, `keep_every` and `pairs`")
        if self.keep_every is None and self.voxel_size is None:
            raise ValueError("`voxel_size` is missing")
        if self.images and self.source is None:
            raise ValueError("`images` says what a `source` holds; remove it")
        if self.keep_every is not None and self.voxel_size is not None:
            raise ValueError("`voxel_size` follows from `keep_every`; remove it")
        return self


class Patches(Section):
    """The patch store that a model is trained from."""

    size: int = Field(64, ge=16, multiple_of=8, description="Height and width of a patch, in pixels.")
    overlap: float = Field(0.5, ge=0, lt=1, description="Share of a patch that its neighbour repeats.")
    validation: float = Field(
        0.125, gt=0, lt=1, description="Share of the volume, at its far end in z, kept for validation."
    )
    minimum_contrast: float = Field(
        0.02, ge=0, description="Patches with a standard deviation below this (range [-1, 1]) are blank."
    )
    limit: int = Field(20000, ge=1, description="Most patches kept, drawn evenly from all.")
    seed: int = Field(0, ge=0, description="Seed of that draw.")


class Network(Section):
    """The network."""

    architecture: Literal["native", "unet"] = Field(
        "native", description="The native network, or the U-Net of the published work."
    )
    channels: int = Field(
        32,
        ge=8,
        multiple_of=8,
        description="Channels at the finest level, half resolution for native.",
    )
    multipliers: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Channels a level, times `channels`; by default [1, 2, 4], and [1, 2, 4, 8] for unet.",
    )
    blocks: int = Field(2, ge=1, description="Residual blocks a level.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the residual blocks (unet).")
    checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass: less memory, more time.",
    )

    @model_validator(mode="after")
    def _of_its_architecture(self) -> Network:
        if self.architecture == "native" and self.dropout:
            raise ValueError("`dropout` is for the architecture unet; remove it")
        if self.architecture == "unet" and self.channels % 16:
            raise ValueError("`channels` of the architecture unet must be a multiple of 16")
        return self


class Training(Section):
    """The training loop."""

    steps: int = Field(20000, ge=1, description="Optimizer steps.")
    minutes: float | None = Field(None, gt=0, description="Wall time after which training ends early.")
    batch: int = Field(8, ge=1, description="Patches a step.")
    accumulate: int = Field(
        1, ge=1, description="Parts that a batch is worked through in, one after another, to save memory."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup: int = Field(100, ge=0, description="Steps of linear warm-up, before the cosine decay.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of AdamW.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the moving average of the weights.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    loss: Literal["mse", "difficulty"] = Field(
        "mse", description="Squared error, or the published difficulty-aware loss (architecture unet)."
    )
    mean_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a batch at pure noise, where a native network learns the posterior mean.",
    )
    noise_correlation: float = Field(
        0.0,
        ge=0,
        description="Correlation length of a native model's noise along z, in gaps; 0: white.",
    )
    validate_every: int = Field(500, ge=1, description="Steps between validations.")
    checkpoint_minutes: float = Field(2.0, gt=0, description="Minutes between saved states.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the network; auto chooses by device."
    )
    init_from: str | None = Field(
        None,
        description="Folder of a trained or imported model whose weights are begun from (transfer); its "
        "network must be the same.",
    )
    seed: int = Field(0, ge=0, description="Seed of the weights, the order of the data and the noise.")


class Model(Section):
    """A model: its task, the data that it is trained on, its network and its training."""

    task: Literal["emdiffuse-n", "emdiffuse-r", "vemdiffuse-i", "vemdiffuse-a"] = Field(
        description="What the model learns."
    )
    datasets: tuple[Name, ...] = Field(min_length=1, description="Datasets that it is trained on.")
    factor: Factor | tuple[Factor, ...] | None = Field(
        None,
        description="Anisotropy factors that it is trained for, one or several; required for volumes. It "
        "also serves the factors between them.",
    )
    patches: Patches = Field(default_factory=Patches, description="The patch store.")
    network: Network = Field(default_factory=Network, description="The network.")
    training: Training = Field(default_factory=Training, description="The training loop.")

    @property
    def factors(self) -> tuple[int, ...]:
        """The anisotropy factors, in increasing order; (1,) for images."""
        if self.factor is None:
            return (1,)
        return (self.factor,) if isinstance(self.factor, int) else tuple(sorted(set(self.factor)))

    @model_validator(mode="after")
    def _of_its_task(self) -> Model:
        if TASKS[self.task].volumetric and not self.factor:
            raise ValueError(f"`factor` is missing: {self.task} is trained for anisotropy factors")
        if not TASKS[self.task].volumetric and self.factor is not None:
            raise ValueError(f"`factor` is for volumes; remove it, {self.task} restores images")
        if self.training.loss == "difficulty" and self.network.architecture != "unet":
            raise ValueError("`training.loss: difficulty` is for the architecture unet")
        return self


class Sampler(Section):
    """How a trained network is run."""

    name: Literal["ddpm", "ddim", "dpm++", "heun"] | None = Field(
        None, description="The sampler; by default the model's own."
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="Levels that a sample is walked through, one network call each (Heun: two); by default "
        "the model's own number. With a native model 1 is the posterior mean in one call.",
    )
    samples: int = Field(1, ge=1, description="Samples; their mean is the restored volume.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")


class Tiling(Section):
    """How the work is cut."""

    tile: int = Field(256, ge=32, multiple_of=16, description="Height and width of a tile, in pixels.")
    halo: int = Field(24, ge=0, description="Margin of a tile that is computed and thrown away, in pixels.")
    blend: int = Field(
        16, ge=8, multiple_of=2, description="Width of the seam in which two tiles blend, in pixels."
    )
    block: tuple[int, int, int] = Field(
        (4, 2, 2),
        description="Gaps, tiles along y and tiles along x in a block: the unit of work and of resume.",
    )

    @model_validator(mode="after")
    def _room(self) -> Tiling:
        if min(self.block) < 1:
            raise ValueError("`block` needs at least one gap and one tile along each axis")
        if 2 * self.halo + 3 * self.blend > self.tile:
            raise ValueError("`tile` is too small: it must be at least 2 * `halo` + 3 * `blend`")
        return self


class Restoration(Section):
    """One dataset restored by one model."""

    dataset: Name = Field(description="The dataset to restore.")
    model: Name = Field(description="The model that restores it.")
    sampler: Sampler = Field(default_factory=Sampler, description="The sampler.")
    tiling: Tiling = Field(default_factory=Tiling, description="Tiles and blocks.")
    truth: Name | None = Field(
        None,
        description="The isotropic dataset to compare with; a `keep_every` dataset has its origin as truth.",
    )


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
            if TASKS[task].volumetric:
                anisotropy_factor(self.voxel_size(item.dataset), f"{key}.dataset")
            truth = self.truth(item)
            if truth is not None:
                self._known(f"{key}.truth", truth, self.datasets)
                self._separate(key, item, truth)
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

    def origin(self, dataset: str) -> str:
        """Return the raw dataset that a dataset comes from (itself, when it is raw)."""
        keep = self.datasets[dataset].keep_every
        return keep.dataset if keep else dataset

    def truth(self, item: Restoration) -> str | None:
        """Return the dataset that a restoration is compared with, if there is one."""
        keep = self.datasets[item.dataset].keep_every
        return item.truth or (keep.dataset if keep else None)

    def voxel_size(self, dataset: str) -> tuple[float, float, float]:
        """Return the voxel size (z, y, x) of a dataset in nanometers."""
        keep = self.datasets[dataset].keep_every
        size = self.datasets[self.origin(dataset)].voxel_size
        assert size is not None
        z, y, x = size.nanometers
        return (z * keep.factor if keep else z, y, x)


def anisotropy_factor(voxel_size: tuple[float, float, float], key: str = "voxel_size") -> Fraction:
    """Return the ratio of the axial to the lateral voxel size, exactly.

    Parameters
    ----------
    voxel_size : tuple of float
        Voxel size (z, y, x), in any one unit.
    key : str
        What to name in an error.

    Raises
    ------
    ConfigError
        If pixels are not square, or the ratio is not between 2 and 12.
    """
    z, y, x = (Fraction(v).limit_denominator(10**6) for v in voxel_size)
    if abs(y - x) > y / 1000:
        raise ConfigError(f"{key}: pixels must be square, but y is {float(y):g} and x is {float(x):g}")
    factor = (z / y).limit_denominator(1000)
    if not MINIMUM_FACTOR <= factor <= MAXIMUM_FACTOR:
        raise ConfigError(
            f"{key}: the anisotropy factor z/y is {float(factor):g}; it must be between "
            f"{MINIMUM_FACTOR} and {MAXIMUM_FACTOR}"
        )
    return factor


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
        if dataset.source is not None and not source_exists(dataset.source):
            raise ConfigError(
                f"{where}: datasets.{name}.source: there is no '{dataset.source}'; check the path"
            )
        if dataset.pairs is not None and not Path(dataset.pairs.folder).is_dir():
            raise ConfigError(
                f"{where}: datasets.{name}.pairs.folder: there is no folder '{dataset.pairs.folder}'; "
                "check the path"
            )
    return config


def source_exists(source: str) -> bool:
    """Tell whether a source (a file, a folder or a glob) names anything."""
    path = Path(source)
    if path.exists():
        return True
    pattern = str(path.relative_to(path.anchor))
    return any(c in source for c in "*?[") and any(True for _ in Path(path.anchor).glob(pattern))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
