"""The description of a model, ``model.json``: a typed record, read strictly and without loading a network.

Conventions
-----------
* A model is a folder with ``model.safetensors`` (the weights) and ``model.json`` (this record: everything
  needed to rebuild and run the network). `models.networks.weights` writes them.
* The record is checked as strictly as the configuration, including sizes, before anything is allocated: an
  edited or foreign file is refused in one sentence.
* The kind of network is determined only from the record (`Description.native`).
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from emdiffuse.config import MAXIMUM_FACTOR, Sampler
from emdiffuse.config.datasets import Thickness
from emdiffuse.config.models import Reach
from emdiffuse.config.settings import Record, parse_record
from emdiffuse.config.tasks import CONDITION_OFFSETS, TASKS
from emdiffuse.runtime.disks import read_plain
from emdiffuse.runtime.errors import ConfigError, ModelError
from emdiffuse.stores.provenance import Link, SourceFile, file_sha256, made_by

WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"
VERSION: Literal[2] = 2

PUBLISHED_GAMMAS = (4.3859782361332086e-5, 1.0 - 1e-4)
"""Noisiest training level of the published networks, and the least noisy level of their own sampling
process."""

Multipliers = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)]
Channels = Annotated[int, Field(ge=8, le=2048, multiple_of=8)]
Blocks = Annotated[int, Field(ge=1, le=16)]
Known = Annotated[float, Field(ge=1, le=MAXIMUM_FACTOR)]


class NativeSpec(Record):
    """The native network: arguments of `networks.native.NativeNetwork`."""

    architecture: Literal["native"] = "native"
    conditions: Literal[1, 3, 4] = 4
    channels: Channels = 32
    multipliers: Multipliers = (1, 2, 4)
    blocks: Blocks = 2
    residual_scale: float = Field(1.0, gt=0, le=100)
    factors: tuple[Known, Known] = (1, MAXIMUM_FACTOR)
    thickness: tuple[Thickness, Thickness] = (0.0, 1.0)
    blind_spot: tuple[Reach, Reach] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> NativeSpec:
        for key in ("factors", "thickness"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"`{key}` must list the lower number first")
        return self

    def fits(self, volumetric: bool) -> bool:
        """Return whether the network matches the images of a task."""
        return (self.conditions == len(CONDITION_OFFSETS)) == volumetric


class PublishedSpec(Record):
    """What the published U-Net and its 3-D form share: arguments of `networks.unet.UNet`."""

    out_channels: Literal[1, 2] = 1
    base_channels: Channels = 32
    multipliers: Multipliers = (1, 2, 4, 8)
    blocks: Blocks = 2
    head_channels: Channels = 32
    dropout: float = Field(0.0, ge=0, lt=1)


class UnetSpec(PublishedSpec):
    """The published U-Net: arguments of `networks.unet.UNet`."""

    architecture: Literal["unet"] = "unet"
    in_channels: Literal[2, 3]
    slice_index: bool = False

    def fits(self, volumetric: bool) -> bool:
        """Return whether the network matches the images of a task."""
        return self.slice_index == volumetric and self.in_channels == (3 if volumetric else 2)


class Unet3dSpec(PublishedSpec):
    """The joint 3-D U-Net: `networks.unet.UNet` with three dimensions.

    Its channels are the real slices after and before the gap, each slice's position, and the noisy slices.
    """

    architecture: Literal["unet3d"] = "unet3d"
    in_channels: Literal[4] = 4
    dims: Literal[3] = 3

    def fits(self, volumetric: bool) -> bool:
        """Return whether the network matches the images of a task."""
        return volumetric


NetworkSpec = Annotated[NativeSpec | UnetSpec | Unet3dSpec, Field(discriminator="architecture")]


class Schedule(Record):
    """Training noise levels of a network: `diffusion.schedules.linear_gammas`."""

    name: Literal["linear"] = "linear"
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    steps: int = Field(ge=1)


PUBLISHED_SCHEDULE = Schedule(beta_start=1e-6, beta_end=1e-2, steps=2000)
"""Training levels of the published networks."""


class Objective(Record):
    """The prediction of a network, for other programs; emdiffuse derives it from the architecture."""

    prediction: Literal["epsilon", "flow"]
    schedule: Schedule | None = None
    clip: tuple[float, float] | None = None


class OwnSampler(Record):
    """Default sampler of a model."""

    name: Literal["ddpm", "ddim", "dpm++", "unipc", "heun"]
    steps: int = Field(ge=1, le=100_000)


PUBLISHED_SAMPLER = OwnSampler(name="ddim", steps=8)
"""Default sampler of published networks: the fewest network evaluations that matched their own process in
every metric (``benchmarks/README.md``)."""


TOLD = {"format", "version", "name", "factors", "objective", "sampler", "training", "augmentation", "sources"}
TOLD |= {"emdiffuse", "made"}
"""Keys of a description that change no voxel; a restoration records its sampler itself."""


class Description(Record):
    """Everything needed to rebuild and run a model, and its provenance.

    Attributes
    ----------
    task, factors
        Task and anisotropy factors that it was trained for; no factors if unknown.
    network
        The network, with all its sizes.
    learned_from
        "hidden pixels" or "second scan" if it learned from noisy images alone; it then gives the mean
        and draws no samples.
    objective, training, augmentation, emdiffuse
        Recorded for information only.
    sources
        Raw training files, including those of its starting model.
    made
        Provenance; None for models of earlier versions.
    """

    format: Literal["emdiffuse-model"] = "emdiffuse-model"
    version: Literal[1, 2] = VERSION
    name: str | None = None
    task: Literal["emdiffuse-n", "emdiffuse-r", "vemdiffuse-i", "vemdiffuse-a"]
    factors: tuple[Annotated[int, Field(ge=1, le=MAXIMUM_FACTOR)], ...] = ()
    network: NetworkSpec
    learned_from: Literal["hidden pixels", "second scan"] | None = None
    objective: Objective | None = None
    sampler: OwnSampler = PUBLISHED_SAMPLER
    training: dict[str, JsonValue] | None = None
    augmentation: dict[str, JsonValue] | None = None
    sources: tuple[SourceFile, ...] = ()
    emdiffuse: str | None = None
    made: Link | None = None

    @model_validator(mode="after")
    def _network_of_the_task(self) -> Description:
        if not self.network.fits(TASKS[self.task].volumetric):
            raise ValueError(f"`network` does not match the images of {self.task}")
        if self.learned_from and not (self.native and self.task == "emdiffuse-n"):
            raise ValueError("`learned_from` is for native networks of emdiffuse-n")
        if (self.learned_from == "hidden pixels") != (getattr(self.network, "blind_spot", None) is not None):
            raise ValueError(
                "`network.blind_spot` is required for, and only for, networks that learned from hidden pixels"
            )
        if self.native and TASKS[self.task].volumetric and not self.factors:
            raise ValueError(
                "`factors` is missing: give the anisotropy factors that the model was trained for"
            )
        return self

    @property
    def native(self) -> bool:
        """Whether the network gives the posterior mean in one evaluation."""
        return self.network.architecture == "native"

    @property
    def context(self) -> int:
        """Number of neighbouring slices on each side that it sees beside an image."""
        return 1 if isinstance(self.network, NativeSpec) and self.network.conditions == 3 else 0

    def resolve(self, sampler: Sampler) -> Sampler:
        """Fill in the defaults of a sampler's settings: whether samples are drawn, and how.

        A native model gives the posterior mean in one evaluation, unless samples are requested.

        Raises
        ------
        ConfigError
            If samples are requested from a model that learned from noisy images alone.
        """
        if self.learned_from and sampler.draws:
            raise ConfigError(
                f"sampler: {self.name or 'this model'} learned from noisy images alone, so it gives the mean "
                "and draws no samples; remove `samples`, `steps`, `texture` and `sharpen`"
            )
        if sampler.sharpen and not self.native:
            raise ConfigError(
                f"sampler.sharpen: {self.name or 'this model'} is a published network, which does not give "
                "the mean directly; use `texture`"
            )
        name = sampler.name or self.sampler.name
        own = TASKS[self.task].published_steps if name == "ddpm" else self.sampler.steps
        drawn = not self.native or sampler.samples > 1 or bool(sampler.texture or sampler.sharpen)
        steps = sampler.steps or (own if drawn else 1)
        one = self.native and steps > 1 and sampler.samples == 1 and not sampler.sharpen
        texture = sampler.texture if sampler.texture is not None else float(one)
        settled: dict[str, object] = {"name": name, "steps": steps, "texture": texture}
        if self.native and steps == 1:  # samples would not differ
            settled |= {"samples": 1, "texture": 0.0}
        if not self.native and sampler.samples == 1:  # one sample is its own mean
            settled["texture"] = 0.0
        if sampler.empty is None:
            smooth = self.native and not (
                TASKS[self.task].volumetric or settled["texture"] or sampler.sharpen
            )
            settled["empty"] = "mark" if smooth else "plain"
        return sampler.model_copy(update=settled)

    def require_ensemble(self, sampler: Sampler, model: Path) -> None:
        """Refuse to average over flips and rotations if that makes no sense; names `model`.

        Raises
        ------
        ConfigError
            If the network does not give the mean in one evaluation, or depends on the axes of the scan.
        """
        if sampler.ensemble == 1:
            return
        if not self.native:
            raise ConfigError(
                f"sampler.ensemble: {model} is a published network, which does not give the mean directly; "
                "remove this key"
            )
        spot = self.network.blind_spot if isinstance(self.network, NativeSpec) else None
        if spot is not None and spot[0] != spot[1]:
            raise ConfigError(
                f"sampler.ensemble: {model} depends on the direction of the scan, which rotations "
                "would change; remove this key"
            )

    def sharpens(self, sampler: Sampler) -> bool:
        """Return whether the mean is sharpened by sampling that starts from it."""
        return self.resolve(sampler).sharpen > 0

    def samples_drawn(self, sampler: Sampler) -> int:
        """Return the number of samples drawn: none if only the mean of a native network is requested."""
        sampler = self.resolve(sampler)
        alone = self.native and sampler.samples == 1 and not sampler.texture
        return 0 if alone else sampler.samples

    def draws(self, sampler: Sampler) -> list[tuple[int, int]]:
        """Return the (sample, step) of all noise that a restoration draws, in order."""
        settled = self.resolve(sampler)
        steps = range((settled.steps or 1) if settled.name == "ddpm" else 1)
        walks = [*([0] if self.sharpens(sampler) else []), *range(self.samples_drawn(sampler))]
        return [(sample, step) for sample in walks for step in steps]

    def calls(self, sampler: Sampler) -> int:
        """Return the number of network evaluations per tile."""
        settled = self.resolve(sampler)
        a_walk = (2 if settled.name == "heun" else 1) * (settled.steps or 1)
        walks = self.samples_drawn(sampler) + self.sharpens(sampler)
        return a_walk * walks + (settled.ensemble if self.gives_mean(sampler) else 0)

    def gives_mean(self, sampler: Sampler) -> bool:
        """Return whether the one-evaluation posterior mean is part of the restored volume."""
        return self.native and self.resolve(sampler).texture != 1

    def estimator(self, sampler: Sampler) -> str:
        """Return in words what a restored volume is."""
        sampler = self.resolve(sampler)
        each = f"{evaluations(sampler.steps or 1)} ({sampler.name})"
        several = f"{sampler.samples} samples" if sampler.samples > 1 else "one sample"
        if not self.native:
            texture = f", plus {sampler.texture:g} of the texture of the first" if sampler.texture else ""
            mean = f"mean of {several}" if sampler.samples > 1 else several
            return f"{mean} of {each}{texture}"
        if sampler.texture == 1:
            return f"first of {several} of {each}" if sampler.samples > 1 else f"one sample of {each}"
        said = "posterior mean in one network evaluation"
        if sampler.ensemble > 1:
            said += f", averaged over {sampler.ensemble} flips and rotations"
        if sampler.texture:
            said += f", plus {sampler.texture:g} of the texture of a sample of {each}"
        if sampler.sharpen:
            said += f", sharpened from noise of level {sampler.sharpen:g} in {each}"
        if self.learned_from:
            said += "; learned from noisy images alone, so there are no samples"
        if sampler.samples > 1:
            said += f"; uncertainty from {several} of {each}"
        return said

    def trained_for(self, factor: Fraction) -> bool:
        """Return whether the model was trained for an anisotropy factor, or for factors around it."""
        return not self.factors or min(self.factors) <= factor <= max(self.factors)


def evaluations(steps: int) -> str:
    """Return the number of network evaluations in words."""
    return f"{steps} network evaluation{'s' if steps > 1 else ''}"


def read_description(directory: Path | str) -> Description:
    """Read ``model.json``.

    Raises
    ------
    ModelError
        If the file is missing, is not JSON, or does not describe a model of this version; one sentence.
    """
    path = Path(directory) / DESCRIPTION_FILE
    try:
        text = read_plain(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", path) from error
    content = _content(path, text)
    if content.get("noise") == {
        "correlation": 0.0
    }:  # written by earlier releases with optional noise correlation
        del content["noise"]
    return parse_record(Description, content, path, ModelError)


def _content(path: Path, text: bytes) -> dict[str, Any]:
    """Return a description's keys; refuse other files and versions as such, not because of their keys."""
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not valid JSON, perhaps truncated", path) from None
    if not isinstance(content, dict) or content.get("format") != "emdiffuse-model":
        raise ModelError(f"{path} does not describe an emdiffuse model", path)
    version, network = content.get("version"), content.get("network")
    if version == 1 and isinstance(network, dict) and network.get("architecture") == "native":
        raise ModelError(f"{path}: native models of version 1 are no longer supported; train again", path)
    if version not in (1, VERSION):  # published networks have not changed since version 1
        raise ModelError(f"{path} has version {version}; this release reads {VERSION}", path)
    return content


def weights_hash(directory: Path | str) -> str:
    """Return the SHA-256 of a model's weights.

    Raises
    ------
    ModelError
        If they cannot be read.
    """
    path = Path(directory) / WEIGHTS_FILE
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}; train or import the model first", path
        ) from error


def model_link(directory: Path | str) -> Link:
    """Return the link of a model: its network, weights and provenance.

    Raises
    ------
    ModelError
        If the folder holds no model.
    """
    description = read_description(directory)
    settings = description.model_dump(mode="json", exclude=TOLD, exclude_none=True)
    inputs = () if description.made is None else (description.made,)
    name = description.name or description.task
    return made_by("model", name, {**settings, "weights": weights_hash(directory)}, *inputs)
