"""Facts of a store: the attribute ``emdiffuse`` of its group, as typed records.

Conventions
-----------
* A record is what the maker of a store writes, and all that anybody reads of it. Unknown keys, wrong types
  and numbers that are not finite are refused in one sentence: a store was edited, or is of another version.
* An OME-Zarr image without that attribute is foreign; nothing is known of it, and it can be looked at
  and compared with.
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
"""Measurements for people; no program reads them."""
Terse = Annotated[Intensity, PlainSerializer(lambda intensity: intensity.as_facts())]


class Facts(Record):
    """Facts of every store."""

    dataset: str | None = None
    made: Link | None = None

    def as_json(self) -> dict[str, Any]:
        """Return JSON data, without what is not known."""
        return self.model_dump(mode="json", exclude_none=True)


class Artefact(Record):
    """A structured artefact of the microscope, as `acquisition.stripes` found it.

    Attributes
    ----------
    kind
        What it is.
    amount
        Its standard deviation.
    unit
        Of the amount.
    """

    kind: Literal["vertical stripes", "horizontal stripes", "brightness bands", "line jitter"]
    amount: float
    unit: Literal["grey levels", "pixels"]

    @property
    def told(self) -> str:
        """Say it in words."""
        return f"{self.kind}, {self.amount:.3g} {self.unit}"


class VolumeFacts(Facts):
    """Of a volume, or of separate images (`kind`), acquired or registered.

    Attributes
    ----------
    thickness
        Fraction of the slice spacing that each slice averages over.
    missing
        Slices whose pixels are not to be trusted, in order.
    valid
        First and last row and column, ends excluded, of what is image, where the rest is a data bar.
    derived_from, factor, degraded
        Of a dataset made from another one: its name, and how.
    alignment, slices_moved
        Of a registered one: what was found and done.
    artefacts, destriped
        Structured artefacts that were found, and whether stripes were removed.
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
    """How wide intervals must be for a share `alpha` of the voxels to lie outside; None: not to be had."""

    alpha: float
    scale: float | None = None


class CalibrationFacts(Facts):
    """How intervals were calibrated: the result of `evaluation.calibration`, which explains it.

    Attributes
    ----------
    noise
        Of a calibration by a second noisy scan: the standard deviation of its noise, in intensities.
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
    """Where nothing was to be seen, and all was left plain: see `restoration.empty`.

    Attributes
    ----------
    share
        Share of the generated voxels that was left plain; those in transition count in part.
    block
        Pixels, along a side, of a place of the layer ``empty``.
    contrast, noisy
        The rule's thresholds.
    """

    share: float = Field(ge=0, le=1)
    block: int
    contrast: float
    noisy: float


class RealSlices(Record):
    """By what the slices of a volume were restored before its gaps were filled."""

    model: str
    estimator: str
    weights: str
    hash: str


class RestoredFacts(VolumeFacts):
    """Of a restored volume or image, and of all that lies beside it in its store."""

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
    """A field of a store of pairs, its group, and why it is left out of training, if it is."""

    group: str
    name: str = ""
    specimen: str = ""
    level: str = ""
    quality: Told | None = None
    excluded: str | None = None


class PairsFacts(Facts):
    """Of a store of image pairs.

    Attributes
    ----------
    skipped
        Which images were left out at acquisition, and why.
    scans
        Names of the scans, where both images of a pair are noisy.
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
    """Correlation of the noise of pixels 1, 2, ... apart; see `patches.correlation`."""

    y: tuple[float, ...]
    x: tuple[float, ...]


class PatchFacts(Facts):
    """Of a patch store; see `patches.cut`.

    Attributes
    ----------
    noisy
        How is learned where nothing is clean: from hidden pixels, or from a second scan.
    measured
        Whether the validation patches have a truth.
    noise
        How far the noise of single noisy images is correlated.
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
        If they are not of this kind, or of this version; one sentence.
    """
    remedy = "it was edited, or made by another version; run the stage that makes it again"
    if not isinstance(content, dict):
        raise StoreError(f"{path}: this is not a store that emdiffuse made; {remedy}", path)
    return parse_record(kind, content, path, StoreError, remedy)


def parse_volume_facts(content: Any, path: Path) -> VolumeFacts:
    """Read the facts of an image; nothing is known of one that the program did not make."""
    restored = isinstance(content, dict) and content.get("stage") == "restored"
    return parse_facts(RestoredFacts if restored else VolumeFacts, content or {}, path)


def require_made(facts: Facts, path: Path) -> Link:
    """Return how a store was made.

    Raises
    ------
    StoreError
        If it does not say so.
    """
    if facts.made is None:
        raise StoreError(
            f"{path}: it does not record what it was made from, like stores of earlier versions; run the "
            "stage that makes it again",
            path,
        )
    return facts.made
