"""The `datasets` section of the configuration: raw and derived data, and voxel sizes."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from emdiffuse.config.reading import Reading
from emdiffuse.config.settings import Section
from emdiffuse.config.sources import parse_source
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.runtime.units import NANOMETERS

MINIMUM_FACTOR, MAXIMUM_FACTOR = 2, 12
Factor = Annotated[int, Field(ge=MINIMUM_FACTOR, le=MAXIMUM_FACTOR)]
Thickness = Annotated[float, Field(ge=0, le=1)]
TAKEN = r"""\x00-\x1f\x7f/\\:*?"'`<>|{}\[\]$!&;,=%"""
"""Characters not allowed in names: they have a meaning in paths, patterns, Snakemake, SLURM or a shell."""
LONGEST_NAME = 80
"""Maximum length of a name in bytes: file names combine those of a dataset and a model."""
NAME = rf"^[^ .{TAKEN}](?:[^{TAKEN}]*[^ {TAKEN}])?$"


def allowed_name(text: str) -> str:
    """Return a text as a valid name: invalid characters become ``_``, and long texts are shortened."""
    shown = "".join(letter if letter.isprintable() else "_" for letter in unicodedata.normalize("NFC", text))
    plain = re.sub(rf"[{TAKEN}]+", "_", shown).encode()[: LONGEST_NAME - 10].decode(errors="ignore")
    return plain.strip("_ .") or "data"


def _plain_name(name: object) -> object:
    """Refuse a name that cannot be part of a path, or that Snakemake or SLURM would split."""
    if not isinstance(name, str):
        return name
    # accents may be separate characters (macOS) or not, so that the same name would not compare equal
    name = unicodedata.normalize("NFC", name)
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(
            f"a name may have at most {LONGEST_NAME} letters, as file names contain it; shorten it"
        )
    if not (re.fullmatch(NAME[1:-1], name) and name.isprintable()):
        raise ValueError(
            "a name may contain letters, digits, spaces and '_', '-', '.', '+', '#', '(' or ')', and may not "
            f"begin or end with a space, nor begin with a dot; write for instance '{allowed_name(name)}'"
        )
    return name


Name = Annotated[str, BeforeValidator(_plain_name), Field(pattern=NAME)]


SMALLEST_PIXEL = 0.05
"""In nanometers; a smaller size without a stated unit is probably in micrometers."""
SIZES = (1e-3, 1e7)
"""Nanometers that a voxel may have along an axis, whatever is stated."""


class VoxelSize(Section):
    """Size of a voxel along z, y and x."""

    z: float = Field(gt=0, description="Distance between slices, in `unit`.")
    y: float = Field(gt=0, description="Height of a pixel, in `unit`.")
    x: float = Field(gt=0, description="Width of a pixel, in `unit`.")
    unit: Literal["nanometer", "micrometer", "angstrom"] = Field(
        "nanometer", description="Unit of the three numbers."
    )
    override: bool = Field(
        False,
        description="Use this size even if the files state another; by default both must agree within 1 %.",
    )

    @model_validator(mode="after")
    def _square(self) -> VoxelSize:
        if not all(SIZES[0] <= side <= SIZES[1] for side in self.nanometers):
            raise ValueError(
                f"a voxel of {self.z:g} x {self.y:g} x {self.x:g} {self.unit}s is implausible; correct the "
                "numbers or the `unit`"
            )
        if abs(self.y - self.x) > self.y / 1000:
            raise ValueError(f"pixels must be square, but y is {self.y:g} and x is {self.x:g}")
        if "unit" not in self.model_fields_set and self.x < SMALLEST_PIXEL:
            raise ValueError(
                f"pixels of {self.x:g} nm would be smaller than atoms; state the `unit`, such as micrometer"
            )
        return self

    @property
    def nanometers(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in nanometers."""
        scale = NANOMETERS[self.unit]
        return (self.z * scale, self.y * scale, self.x * scale)


class KeepEvery(Section):
    """An anisotropic volume made from an isotropic one, which is its ground truth."""

    dataset: Name = Field(description="The dataset to thin.")
    factor: int = Field(ge=2, le=12, description="Every factor-th slice is kept, from the first.")
    thickness: Thickness = Field(
        0.0,
        description="Fraction of the new slice spacing that each kept slice averages over: 0 keeps single "
        "slices, 1 averages all.",
    )


Amount = Annotated[float, Field(ge=0)]
Range = Amount | tuple[Amount, Amount]
"""A number, or a range (lowest, highest) from which every image draws its own."""


def ends(value: Range) -> tuple[float, float]:
    """Return the lowest and highest number of a range."""
    return (min(value), max(value)) if isinstance(value, tuple) else (value, value)


class Noise(Section):
    """Noise of a degraded image; each number may be a range from which every image draws its own."""

    electrons: Range | None = Field(
        None,
        description="Electrons per pixel at the brightest intensity (Poisson noise); none by default. "
        "A range is sampled logarithmically.",
    )
    gaussian: Range = Field(
        0.0, description="Standard deviation of Gaussian noise, as a fraction of the intensity range."
    )
    correlation: Range = Field(
        0.0,
        description="Correlation of the noise of neighbouring pixels in a line: detectors lag along x, the "
        "fast axis of the scan.",
    )
    lines: Range = Field(
        0.0,
        description="Standard deviation of line brightness, as a fraction of the intensity range.",
    )

    @field_validator("electrons")
    @classmethod
    def _some(cls, value: Range | None) -> Range | None:
        if value is not None and min(ends(value)) <= 0:
            raise ValueError("must be above 0")
        return value

    @field_validator("correlation")
    @classmethod
    def _below_one(cls, value: Range) -> Range:
        if max(ends(value)) >= 1:
            raise ValueError("must be below 1")
        return value


class Degrade(Section):
    """Image pairs, degraded and clean, made from the slices of a clean volume."""

    dataset: Name = Field(description="The clean volume.")
    every: int = Field(1, ge=1, description="Every n-th slice is taken, from the first.")
    blur: Range = Field(
        0.0, description="Standard deviation of a Gaussian blur, in pixels; a number, or a range."
    )
    bin: Literal[1, 2] = Field(1, description="2: pixels twice as large, for emdiffuse-r.")
    noise: Noise = Field(default_factory=Noise, description="Noise, added last.")
    seed: int = Field(0, ge=0, description="Random seed of the noise.")


class Alignment(Section):
    """How pairs are registered, and how the alignment of a volume's slices is checked."""

    method: Literal["auto", "check", "warp"] = Field(
        "auto",
        description="`check` only measures; `warp` aligns; `auto` warps pairs and checks volumes.",
    )
    tolerance: float = Field(
        1.0,
        gt=0,
        description="Largest misplacement of a slice in an aligned volume, in pixels, for slices as far "
        "apart as pixels; more is allowed for larger spacings.",
    )
    weights: str = Field(
        "shipped",
        description="Weights of the optical flow (RAFT): `shipped`, `torchvision` (downloaded), or a path.",
    )
    least_correlation: float = Field(
        0.3, ge=0, lt=1, description="Pairs that correlate less after registration are not trained on."
    )


class Pairs(Section):
    """Image pairs: the same fields imaged twice, noisy and clean, or at low and high resolution."""

    folder: str = Field(description="Folder of the images; subfolders are searched too.")
    pattern: str | None = Field(
        None,
        description="How the files are named, if not in a known layout: with `{role}` and `{field}`, and "
        "optionally `{specimen}` and `{level}`, such as `{specimen}/{role}-{field}.tif`.",
    )
    scans: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="If there are no clean images: the `{role}` names of two or more noisy scans of each "
        "field. Each scan learns to predict the next, and vice versa (Noise2Noise).",
    )
    scale: Literal[1, 2] | None = Field(
        None,
        description="Pixel size of the other image, in pixels of the clean one: 1 for denoising, 2 for "
        "super-resolution; needed if a folder contains both.",
    )
    keep_going: bool = Field(False, description="Skip unusable pairs with a warning, instead of stopping.")

    @model_validator(mode="after")
    def _scans_differ(self) -> Pairs:
        if self.scans and len({name.lower() for name in self.scans}) < len(self.scans):
            raise ValueError("`scans` names a scan twice")
        if self.scans and self.scale == 2:
            raise ValueError("`scans` all have the same resolution; remove `scale`")
        return self


class Dataset(Reading):
    """A raw volume, a dataset derived from another, or image pairs."""

    source: str | None = Field(
        None,
        min_length=1,
        description="A file (TIFF, MRC, DM3, DM4, CZI, Amira, NRRD, NumPy, FIB-SEM .dat, Imaris, "
        "headerless pixels), an array in one (file.h5:/path), a folder of numbered slices or a pattern of "
        "them (`s_{z}.tif`); Zarr, OME-Zarr, N5, Neuroglancer precomputed or webknossos, also at a URL.",
    )
    images: bool = Field(
        False,
        description="Separate images, not the slices of a volume; with `degrade`, only the degraded ones.",
    )
    voxel_size: VoxelSize | None = Field(
        None,
        description="Voxel size (for pairs, of the clean images); required unless the `source` states one, "
        "which it must match.",
    )
    invert: bool = Field(
        False,
        description="Invert the contrast shown to networks, to match a model's training data; the result "
        "has the original contrast.",
    )
    repair: bool | Literal["slices", "stripes"] | tuple[Literal["slices", "stripes"], ...] = Field(
        False,
        description="`slices` (or true): slices of a volume that are missing, repeated, blank or saturated "
        "are restored like gaps, instead of refused. `stripes`: stripes (curtaining, line noise) "
        "are removed where they are found. A list applies both.",
    )
    slice_thickness: Thickness = Field(
        0.0,
        description="For an anisotropic volume: fraction of the slice spacing that each slice integrates "
        "over, such as 1 for serial sections; 0 for slices as thin as a pixel is wide.",
    )
    keep_every: KeepEvery | None = Field(
        None, description="Instead of `source`: keep every n-th slice of another dataset."
    )
    pairs: Pairs | None = Field(None, description="Instead of `source`: image pairs to learn from.")
    degrade: Degrade | None = Field(
        None, description="Instead of `source`: pairs made by degrading the slices of another dataset."
    )
    alignment: Alignment = Field(
        default_factory=Alignment, description="Registration of pairs, and alignment check of slices."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Dataset:
        origins = (self.source, self.pairs, self.keep_every, self.degrade)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("give exactly one of `source`, `pairs`, `keep_every` and `degrade`")
        if self.derived is None and self.voxel_size is None and not self._may_tell_its_size:
            raise ValueError("`voxel_size` is missing")
        if self.source is None and self.reading != Reading():
            keys = [key for key in Reading.model_fields if getattr(self, key) != getattr(Reading(), key)]
            raise ValueError(f"`{keys[0]}` applies only to a `source`; remove it")
        if self.images and self.source is None and self.degrade is None:
            raise ValueError("`images` applies only to a `source`; remove it")
        if self.slice_thickness and (self.source is None or self.images):
            raise ValueError("`slice_thickness` applies only to a `source` that is a volume; remove it")
        if self.repairs_slices and (self.source is None or self.images):
            raise ValueError("`repair` applies only to the slices of a volume; remove it")
        if self.repairs_stripes and self.source is None:
            raise ValueError("`repair: stripes` applies only to a `source`; remove it")
        name = "keep_every" if self.keep_every else "degrade"
        if self.invert and self.derived is not None:
            raise ValueError(f"`invert` follows from the dataset of `{name}`; remove it")
        if self.derived is not None and self.voxel_size is not None:
            raise ValueError(f"`voxel_size` follows from `{name}`; remove it")
        return self

    @property
    def repairs_slices(self) -> bool:
        """Whether missing or damaged slices are restored."""
        return self.repair is True or "slices" in self._repaired

    @property
    def repairs_stripes(self) -> bool:
        """Whether stripes are removed."""
        return "stripes" in self._repaired

    @property
    def _repaired(self) -> tuple[str, ...]:
        if isinstance(self.repair, bool):
            return ()
        return (self.repair,) if isinstance(self.repair, str) else self.repair

    @property
    def _may_tell_its_size(self) -> bool:
        return self.source is not None and parse_source(self.source).kind != "raw"

    @property
    def derived(self) -> KeepEvery | Degrade | None:
        """How the dataset is made from another one, if it is."""
        return self.keep_every or self.degrade

    @property
    def holds_pairs(self) -> bool:
        """Whether the dataset contains image pairs."""
        return self.pairs is not None or (self.degrade is not None and not self.images)

    @property
    def holds_clean_images(self) -> bool:
        """Whether the pairs have a clean image, unlike repeated noisy scans."""
        return self.holds_pairs and not (self.pairs is not None and self.pairs.scans)


def anisotropy_factor(
    voxel_size: tuple[float, float, float], key: str = "voxel_size", isotropic: bool = False
) -> Fraction:
    """Return the exact ratio of axial to lateral voxel size.

    Parameters
    ----------
    voxel_size : tuple of float
        Voxel size (z, y, x), in any unit.
    key : str
        What to name in an error.
    isotropic : bool
        Whether the ratio may also be 1.

    Raises
    ------
    ConfigError
        If pixels are not square, or the ratio is not between 2 and 12.
    """
    z, y, x = (Fraction(v).limit_denominator(10**6) for v in voxel_size)
    if not y:
        raise ConfigError(f"{key}: a pixel height of {voxel_size[1]:g} is invalid; correct the voxel size")
    if abs(y - x) > y / 1000:
        raise ConfigError(f"{key}: pixels must be square, but y is {float(y):g} and x is {float(x):g}")
    factor = (z / y).limit_denominator(1000)
    if not MINIMUM_FACTOR <= factor <= MAXIMUM_FACTOR and not (isotropic and factor == 1):
        raise ConfigError(
            f"{key}: the anisotropy factor z/y is {float(factor):g}; it must be between "
            f"{MINIMUM_FACTOR} and {MAXIMUM_FACTOR}"
        )
    return factor
