"""The `models` section of the configuration: task, patches, network and training; or weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from emdiffuse.config.datasets import Factor, Name, Thickness
from emdiffuse.config.settings import Section
from emdiffuse.config.tasks import TASKS

Reach = Annotated[int, Field(ge=0, le=16)]


class Patches(Section):
    """The patch store that a model is trained on."""

    size: int = Field(
        64, ge=16, le=4096, multiple_of=8, description="Height and width of a patch, in pixels."
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="Fraction of a patch that overlaps its neighbour.")
    axes: tuple[Literal["z", "y", "x"], ...] = Field(
        ("z",),
        min_length=1,
        description="Axes of an isotropic volume along which gaps are cut (vemdiffuse-i); axes other than z "
        "give more patches, in which tissue changes as it does along those axes.",
    )
    left_out_slices: bool = Field(
        False,
        description="vemdiffuse-a also learns along z, at twice the volume's factor (12 at most): every "
        "second slice is left out and predicted from its neighbours. Thin slices only.",
    )
    validation: float = Field(
        0.125, gt=0, lt=1, description="Fraction of the volume, at its far end in z, held out for validation."
    )
    validation_datasets: tuple[Name, ...] = Field(
        (),
        description="Datasets from which a part is held out for validation; by default all. The others are "
        "used entirely for training.",
    )
    context: Literal[0, 1] = Field(
        0,
        description="Slices on each side that a volume denoiser (emdiffuse-n, native) sees beside "
        "the one that it restores: they show nearly the same tissue with independent noise.",
    )
    limit: int = Field(20000, ge=1, description="Maximum number of patches, drawn evenly from all patches.")


class Network(Section):
    """The network."""

    architecture: Literal["native", "unet", "unet3d"] = Field(
        "native",
        description="`native`: the efficient network; `unet`: the published U-Net; `unet3d`: that U-Net in "
        "3-D, which restores all slices of a gap together (volumes, one factor).",
    )
    channels: int = Field(
        32,
        ge=8,
        le=2048,
        multiple_of=8,
        description="Channels at the finest level (for native, at half resolution).",
    )
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="Channels of each level, in units of `channels`; by default [1, 2, 4], for U-Nets [1, "
        "2, 4, 8].",
    )
    blocks: int = Field(2, ge=1, le=16, description="Residual blocks per level.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the residual blocks (of the U-Nets).")
    checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass: less memory, more time.",
    )

    @model_validator(mode="after")
    def _of_its_architecture(self) -> Network:
        if self.architecture == "native" and self.dropout:
            raise ValueError("`dropout` is for the architectures unet and unet3d; remove it")
        if self.architecture != "native" and self.channels % 16:
            raise ValueError(f"`channels` of the architecture {self.architecture} must be a multiple of 16")
        return self


class Augmentation(Section):
    """Random changes to an example; degradations affect only the condition, whose range is 2."""

    gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Largest relative change of contrast, the same for condition and target; their "
        "brightness is shifted by up to half as much.",
    )
    inversion: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Fraction of examples whose contrast is inverted, in condition and target.",
    )

    transposition: bool = Field(True, description="Swap y and x with probability 1/2.")
    blur: float = Field(0.0, ge=0, le=1, description="Fraction of examples whose condition is blurred.")
    noise: float = Field(
        0.0,
        ge=0,
        description="Largest standard deviation of the noise added to the condition (range [-1, 1]).",
    )
    contrast: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Largest relative change of the condition's contrast, and largest brightness shift.",
    )
    brightness_jump: float = Field(
        0.0, ge=0, description="Largest shift of the intensity of one real slice of a gap (range [-1, 1])."
    )


class Training(Section):
    """The training loop."""

    steps: int = Field(20000, ge=1, description="Optimizer steps.")
    minutes: float | None = Field(None, gt=0, description="Wall time after which training stops early.")
    patience: int | None = Field(
        10,
        ge=1,
        description="Validations in a row without a better PSNR after which training stops early; null: "
        "never.",
    )
    batch: int = Field(8, ge=1, description="Patches per step.")
    accumulate: int = Field(
        1, ge=1, description="Parts into which a batch is split to save memory (gradient accumulation)."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup: int = Field(100, ge=0, description="Steps of linear warm-up, before the cosine decay.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of AdamW.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the moving average of the weights.")
    loss: Literal["mse", "difficulty"] = Field(
        "mse", description="Squared error, or the published difficulty-aware loss (of the U-Nets)."
    )
    mean_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Fraction of a batch at pure noise, where a native network learns the posterior mean.",
    )
    blind_spot: tuple[Reach, Reach] | None = Field(
        None,
        description="For learning from noisy images alone: how many pixels on each side of a hidden one "
        "are hidden too, along y and x. [0, 0] hides single pixels (Noise2Void); by default as far "
        "as the noise is correlated.",
    )
    validate_every: int = Field(500, ge=1, description="Steps between validations.")
    feed: Literal["auto", "device", "workers"] = Field(
        "auto",
        description="Where examples are drawn and augmented: on the device, which then keeps all patches in "
        "memory, or by CPU threads that prepare batches ahead; auto: on a GPU with enough memory.",
    )
    checkpoint_minutes: float = Field(2.0, gt=0, description="Minutes between saved states.")
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the network; auto chooses it by device."
    )
    init_from: str | None = Field(
        None,
        description="Fine-tuning: another model of the configuration, a shipped one, or the folder of a "
        "trained or imported one, whose weights training starts from; its network must be the same, or "
        "have fewer `blocks` (native): added blocks change nothing at first.",
    )
    seed: int = Field(0, ge=0, description="Random seed of weights, data order and noise.")


class Model(Section):
    """A model: its task, training data, network and training; or its weights."""

    task: Literal["emdiffuse-n", "emdiffuse-r", "vemdiffuse-i", "vemdiffuse-a"] = Field(
        description="The task that the model learns."
    )
    datasets: tuple[Name, ...] = Field((), description="Datasets that it is trained on.")
    weights: str | None = Field(
        None,
        description="Instead of all but `task`: a shipped model (emdiffuse-n, emdiffuse-r, vemdiffuse), the "
        "folder of a model (model.json, model.safetensors), or a published checkpoint (.pth); it "
        "is not trained further.",
    )
    factor: Factor | tuple[Factor, ...] | None = Field(
        None,
        description="Anisotropy factors that it is trained for, one or several; required for volumes. It "
        "also serves factors in between.",
    )
    thickness: Thickness | tuple[Thickness, Thickness] = Field(
        0.0,
        description="Fraction of the slice spacing that a real slice integrates over in the training gaps, "
        "0 to 1; one number, or a range from which it is drawn.",
    )
    patches: Patches = Field(default_factory=Patches, description="The patch store.")
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="Random changes to the training examples."
    )
    network: Network = Field(default_factory=Network, description="The network.")
    training: Training = Field(default_factory=Training, description="The training loop.")

    @property
    def factors(self) -> tuple[int, ...]:
        """The anisotropy factors, in increasing order; (1,) for images."""
        if self.factor is None:
            return (1,)
        return (self.factor,) if isinstance(self.factor, int) else tuple(sorted(set(self.factor)))

    @property
    def thicknesses(self) -> tuple[float, float]:
        """The range of thicknesses, lowest first."""
        if isinstance(self.thickness, tuple):
            return min(self.thickness), max(self.thickness)
        return self.thickness, self.thickness

    @model_validator(mode="after")
    def _of_its_task(self) -> Model:
        if self.weights is not None:
            for key, field in type(self).model_fields.items():
                given = key not in ("task", "weights") and getattr(self, key)
                if given and given != field.get_default(call_default_factory=True):
                    raise ValueError(
                        f"`{key}` is for training, but `weights` are given; remove one of the two"
                    )
            return self
        if not self.datasets:
            raise ValueError("`datasets` is missing: name the training data, or give `weights`")
        if TASKS[self.task].volumetric and not self.factor:
            raise ValueError(f"`factor` is missing: {self.task} needs the anisotropy factors to train for")
        if not TASKS[self.task].volumetric and self.factor is not None:
            raise ValueError(f"`factor` is for volumes, but {self.task} restores images; remove it")
        if not TASKS[self.task].volumetric and self.thickness:
            raise ValueError(f"`thickness` is for volumes, but {self.task} restores images; remove it")
        if unknown := set(self.patches.validation_datasets) - set(self.datasets):
            raise ValueError(
                f"`patches.validation_datasets` names {min(unknown)}, which is not in `datasets`"
            )
        if self.patches.axes != Patches().axes and self.task != "vemdiffuse-i":
            raise ValueError("`patches.axes` is for vemdiffuse-i; remove it")
        if self.patches.left_out_slices and self.task != "vemdiffuse-a":
            raise ValueError("`patches.left_out_slices` is for vemdiffuse-a; remove it")
        if self.patches.context and self.task != "emdiffuse-n":
            raise ValueError("`patches.context` is for emdiffuse-n; remove it")
        for key in ("patches.context", "training.blind_spot"):
            section, name = key.split(".")
            if getattr(getattr(self, section), name) and self.network.architecture != "native":
                raise ValueError(f"`{key}` is for the native network; remove it")
        if self.training.blind_spot and self.task != "emdiffuse-n":
            raise ValueError("`training.blind_spot` is for emdiffuse-n; remove it")
        if self.training.loss == "difficulty" and self.network.architecture == "native":
            raise ValueError("`training.loss: difficulty` is for the architectures unet and unet3d")
        if self.network.architecture == "unet3d" and not TASKS[self.task].volumetric:
            raise ValueError(f"`network.architecture: unet3d` is for volumes; {self.task} needs unet")
        if self.network.architecture == "unet3d" and len(self.factors) > 1:
            raise ValueError("`network.architecture: unet3d` is trained for one `factor`; name only one")
        return self
