"""Restore one file without a workflow, by running the stages of the pipeline in a temporary folder.

Conventions
-----------
* The voxels are those of the workflow with the same model, sampler and tiling, because the code is the same;
  only the alignment check is skipped, and the tile size suits the image (`enhance.tiling`).
* Voxel sizes are (z, y, x) in nanometers. For a volume the ratio z/y must be known, from the file or the
  user.
* The stages work in a hidden folder beside the output, which is removed at the end; the output appears
  complete, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.acquisition.sizes import agreed_voxel_size
from emdiffuse.config import Restoration, Sampler
from emdiffuse.config.datasets import LONGEST_NAME
from emdiffuse.config.reading import Reading
from emdiffuse.config.sources import parse_source
from emdiffuse.config.tasks import TASKS
from emdiffuse.enhance.tiff import TiffFacts, facts_of, write_tiff
from emdiffuse.enhance.tiling import economical_tiling
from emdiffuse.models.description import read_description
from emdiffuse.models.inference import RestorationModel
from emdiffuse.readers import SUFFIXES, open_source
from emdiffuse.readers.base import Source
from emdiffuse.restoration.plan import Plan, restored_voxel_size
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import pyramid, stitch, told_origin
from emdiffuse.restoration.tiles import restore
from emdiffuse.runtime.atomic import scratch, take_place
from emdiffuse.runtime.devices import place_of
from emdiffuse.runtime.errors import ConfigError, DataError, EmdiffuseError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.outputs import require_free, require_own_folder
from emdiffuse.stores.array import Array
from emdiffuse.stores.neighbours import require_several
from emdiffuse.stores.volume import open_volume

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
        Anisotropy factor: slice spacing over pixel size.
    voxel_size : tuple of float or None
        Voxel size (z, y, x); None to take it from the file.
    override : bool
        Whether this, or the factor, takes precedence over the file.
    thickness : float
        For a volume: fraction of the slice spacing that each slice integrates over.
    reading : Reading
        Which part of the file to read.
    device : str
        "auto", "cpu" or a CUDA device.
    """

    model: Path
    sampler: Sampler = field(default_factory=Sampler)
    factor: Fraction | None = None
    voxel_size: tuple[float, float, float] | None = None
    override: bool = False
    thickness: float = 0.0
    reading: Reading = field(default_factory=Reading)
    device: str = "auto"


def enhance(
    source: Path | str,
    output: Path,
    how: Enhancement,
    uncertainty: Path | None = None,
    model: RestorationModel | None = None,
    overwrite: bool = False,
) -> None:
    """Restore a file or a folder of slices in any supported format.

    Parameters
    ----------
    source : Path or str
        An image, a stack of images (emdiffuse-n, -r) or a volume (vemdiffuse).
    output : Path
        File to write: ``.tif`` or ``.tiff``, with the data type and metadata of the source, or ``.zarr``, an
        OME-Zarr group as in the workflow. An earlier output of emdiffuse is replaced.
    how : Enhancement
        Model and settings.
    uncertainty : Path, optional
        TIFF for the standard deviation over the samples, float32 in the source's intensities; for a TIFF with
        more than one sample ``OUTPUT.uncertainty.tif`` by default.
    model : RestorationModel, optional
        The model of `how`, if already loaded.
    overwrite : bool
        Whether to replace TIFFs of these names that emdiffuse did not write.

    Raises
    ------
    OutputError
        If an output is the input, is inside it or contains it, or exists and was not written by emdiffuse.
    ConfigError
        If the output has an unsupported type, or the ratio z/y of a volume is unknown.
    DataError
        If the source cannot be used.
    """
    if uncertainty is None and how.sampler.samples > 1 and output.suffix != ZARR:
        uncertainty = output.with_name(f"{output.stem}.uncertainty{output.suffix}")
    description = read_description(how.model)
    task = TASKS[description.task]
    place_of(how.device)  # before the work begins
    images = not (task.volumetric or description.context)  # a volume denoiser needs neighbours
    slices = open_source(str(source), reading=how.reading, images=images)
    if description.context:
        require_several(slices.shape[0], source)
    inputs = [Path(parse_source(str(source)).place), *slices.files, how.model]
    _check_outputs(inputs, output, how, uncertainty, overwrite)
    facts = facts_of(slices)
    size, known = voxel_size(slices, how, task.volumetric)
    name = plain_name(Path(source).stem, "image")
    with scratch(output) as work, speaking_of({work / "input.ome.zarr": source, work: output}):
        acquire(
            str(source),
            size,
            work / "input.ome.zarr",
            name,
            images=images,
            reading=how.reading,
            override=True,  # `size` already includes the file's
            thickness=how.thickness,
        )
        model_name = plain_name(how.model.resolve().name, "model")
        _, height, width = open_volume(work / "input.ome.zarr").array.shape
        settings = Restoration(
            dataset=name,
            model=model_name,
            sampler=how.sampler,
            tiling=economical_tiling(height * task.scale, width * task.scale, description),
        )
        path = work / "plan.json"
        plan = make_plan(work / "input.ome.zarr", how.model, settings, path)
        if uncertainty is not None and "uncertainty" not in plan.quantities:
            raise ConfigError(
                "--steps: samples of a single evaluation do not differ; omit it, or set it to 2 or more with "
                "`--samples`"
            )
        same_grid = not task.volumetric and plan.scale == 1 and _keeps_the_grid(how.reading)
        restore(path, 1, 1, how.device, model)
        stitch(path, 1, 1)
        if uncertainty is not None:
            _write(plan, "uncertainty", uncertainty, facts, known, same_grid)
        if output.suffix == ZARR:
            pyramid(path)
            if not known[1]:
                forget_unit(plan.restored)
            take_place(plan.restored, output)
        else:
            _write(plan, "restored", output, facts, known, same_grid)


def _keeps_the_grid(reading: Reading) -> bool:
    """Return whether rows and columns are read as stored in the file."""
    cut = reading.crop is not None and (reading.crop.y is not None or reading.crop.x is not None)
    return not (cut or reading.square_pixels)


@contextlib.contextmanager
def speaking_of(names: Mapping[Path, Path | str]) -> Iterator[None]:
    """Replace names of hidden files in errors and warnings by those that the user gave."""

    def plain(text: str) -> str:
        for hidden, shown in names.items():
            text = text.replace(str(hidden), str(shown))
        return text

    def rewrite(record: logging.LogRecord) -> bool:
        record.msg, record.args = plain(record.getMessage()), ()
        return True

    handlers = [*logging.getLogger("emdiffuse").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(rewrite)
    try:
        yield
    except EmdiffuseError as error:
        error.args = (plain(str(error)),)
        raise
    finally:
        for handler in handlers:
            handler.removeFilter(rewrite)


def plain_name(text: str, otherwise: str) -> str:
    """Return a valid dataset name for a text chosen by the user: letters, digits, - and _."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", letters)[: LONGEST_NAME - 10].strip("_-") or otherwise


def _check_outputs(
    inputs: list[Path], output: Path, how: Enhancement, uncertainty: Path | None, overwrite: bool
) -> None:
    """Refuse outputs that would fail at the end of the work, or replace foreign files."""
    if output.suffix.lower() not in (*SUFFIXES, ZARR):
        raise ConfigError(f"{output}: choose the format by the extension: .tif or .ome.zarr")
    if uncertainty is not None and uncertainty.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--uncertainty: {uncertainty} must end in .tif")
    if uncertainty is not None and how.sampler.samples < 2:
        raise ConfigError("--uncertainty is the spread of samples; set `--samples` to 2 or more")
    if output.suffix == ZARR:
        require_own_folder(output, inputs)
    else:
        require_free(output, inputs, overwrite)
    if uncertainty is not None:
        require_free(uncertainty, inputs, overwrite)
        if uncertainty.resolve() == output.resolve():
            raise ConfigError(f"{output}: this is also the file of the uncertainty; choose another one")


def voxel_size(
    slices: Source, how: Enhancement, volumetric: bool
) -> tuple[tuple[float, float, float], tuple[bool, bool]]:
    """Return the voxel size (z, y, x) for restoring a file: the given one, or that of the file.

    Pixels of unknown size count as 1 nm, which affects no voxel, except through the ratio given by `factor`.

    Returns
    -------
    size : tuple of float
        Voxel size (z, y, x).
    known : tuple of bool
        Whether slice spacing and pixel size are known.

    Raises
    ------
    ConfigError
        If both `--factor` and `--voxel-size` are given.
    DataError
        If it is a volume of unknown slice spacing, or the options contradict the file.
    """
    if how.factor is not None and how.voxel_size is not None:
        raise ConfigError("give either `--factor` or `--voxel-size`, not both")
    spacing, height, pixel = slices.voxel_size or (None, None, None)
    square = not how.reading.square_pixels
    if how.voxel_size is not None:
        size = agreed_voxel_size(slices, how.voxel_size, how.override, not volumetric, square)
        return size, (True, True)
    if how.factor is not None:
        sides = (height or 1.0, pixel or 1.0)
        z = float(how.factor * Fraction(min(sides)).limit_denominator(10**6))
        size = agreed_voxel_size(slices, (z, *sides), how.override, not volumetric, square)
        return size, (True, pixel is not None)
    if not volumetric:
        _, y, x = agreed_voxel_size(slices, None, False, True, square) if pixel is not None else (1.0,) * 3
        return (spacing or x, y, x), (spacing is not None, pixel is not None)
    if pixel is None or spacing is None:
        raise DataError(
            f"{slices.name}: the file does not state its slice spacing; add `--factor` (6, or "
            "45/8) or `--voxel-size` (z,y,x in nanometers, such as 60,10,10)"
        )
    return agreed_voxel_size(slices, None, square=square), (True, True)


def forget_unit(image: Path) -> None:
    """Remove the unit from the axes of OME-Zarr images of unknown voxel size, and of images below."""
    for path in sorted(image.rglob("zarr.json")):
        metadata = json.loads(path.read_text())
        multiscales = metadata.get("attributes", {}).get("ome", {}).get("multiscales", [])
        for axis in (axis for found in multiscales for axis in found["axes"]):
            axis.pop("unit", None)
        if multiscales:
            write_json(path, metadata)


def _write(
    plan: Plan, quantity: str, path: Path, facts: TiffFacts, known: tuple[bool, bool], same_grid: bool
) -> None:
    """Write a quantity as a TIFF; unknown sizes are omitted."""
    z, y, _ = restored_voxel_size(plan)
    spacing_known, pixel_known = known
    with scratch(path) as work:
        file = work / path.name
        write_tiff(
            file,
            Array(plan.restored / quantity / "0"),
            facts,
            y if pixel_known else None,
            z if spacing_known and pixel_known else None,
            same_grid,
            _history(plan, quantity),
            intensities=quantity == "restored",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)


def _history(plan: Plan, quantity: str) -> str:
    """Return the provenance of a quantity (files, model, settings), in ASCII as TIFF requires."""
    facts = plan.facts
    sources = ", ".join(f"{Path(source.path).name} SHA-256 {source.sha256}" for source in facts.sources)
    sampler = facts.sampler.model_dump_json(exclude_none=True) if facts.sampler is not None else "default"
    what = "" if quantity == "restored" else f"{quantity} of data "
    text = f"{what}{told_origin(plan)}; sources: {sources}; sampler: {sampler}; settings: {plan.hash}"
    return text.encode("ascii", "backslashreplace").decode()
