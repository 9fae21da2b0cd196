"""The `restorations` section of the configuration: sampler and tiling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from emdiffuse.config.datasets import Name
from emdiffuse.config.settings import Section


class Sampler(Section):
    """How a trained network is run."""

    name: Literal["ddpm", "ddim", "dpm++", "unipc", "heun"] | None = Field(
        None, description="Sampler; by default the model's own."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Noise levels of a sample, one network evaluation each (Heun: two); by default "
        "the model's number. A native model draws samples only if `samples`, `texture` or `steps` of "
        "2 or more ask for them; 1 gives the posterior mean in one evaluation.",
    )
    samples: int = Field(
        1,
        ge=1,
        le=100_000,
        description="Number of samples; with 2 or more, their standard deviation is written as the "
        "uncertainty.",
    )
    texture: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How much of a sample's texture the restored volume has: mean + t * (sample - mean), at "
        "1 + t^2 times the mean's squared error; 0 is the mean, 1 a sample. By default 0, or 1 if `steps` "
        "asks for a single sample.",
    )
    sharpen: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Sharpen the mean: noise of this level is added to it, and sampling starts there. Closer "
        "to the truth than an equally sharp volume by `texture`; native models, instead of `texture`.",
    )
    ensemble: Literal[1, 8] = Field(
        1,
        description="8: average the one-evaluation posterior mean over the flips and rotations of the "
        "plane, at 8 times the "
        "cost; native models.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the noise.")
    empty: Literal["plain", "mark", "restore"] | None = Field(
        None,
        description="In empty regions (resin, charging), `plain` generates nothing: "
        "slices are interpolated, images averaged. `mark` changes nothing, but marks them, as `plain` does. "
        "`restore` treats all regions alike. By default `plain`, and `mark` for the one-evaluation posterior "
        "mean of an image, which is smooth there.",
    )
    consistent: bool | None = Field(
        None,
        description="For thick slices: change the restored volume as little as necessary so that, averaged "
        "again, it gives the measured slices. By default on if slices are thick.",
    )

    @property
    def draws(self) -> bool:
        """Whether samples are drawn, rather than only the posterior mean of a native model."""
        return self.samples > 1 or bool(self.texture or self.sharpen) or (self.steps or 1) > 1

    @model_validator(mode="after")
    def _drawn(self) -> Sampler:
        if self.steps == 1 and self.name is None and self.texture:
            raise ValueError("`texture` needs a sample: omit `steps`, or set it to 2 or more")
        if self.sharpen and self.steps == 1:
            raise ValueError("`sharpen` needs sampling steps: omit `steps`, or set it to 2 or more")
        if self.sharpen and self.texture:
            raise ValueError("`sharpen` and `texture` exclude each other; remove one of the two")
        return self


class Tiling(Section):
    """How the work is divided into tiles and blocks."""

    tile: int = Field(
        256, ge=32, le=8192, multiple_of=16, description="Height and width of a tile, in pixels."
    )
    halo: int = Field(32, ge=0, description="Margin of a tile that is computed and discarded, in pixels.")
    blend: int = Field(
        16, ge=8, multiple_of=2, description="Width of the seam in which two tiles blend, in pixels."
    )
    block: tuple[int, int, int] = Field(
        (4, 2, 2),
        description="Gaps, tiles along y and tiles along x in a block: the unit of work and of resuming.",
    )

    @model_validator(mode="after")
    def _room(self) -> Tiling:
        if min(self.block) < 1:
            raise ValueError("`block` must have at least one gap and one tile along each axis")
        if 2 * self.halo + 3 * self.blend > self.tile:
            raise ValueError("`tile` is too small: it must be at least 2 * `halo` + 3 * `blend`")
        return self


class Calibration(Section):
    """How intervals that contain the true values are calibrated."""

    dataset: Name = Field(
        description="The dataset to calibrate on: another one that the model restores with the same sampler, "
        "with a `truth` or a `second_scan`."
    )
    alpha: float = Field(
        0.1, gt=0, lt=1, description="Fraction of voxels whose true value may lie outside the interval."
    )
    block: int = Field(
        64,
        ge=16,
        description="Side, in pixels, of the blocks that count as independent if there are fewer images "
        "than the guarantee needs.",
    )


class Restoration(Section):
    """One dataset restored by one model."""

    dataset: Name = Field(description="The dataset to restore.")
    model: Name = Field(description="The model that restores it.")
    real_slices: Name | None = Field(
        None,
        description="For a volume: the emdiffuse-n model whose restoration of the same dataset supplies the "
        "real slices between which gaps are filled; by default they are the dataset's own, unchanged.",
    )
    sampler: Sampler = Field(default_factory=Sampler, description="The sampler.")
    tiling: Tiling = Field(default_factory=Tiling, description="Tiles and blocks.")
    truth: Name | None = Field(
        None,
        description="The isotropic dataset to compare with; for `keep_every`, the dataset it was made from.",
    )
    second_scan: Name | None = Field(
        None,
        description="If there is no ground truth: a dataset of the same fields, scanned again with the same "
        "settings and aligned; the `calibration` of other restorations may then name this dataset.",
    )
    calibration: Calibration | None = Field(
        None, description="Also write an interval for every voxel, calibrated on other data."
    )
    reliable: float = Field(
        0.12,
        gt=0,
        description="Largest score of a reliable image; the score is the 99th percentile of its uncertainty, "
        "as a fraction of the robust intensity range.",
    )

    @model_validator(mode="after")
    def _one_truth(self) -> Restoration:
        if self.second_scan is not None and self.second_scan == self.dataset:
            raise ValueError("`second_scan` is the dataset itself; name its repeated scan")
        if self.second_scan is not None and self.truth is not None:
            raise ValueError("`second_scan` stands in for a `truth`; remove one of the two")
        return self

    @model_validator(mode="after")
    def _samples(self) -> Restoration:
        if self.calibration is not None and self.sampler.samples < 2:
            raise ValueError("`calibration` needs `sampler.samples` of 2 or more")
        for key in ("texture", "sharpen"):
            if self.calibration is not None and getattr(self.sampler, key):
                raise ValueError(
                    f"`calibration` sets intervals around the mean; remove it or `sampler.{key}`"
                )
        if self.calibration is not None and self.real_slices is not None:
            raise ValueError(
                "`calibration` cannot cover slices that `real_slices` restores; remove one of the two"
            )
        return self
