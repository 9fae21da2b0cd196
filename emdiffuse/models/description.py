"""What a model is, as ``model.json`` says it: one typed record, read strictly and without loading a network.

Conventions
-----------
* A model is a folder with ``model.safetensors`` (the weights) and ``model.json`` (this record: all that is
  needed to rebuild and run the network). Writing them is `models.networks.weights`' work.
* The record is checked as strictly as the configuration, sizes included, before anything is allocated: an
  edited or foreign file is refused in one sentence.
* Whatever depends on the kind of network asks the record (`Description.native`), and nothing else.
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
"""Noisiest level that the published networks are trained at, and the least noisy one that they are called at
by their own process."""

Multipliers = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)]
Channels = Annotated[int, Field(ge=8, le=2048, multiple_of=8)]
Blocks = Annotated[int, Field(ge=1, le=16)]
Known = Annotated[float, Field(ge=1, le=MAXIMUM_FACTOR)]


class NativeSpec(Record):
    """The native network: arguments of `networks.native.NativeNetwork`, which explains them."""

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
                raise ValueError(f"`{key}` begins with the higher of two numbers")
        return self

    def fits(self, volumetric: bool) -> bool:
        """Tell whether the network takes the images of a task."""
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
    """The published U-Net: arguments of `networks.unet.UNet`, which explains them."""

    architecture: Literal["unet"] = "unet"
    in_channels: Literal[2, 3]
    slice_index: bool = False

    def fits(self, volumetric: bool) -> bool:
        """Tell whether the network takes the images of a task."""
        return self.slice_index == volumetric and self.in_channels == (3 if volumetric else 2)


class Unet3dSpec(PublishedSpec):
    """The joint 3-D U-Net: `networks.unet.UNet` with three dimensions.

    Its channels are the real slices after and before the gap, each slice's position, and the noisy slices.
    """

    architecture: Literal["unet3d"] = "unet3d"
    in_channels: Literal[4] = 4
    dims: Literal[3] = 3

    def fits(self, volumetric: bool) -> bool:
        """Tell whether the network takes the images of a task."""
        return volumetric


NetworkSpec = Annotated[NativeSpec | UnetSpec | Unet3dSpec, Field(discriminator="architecture")]


class Schedule(Record):
    """Noise levels that a network is trained at: `diffusion.schedules.linear_gammas`."""

    name: Literal["linear"] = "linear"
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    steps: int = Field(ge=1)


PUBLISHED_SCHEDULE = Schedule(beta_start=1e-6, beta_end=1e-2, steps=2000)
"""Levels that the published networks are trained at."""


class Objective(Record):
    """What a network predicts, for programs other than this one; here it follows from the architecture."""

    prediction: Literal["epsilon", "flow"]
    schedule: Schedule | None = None
    clip: tuple[float, float] | None = None


class OwnSampler(Record):
    """How a model is sampled unless the settings say otherwise."""

    name: Literal["ddpm", "ddim", "dpm++", "unipc", "heun"]
    steps: int = Field(ge=1, le=100_000)


PUBLISHED_SAMPLER = OwnSampler(name="ddim", steps=8)
"""What a published network is sampled with: the fewest network evaluations that were as good as its own
process by every measure (``benchmarks/README.md``)."""


TOLD = {"format", "version", "name", "factors", "objective", "sampler", "training", "augmentation", "sources"}
TOLD |= {"emdiffuse", "made"}
"""Of a description, what changes no voxel: a restoration says itself which sampler it takes."""


class Description(Record):
    """All that is needed to rebuild and run a model, and what it was made of.

    Attributes
    ----------
    task, factors
        What it was trained for; no factors where that is not known.
    network
        The network, with all its sizes.
    learned_from
        Where nothing that it learned from was clean: "hidden pixels" of noisy images, or a "second scan". It
        then knows the posterior mean, and has no samples.
    objective, training, augmentation, emdiffuse
        For the record: nothing here reads them.
    sources
        The raw files that it learned from, including those of the model it started from.
    made
        How it was trained or imported; None for models of earlier versions.
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
            raise ValueError(f"`network` takes other images than {self.task} has")
        if self.learned_from and not (self.native and self.task == "emdiffuse-n"):
            raise ValueError("`learned_from` noisy images is for native networks of emdiffuse-n")
        if (self.learned_from == "hidden pixels") != (getattr(self.network, "blind_spot", None) is not None):
            raise ValueError(
                "`network.blind_spot` is for a network that learned from hidden pixels, and needed"
            )
        if self.native and TASKS[self.task].volumetric and not self.factors:
            raise ValueError("`factors` is missing: which anisotropy factors was it trained for?")
        return self

    @property
    def native(self) -> bool:
        """Whether the network gives the posterior mean in one call."""
        return self.network.architecture == "native"

    @property
    def context(self) -> int:
        """Neighbouring slices on each side that it is shown beside an image."""
        return 1 if isinstance(self.network, NativeSpec) and self.network.conditions == 3 else 0

    def resolve(self, sampler: Sampler) -> Sampler:
        """Fill in what a sampler's settings leave open: whether samples are drawn, and how.

        A native model's volume is the posterior mean in one call, unless samples are asked for.

        Raises
        ------
        ConfigError
            If samples are asked for of a model that learned from noisy images alone.
        """
        if self.learned_from and sampler.draws:
            raise ConfigError(
                f"sampler: {self.name or 'this model'} learned from noisy images alone, so that it knows "
                "their mean and has no samples; leave out `samples`, `steps`, `texture` and `sharpen`"
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
        settled = {"name": name, "steps": steps, "texture": texture}
        if self.native and steps == 1:  # samples would not differ
            settled |= {"samples": 1, "texture": 0.0}
        if not self.native and sampler.samples == 1:  # which is its own mean
            settled["texture"] = 0.0
        return sampler.model_copy(update=settled)

    def require_ensemble(self, sampler: Sampler, model: Path) -> None:
        """Refuse to average over flips and turns where that makes no sense; `model` is named.

        Raises
        ------
        ConfigError
            If the network has no mean in one call, or knows how noise lies along the axes of the scan.
        """
        if sampler.ensemble == 1:
            return
        if not self.native:
            raise ConfigError(
                f"sampler.ensemble: {model} is a published network, which does not give the mean directly; "
                "leave it out"
            )
        spot = self.network.blind_spot if isinstance(self.network, NativeSpec) else None
        if spot is not None and spot[0] != spot[1]:
            raise ConfigError(
                f"sampler.ensemble: {model} knows how noise lies along the scan axis, which quarter turns "
                "would turn; leave it out"
            )

    def sharpens(self, sampler: Sampler) -> bool:
        """Tell whether the restored volume is the mean made sharp by a flow that starts from it."""
        return self.resolve(sampler).sharpen > 0

    def samples_drawn(self, sampler: Sampler) -> int:
        """Return how many samples are drawn: of a native network none, if only its mean is asked for."""
        sampler = self.resolve(sampler)
        alone = self.native and sampler.samples == 1 and not sampler.texture
        return 0 if alone else sampler.samples

    def draws(self, sampler: Sampler) -> list[tuple[int, int]]:
        """Return the (sample, step) of all noise that a restoration asks for, in that order."""
        settled = self.resolve(sampler)
        steps = range((settled.steps or 1) if settled.name == "ddpm" else 1)
        walks = [*([0] if self.sharpens(sampler) else []), *range(self.samples_drawn(sampler))]
        return [(sample, step) for sample in walks for step in steps]

    def calls(self, sampler: Sampler) -> int:
        """Return how many calls of the network a tile takes."""
        settled = self.resolve(sampler)
        a_walk = (2 if settled.name == "heun" else 1) * (settled.steps or 1)
        walks = self.samples_drawn(sampler) + self.sharpens(sampler)
        return a_walk * walks + (settled.ensemble if self.gives_mean(sampler) else 0)

    def gives_mean(self, sampler: Sampler) -> bool:
        """Tell whether the posterior mean in one call is a part of the restored volume."""
        return self.native and self.resolve(sampler).texture != 1

    def estimator(self, sampler: Sampler) -> str:
        """Say in words what a restored volume is."""
        sampler = self.resolve(sampler)
        each = f"{evaluations(sampler.steps or 1)} ({sampler.name})"
        several = f"{sampler.samples} samples" if sampler.samples > 1 else "one sample"
        if not self.native:
            texture = f", and {sampler.texture:g} of the first's texture" if sampler.texture else ""
            mean = f"mean of {several}" if sampler.samples > 1 else several
            return f"{mean} of {each}{texture}"
        if sampler.texture == 1:
            return f"first of {several} of {each}" if sampler.samples > 1 else f"one sample of {each}"
        said = "posterior mean in one network evaluation"
        if sampler.ensemble > 1:
            said += f", averaged over {sampler.ensemble} flips and turns"
        if sampler.texture:
            said += f", and {sampler.texture:g} of the texture of a sample of {each}"
        if sampler.sharpen:
            said += f", sharpened from noise of level {sampler.sharpen:g} in {each}"
        if self.learned_from:
            said += "; learned from noisy images alone, so that there are no samples"
        if sampler.samples > 1:
            said += f"; its uncertainty by {several} of {each}"
        return said

    def trained_for(self, factor: Fraction) -> bool:
        """Tell whether the model was trained for an anisotropy factor, or for factors around it."""
        return not self.factors or min(self.factors) <= factor <= max(self.factors)


def evaluations(steps: int) -> str:
    """Say in words how often the network is evaluated."""
    return f"{steps} network evaluation{'s' if steps > 1 else ''}"


def read_description(directory: Path | str) -> Description:
    """Read ``model.json``.

    Raises
    ------
    ModelError
        If the file is missing, is no JSON, or describes no model of this version; one sentence.
    """
    path = Path(directory) / DESCRIPTION_FILE
    try:
        text = read_plain(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", path) from error
    content = _content(path, text)
    if content.get("noise") == {"correlation": 0.0}:  # of earlier releases, whose noise could be correlated
        del content["noise"]
    return parse_record(Description, content, path, ModelError)


def _content(path: Path, text: bytes) -> dict[str, Any]:
    """Return a description's keys; refuse another file or version by what it is instead of by its keys."""
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not valid JSON: was it cut off?", path) from None
    if not isinstance(content, dict) or content.get("format") != "emdiffuse-model":
        raise ModelError(f"{path} does not describe a model of emdiffuse", path)
    version, network = content.get("version"), content.get("network")
    if version == 1 and isinstance(network, dict) and network.get("architecture") == "native":
        raise ModelError(f"{path}: native models of version 1 are no longer supported; train again", path)
    if version not in (1, VERSION):  # of the published network, nothing has changed since version 1
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
    """Return the link of a model: its network and weights as they are, and how they came about.

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
