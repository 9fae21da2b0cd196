"""Facts of a store: the attribute ``emdiffuse`` of its group, as typed records.

Conventions
-----------
* The stage that creates a store writes its record, and other stages read only that. Unknown keys, wrong types
  and numbers that are not finite are refused in one sentence: the store was edited, or is of another version.
* An OME-Zarr image without that attribute is foreign: it has no facts, but can be viewed and compared with.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, JsonValue, PlainSerializer

from emdiffuse.config import Sampler
from emdiffuse.config.settings import Record, parse_record
from emdiffuse.runtime.errors import StoreError
from emdiffuse.stores.intensity import Intensity
from emdiffuse.stores.provenance import Link, SourceFile

Task = Literal["emdiffuse-n", "emdiffuse-r", "vemdiffuse-i", "vemdiffuse-a"]
Told = dict[str, JsonValue]
"""Measurements for display only; no stage reads them."""
Terse = Annotated[Intensity, PlainSerializer(lambda intensity: intensity.as_facts())]


class Facts(Record):
    """Facts of every store."""

    dataset: str | None = None
    made: Link | None = None

    def as_json(self) -> dict[str, Any]:
        """Return JSON data, without unknown values."""
        return self.model_dump(mode="json", exclude_none=True)


class Artefact(Record):
    """A structured artefact of the microscope, found by `acquisition.stripes`.

    Attributes
    ----------
    kind
        Kind of artefact.
    amount
        Standard deviation.
    unit
        Unit of the amount.
    """

    kind: Literal["vertical stripes", "horizontal stripes", "brightness bands", "line jitter"]
    amount: float
    unit: Literal["grey levels", "pixels"]

    @property
    def told(self) -> str:
        """Return the artefact in words."""
        return f"{self.kind}, {self.amount:.3g} {self.unit}"


class VolumeFacts(Facts):
    """Facts of an acquired or registered volume, or of separate images (`kind`).

    Attributes
    ----------
    thickness
        Fraction of the slice spacing that each slice averages over.
    missing
        Slices whose pixels cannot be trusted, in order.
    valid
        First and last row and column of the image, ends excluded, if the rest is a data bar.
    derived_from, factor, degraded
        For a dataset made from another one: its name, and how it was made.
    alignment, slices_moved
        For a registered volume: result of the check, and what was changed.
    artefacts, destriped
        Structured artefacts found, and whether stripes were removed.
    """

    stage: Literal["acquire", "register", "restored"] | None = None
    kind: Literal["volume", "images"] = "volume"
    intensity: Terse | None = None
    sources: tuple[SourceFile, ...] = ()
    thickness: float = Field(0.0, ge=0, le=1)
    missing: tuple[Annotated[int, Field(ge=0)], ...] = ()
    valid: tuple[int, int, int, int] | None = None
    derived_from: str | None = None
    factor: Fraction | None = None
    degraded: Told | None = None
    alignment: Told | None = None
    slices_moved: Told | None = None
    artefacts: tuple[Artefact, ...] = ()
    destriped: bool = False


class Coverage(Record):
    """Scale of intervals with a fraction `alpha` of voxels outside; None if not attainable."""

    alpha: float
    scale: float | None = None


class CalibrationFacts(Facts):
    """Calibration of intervals: the result of `evaluation.calibration`, which explains it.

    Attributes
    ----------
    noise
        If calibrated by a second noisy scan: standard deviation of its noise, in intensities.
    """

    model: str | None = None
    truth: str | None = None
    scale: float = Field(gt=0)
    floor: float | None = None
    alpha: float = 0.1
    delta: float = 0.1
    unit: str = ""
    units: int = 0
    risk: float | None = None
    noise: float | None = None
    levels: tuple[Coverage, ...] = ()
    sampler: Sampler
    weights: str
    sources: tuple[SourceFile, ...] = ()


class Reliability(Record):
    """Scores of generated slices: the result of `restoration.stitch.reliability`, which explains it."""

    slices: tuple[int, ...]
    scores: tuple[float, ...]
    threshold: float
    reliable: int


class EmptyFacts(Record):
    """Empty regions, in which there is nothing to restore: see `restoration.empty`.

    Attributes
    ----------
    share
        Fraction of the generated voxels in empty regions; those in transition count partially.
    block
        Pixels of the volume per pixel of the layer ``empty``, along a side.
    contrast, noisy
        Thresholds of the rule.
    """

    share: float = Field(ge=0, le=1)
    block: int
    contrast: float
    noisy: float


class RealSlices(Record):
    """The restoration of a volume's real slices before its gaps were filled."""

    model: str
    estimator: str
    weights: str
    hash: str


class RestoredFacts(VolumeFacts):
    """Facts of a restored volume or image, and of the other images in its store."""

    stage: Literal["restored"] = "restored"
    version: str | None = None
    model: str | None = None
    task: Task | None = None
    estimator: str | None = None
    sampler: Sampler | None = None
    weights: str | None = None
    calibration: CalibrationFacts | None = None
    training_sources: tuple[SourceFile, ...] = ()
    real_slices: RealSlices | None = None
    reliability: Reliability | None = None
    empty: EmptyFacts | None = None


class PairField(Record):
    """A field of a store of pairs: its group, and why it is excluded from training, if it is."""

    group: str
    name: str = ""
    specimen: str = ""
    level: str = ""
    quality: Told | None = None
    excluded: str | None = None


class PairsFacts(Facts):
    """Facts of a store of image pairs.

    Attributes
    ----------
    skipped
        Images skipped at acquisition, and why.
    scans
        Names of the scans, if both images of a pair are noisy.
    """

    stage: Literal["acquire", "register"]
    kind: Literal["pairs"] = "pairs"
    scale: Literal[1, 2]
    sources: tuple[SourceFile, ...] = ()
    fields: tuple[PairField, ...] = Field(min_length=1)
    skipped: dict[str, str] = Field(default_factory=dict)
    scans: tuple[str, ...] | None = None
    derived_from: str | None = None
    degraded: Told | None = None


class NoiseCorrelation(Record):
    """Noise correlation of pixels 1, 2, ... apart; see `patches.correlation`."""

    y: tuple[float, ...]
    x: tuple[float, ...]


class PatchFacts(Facts):
    """Facts of a patch store; see `patches.cut`.

    Attributes
    ----------
    noisy
        How a model learns without clean images: from hidden pixels, or from a second scan.
    measured
        Whether the validation patches have ground truth.
    noise
        Noise correlation of single noisy images.
    """

    stage: Literal["patches"] = "patches"
    task: Task
    factors: tuple[int, ...]
    datasets: tuple[str, ...]
    columns: tuple[str, ...]
    sources: tuple[SourceFile, ...] = ()
    residual_scale: float = Field(ge=0)
    noisy: Literal["hidden pixels", "second scan"] | None = None
    measured: bool = True
    noise: NoiseCorrelation | None = None


FactsType = TypeVar("FactsType", bound=Facts)


def parse_facts(kind: type[FactsType], content: Any, path: Path) -> FactsType:
    """Read the facts of a store from its attribute.

    Raises
    ------
    StoreError
        If they are of another kind or version; one sentence.
    """
    remedy = "it was edited, or made by another version; run the stage that created it again"
    if not isinstance(content, dict):
        raise StoreError(f"{path}: not a store made by emdiffuse; {remedy}", path)
    return parse_record(kind, content, path, StoreError, remedy)


def parse_volume_facts(content: Any, path: Path) -> VolumeFacts:
    """Read the facts of an image; an image not made by emdiffuse has none."""
    restored = isinstance(content, dict) and content.get("stage") == "restored"
    return parse_facts(RestoredFacts if restored else VolumeFacts, content or {}, path)


def require_made(facts: Facts, path: Path) -> Link:
    """Return the provenance of a store.

    Raises
    ------
    StoreError
        If it is not recorded.
    """
    if facts.made is None:
        raise StoreError(
            f"{path}: its provenance is not recorded, as in stores of earlier versions; run the stage that "
            "created it again",
            path,
        )
    return facts.made
