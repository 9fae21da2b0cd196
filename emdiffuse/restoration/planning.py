"""Plan a restoration: check that input, model and settings match, and create the empty stores."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from emdiffuse import __version__
from emdiffuse.config import Restoration, Sampler
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import (
    WEIGHTS_FILE,
    Description,
    model_link,
    read_description,
    weights_hash,
)
from emdiffuse.models.numbers import require_numbers
from emdiffuse.restoration.footprint import memory_mb
from emdiffuse.restoration.intervals import read_calibration
from emdiffuse.restoration.plan import Plan, belongs, create_output, create_tiles
from emdiffuse.restoration.slice_grid import ImageStack, SliceGrid, slice_grid
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.outputs import emptied, require_apart, require_free
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.facts import RealSlices, RestoredFacts, require_made
from emdiffuse.stores.neighbours import require_neighbours
from emdiffuse.stores.provenance import Link, made_by
from emdiffuse.stores.volume import Volume, open_volume


def make_plan(
    dataset: Path, model: Path, settings: Restoration, out: Path, calibration: Path | None = None
) -> Plan:
    """Plan the restoration of a volume, and create its empty stores.

    Parameters
    ----------
    dataset : Path
        Registered anisotropic OME-Zarr volume; if `settings` names `real_slices`, the restoration by that
        model.
    model : Path
        Folder of a trained model.
    settings : Restoration
        Sampler, tiling, and additional outputs.
    calibration : Path, optional
        Output of the stage `calibrate` for this model and sampler.
    out : Path
        ``plan.json`` to write. The tile store and level 0 of the restored volume are created beside it,
        unless they exist with the same hash.

    Raises
    ------
    DataError
        If the volume has fewer than two slices or no anisotropy to remove, or was restored by another model
        than `settings` names.
    """
    inputs = [path for path in (dataset, model, calibration) if path is not None]
    require_free(out, inputs, overwrite=None)
    volume, description = open_volume(dataset), read_description(model)
    task = TASKS[description.task]
    slices, height, width = volume.array.shape
    grid: SliceGrid | ImageStack = ImageStack(slices)
    if task.volumetric:
        if slices < 2:
            raise DataError(
                f"{dataset}: a single slice has no gap to fill; at least two slices are needed", dataset
            )
        grid = slice_grid(volume)
        _check_gaps(grid, dataset, model, description)
    if description.context:
        require_neighbours(volume)
    require_numbers(model / WEIGHTS_FILE)
    facts, link = _facts(volume, model, description, settings, grid, calibration)
    plan = Plan(
        folder=out.parent,
        input=dataset,
        model=model,
        images=not task.volumetric,
        scale=task.scale,
        context=description.context,
        slices=slices,
        thickness=grid.thickness if isinstance(grid, SliceGrid) else Fraction(0),
        missing=volume.facts.missing if task.volumetric else (),
        shape=(grid.length, height * task.scale, width * task.scale),
        tiling=settings.tiling,
        reliable=settings.reliable,
        restored_by=link,
        facts=facts,
    )
    blocks = plan.grid
    known = {"blocks": len(blocks), "memory_mb": memory_mb(blocks, len(plan.quantities), description)}
    plan = Plan(**{**dict(plan), **known, "checksum": ""})
    _make_stores(plan, volume)
    logger.info(
        "%s voxels in %d blocks of at most %s voxels; %d network evaluations per tile",
        " x ".join(map(str, plan.shape)), len(blocks), " x ".join(map(str, blocks.chunk)),
        description.calls(plan.sampler),
    )  # fmt: skip
    write_json(out, plan.model_dump(mode="json", exclude_none=True))
    return plan


def _facts(
    volume: Volume,
    model: Path,
    description: Description,
    settings: Restoration,
    grid: SliceGrid | ImageStack,
    calibration: Path | None,
) -> tuple[RestoredFacts, Link]:
    """Return the facts of the restored volume, and the provenance of its tiles."""
    sampler = description.resolve(settings.sampler)
    description.require_ensemble(sampler, model)
    sampler = sampler.model_copy(update={"consistent": _consistent(sampler, grid, volume.path)})
    weights, name = weights_hash(model), f"{settings.dataset} by {settings.model}"
    how = {"sampler": sampler.model_dump(mode="json"), "tiling": settings.tiling.model_dump(mode="json")}
    made = link = made_by("restore", name, how, volume.made, model_link(model))
    calibrated = None
    if calibration is not None:
        found = read_calibration(calibration, weights, sampler, volume.facts.sources)
        made = made_by("intervals", name, {}, link, require_made(found, calibration))
        calibrated = found.model_copy(update={"made": None})  # already part of `made`
    facts = RestoredFacts(
        dataset=settings.dataset,
        made=made,
        kind=volume.facts.kind,
        intensity=volume.intensity.stretched(
            float(grid.factor), float(grid.centre(0)) if isinstance(grid, SliceGrid) else 0.0
        ),
        thickness=0.0 if TASKS[description.task].volumetric else volume.facts.thickness,
        sources=volume.facts.sources,
        missing=() if TASKS[description.task].volumetric else volume.facts.missing,
        factor=grid.factor,
        version=__version__,
        model=settings.model,
        task=description.task,
        estimator=description.estimator(sampler),
        sampler=sampler,
        weights=weights,
        calibration=calibrated,
        training_sources=(*description.sources, *volume.restoration.training_sources),
        real_slices=_restored_before(volume, settings),
    )
    return facts, link


def _restored_before(volume: Volume, settings: Restoration) -> RealSlices | None:
    """Return the restoration of the input's real slices, or None if they are as acquired."""
    facts = volume.restoration
    if facts.model != settings.real_slices:
        raise DataError(
            f"{volume.path}: its slices were restored by {facts.model or 'no model'}, but `real_slices` is "
            f"{settings.real_slices or 'not set'}; give the matching volume",
            volume.path,
        )
    if facts.model is None:
        return None
    return RealSlices(
        model=facts.model,
        estimator=facts.estimator or "",
        weights=facts.weights or "",
        hash=volume.made.hash,
    )


def _consistent(sampler: Sampler, grid: SliceGrid | ImageStack, dataset: Path) -> bool:
    """Return whether restored slices are made consistent with the thick real ones."""
    if sampler.consistent and not grid.thick:
        raise DataError(
            f"{dataset}: `sampler.consistent` is for thick slices, but the slice thickness is unknown; set "
            "`slice_thickness`"
        )
    return grid.thick if sampler.consistent is None else sampler.consistent


def _check_gaps(grid: SliceGrid, dataset: Path, model: Path, description: Description) -> None:
    """Warn about gaps that the model was not trained for, and missing slices that cannot be restored."""
    widths = {grid.width(gap) for gap in range(grid.gaps) if grid.generated(gap)}
    strange = sorted(width for width in widths if not description.trained_for(width))
    if strange:
        factors = ", ".join(map(str, strange))
        logger.warning(
            "%s: factor %s, but %s was trained for %s", dataset, factors, model, description.factors
        )
    if kept := sorted(set(grid.missing) & set(grid.good)):
        logger.warning(
            "%s: slices %s are missing at an end of the volume, with a real slice on one side only: they "
            "remain copies of it",
            dataset,
            kept,
        )


def _make_stores(plan: Plan, volume: Volume) -> None:
    """Create the tile store and level 0 of the restored volume, unless they belong to this plan."""
    inputs = (plan.input, plan.model)
    for store in (plan.tiles, plan.restored):
        require_apart(store, inputs)
    if not belongs(plan, plan.tiles):
        create_tiles(plan, emptied(plan.tiles, inputs))
    if not all(belongs(plan, plan.restored / name / "0") for name in plan.outputs):
        emptied(plan.restored, inputs)
        for name in plan.outputs:
            create_output(plan, name, plan.restored / name / "0", volume.array.dtype)
