"""Restore one file without a workflow: the stages of the chain one after another, in a folder of their own.

Conventions
-----------
* The voxels are those of the chain with the same model, sampler and tiling, because the code is the same;
  only the check of alignment is left out.
* Voxel sizes are (z, y, x) in nanometers. Of a volume the ratio z/y must be known: from the file, or said.
* The stages work in a hidden folder beside the output, which is removed at the end; the output appears whole,
  or not at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.config import Restoration, Sampler
from emdiffuse.config.tasks import TASKS
from emdiffuse.enhance.tiff import TiffFacts, tiff_facts, write_tiff
from emdiffuse.models.description import read_description
from emdiffuse.models.inference import RestorationModel
from emdiffuse.readers import SUFFIXES, source_files
from emdiffuse.restoration.plan import Plan, make_plan
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.runtime.atomic import scratch, take_place
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.stores.volume import Array, open_volume

ZARR = ".zarr"


@dataclass(frozen=True)
class Enhancement:
    """How a file is restored.

    Attributes
    ----------
    model : Path
        Folder of the model.
    sampler : Sampler
        How the network is run.
    factor : Fraction or None
        Ratio of the distance of slices to the size of a pixel.
    voxel_size : tuple of float or None
        Voxel size (z, y, x); None to take it from the file.
    device : str
        "auto", "cpu" or a CUDA device.
    """

    model: Path
    sampler: Sampler = field(default_factory=Sampler)
    factor: Fraction | None = None
    voxel_size: tuple[float, float, float] | None = None
    device: str = "auto"


def enhance(
    source: Path,
    output: Path,
    how: Enhancement,
    uncertainty: Path | None = None,
    model: RestorationModel | None = None,
) -> None:
    """Restore a TIFF.

    Parameters
    ----------
    source : Path
        An image, a stack of images (emdiffuse-n, -r) or a volume (vemdiffuse); a volume may also be a folder
        of numbered slices.
    output : Path
        What to write: ``.tif`` or ``.tiff``, of the same type as the source and with what it says of itself;
        or ``.zarr``, an OME-Zarr group as the chain writes it. What lay there is replaced.
    how : Enhancement
        Model and settings.
    uncertainty : Path, optional
        TIFF to write the standard deviation over the samples to, float32 in the source's intensities.
    model : RestorationModel, optional
        The model of `how`, where it is loaded already.

    Raises
    ------
    ConfigError
        If the output cannot be of this kind, or the ratio z/y of a volume is not known.
    DataError
        If the source cannot be used.
    """
    _check_outputs(source, output, how, uncertainty)
    facts = tiff_facts(source_files(str(source))[0])
    task = TASKS[read_description(how.model).task]
    size = voxel_size(source, facts, how, task.volumetric)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", source.stem).strip("_") or "image"
    with scratch(output) as work:
        acquire(str(source), size, work / "input.ome.zarr", name, images=not task.volumetric)
        settings = Restoration(dataset=name, model=how.model.resolve().name or "model", sampler=how.sampler)
        path = work / "plan.json"
        plan = make_plan(work / "input.ome.zarr", how.model, settings, path)
        if uncertainty is not None and "uncertainty" not in plan.quantities:
            raise ConfigError(
                f"--uncertainty: {how.model} answers with the {plan.facts['estimator']}, whose samples do "
                "not differ; ask for `--steps` of 2 or more and `--samples` of 2 or more"
            )
        restore(path, 1, 1, how.device, model)
        stitch(path, 1, 1)
        pyramid(path)
        if uncertainty is not None:
            _write(plan, "uncertainty", uncertainty, facts, task.volumetric)
        if output.suffix == ZARR:
            take_place(plan.restored, output)
        else:
            _write(plan, "restored", output, facts, task.volumetric)


def _check_outputs(source: Path, output: Path, how: Enhancement, uncertainty: Path | None) -> None:
    """Refuse what would fail at the end of the work, or destroy the source."""
    if output.suffix.lower() not in (*SUFFIXES, ZARR):
        raise ConfigError(f"{output}: say what to write by the ending: .tif or .ome.zarr")
    if uncertainty is not None and uncertainty.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--uncertainty: {uncertainty} must end in .tif")
    if uncertainty is not None and how.sampler.samples < 2:
        raise ConfigError("--uncertainty is the spread of samples: ask for `--samples` of 2 or more")
    for path in (output, uncertainty):
        if path is not None and path.resolve() == source.resolve():
            raise ConfigError(f"{path}: this is the input; choose another output")
    if uncertainty is not None and uncertainty.resolve() == output.resolve():
        raise ConfigError(f"{output}: this is the file of the uncertainty too; choose another one")


def voxel_size(
    source: Path, facts: TiffFacts, how: Enhancement, volumetric: bool
) -> tuple[float, float, float]:
    """Return the voxel size (z, y, x) to restore a file with: as it was said, or as the file says.

    Pixels of unknown size count as 1 nm: of images no voxel depends on it.

    Raises
    ------
    ConfigError
        If more is said than one thing.
    DataError
        If it is a volume whose distance of slices is not known.
    """
    if how.factor is not None and how.voxel_size is not None:
        raise ConfigError("say either `--factor` or `--voxel-size`, not both")
    if how.voxel_size is not None:
        return how.voxel_size
    pixel = facts.pixel or 1.0
    if how.factor is not None:
        return (float(how.factor * Fraction(pixel).limit_denominator(10**6)), pixel, pixel)
    if not volumetric:
        return (facts.spacing or pixel, pixel, pixel)
    if facts.pixel is None or facts.spacing is None:
        raise DataError(
            f"{source}: the file does not say how far its slices are apart; add `--factor` (6, or 45/8) or "
            "`--voxel-size` (z,y,x in nanometers, such as 60,10,10)"
        )
    return (facts.spacing, facts.pixel, facts.pixel)


def _write(plan: Plan, quantity: str, path: Path, facts: TiffFacts, volumetric: bool) -> None:
    """Write a quantity as a TIFF; sizes that nobody knows are not made up."""
    z, y, _ = open_volume(plan.restored / quantity).voxel_size
    known = open_volume(plan.input).voxel_size != (1.0, 1.0, 1.0) and (facts.pixel is not None or volumetric)
    spacing = z if volumetric or facts.spacing is not None else None
    with scratch(path) as work:
        file = work / path.name
        same_grid = not volumetric and plan.scale == 1
        write_tiff(
            file,
            Array(plan.restored / quantity / "0"),
            facts,
            y if known else None,
            spacing if known else None,
            same_grid,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
