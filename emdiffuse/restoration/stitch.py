"""Stitch and pyramid: sum the blocks, insert the real slices, and finish the OME-Zarr volume.

Conventions
-----------
* A stitch worker owns whole shards of the output and writes each once; the sums of the blocks that overlap a
  shard are added in the order of the blocks' numbers. The windows of all tiles add up to one, so no division
  is needed.
* Real slices and fill are copied from the input, unchanged (`kept`). Thick slices (`geometry`) are generated
  over their whole thickness: with `sampler.consistent` the result is changed as little as necessary so that
  its average is the measured slice, after blending, so that tiles do not show. Other values are mapped from
  [-1, 1] to the input's intensities, rounded and clipped to its type. The uncertainty is float32, in the
  input's intensities; in real slices it is that of the input if a model restored these, else 0. The interval
  of a real slice is the slice itself.
* If a chunk is missing, truncated, or fails its checksum, the marks of the workers that write such chunks are
  removed, so that the next start recomputes it.
* The pyramid writes the volume's ``zarr.json`` last: without it the volume is unfinished.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdiffuse.restoration.empty import leave_plain, write_layer
from emdiffuse.restoration.geometry import owned
from emdiffuse.restoration.intervals import floors, interval
from emdiffuse.restoration.kept import with_kept, without_uncertainty
from emdiffuse.restoration.plan import (
    BOUNDS,
    Plan,
    open_array_of,
    open_input,
    read_plan,
    restored_voxel_size,
)
from emdiffuse.restoration.slice_grid import SliceGrid
from emdiffuse.runtime.errors import DamagedError, StoreError
from emdiffuse.runtime.progress import logger, progress
from emdiffuse.stores.array import Array, Box
from emdiffuse.stores.facts import Reliability
from emdiffuse.stores.intensity import Scaling, cast_to, from_unit
from emdiffuse.stores.pyramid import build_pyramid
from emdiffuse.stores.volume import Volume, multiscale, open_volume, write_group

SCORE_PERCENTILE = 99
"""Percentile of an image's uncertainty that is its score."""


def stitch(path: Path, worker: int, workers: int) -> None:
    """Write the unfinished shards of level 0 that a worker owns.

    Parameters
    ----------
    path : Path
        ``plan.json``; all blocks must be done.
    worker, workers : int
        This worker, counted from 1, and the number of workers.

    Raises
    ------
    StoreError
        If a block is missing or damaged, or a store belongs to another plan.
    """
    plan = read_plan(path)
    volume, tiles = open_input(plan), open_array_of(plan, plan.tiles)
    outputs = {name: open_array_of(plan, plan.restored / name / "0") for name in plan.outputs}
    grid = outputs["restored"].grid
    mine = [
        tuple(int(i) for i in np.unravel_index(n, grid)) for n in owned(int(np.prod(grid)), worker, workers)
    ]
    lacking = {index: [n for n, array in outputs.items() if not array.intact(index)] for index in mine}
    todo = [index for index, names in lacking.items() if names]
    if not todo:
        logger.info("all %d shards of worker %d are done", len(mine), worker)
        return
    what = f"stitching, worker {worker} of {workers}"
    damaged = 0
    for index in progress(todo, len(mine), what, "shard", done=len(mine) - len(todo)):
        box = outputs["restored"].box(index)
        try:
            for name in lacking[index]:
                outputs[name][box] = stitch_box(plan, volume, tiles, name, box)
        except DamagedError as error:
            if error.path != plan.tiles:
                raise
            damaged += 1
    if damaged:
        plan.forget("restore")
        raise StoreError(
            f"{plan.tiles}: {damaged} shards cannot be written because blocks are missing or damaged; "
            "start again; only those blocks are recomputed"
        )


def stitch_box(plan: Plan, volume: Volume, tiles: Array, name: str, box: Box) -> NDArray[np.generic]:
    """Return a box (z, y, x) of an output of the plan, in the input's intensities."""
    if name in BOUNDS and plan.calibration is not None:
        restored, uncertainty = (stitch_box(plan, volume, tiles, part, box) for part in plan.quantities[:2])
        floor = floors(_scaling(plan, box))
        bounds = interval(restored, uncertainty, plan.calibration.scale, floor)
        return with_kept(plan, volume, bounds[BOUNDS.index(name)], box)
    if plan.sampler.consistent and name != "uncertainty":
        values = cast_to(_consistent(plan, volume, tiles, name, box), volume.array.dtype)
        return with_kept(plan, volume, values, box)
    sums = leave_plain(plan, volume, _sums(plan, tiles, plan.quantities.index(name), box), name, box)
    scaling = _scaling(plan, box)
    if name == "uncertainty":
        sums *= (scaling.span / 2).astype(np.float32)
        return _real_uncertainty(plan, without_uncertainty(plan, volume, sums, box), box)
    # slice by slice, so that no second float copy of the box is held
    images = (from_unit(image, scaling[z]) for z, image in enumerate(sums))
    values = np.stack([cast_to(image, volume.array.dtype) for image in images])
    return with_kept(plan, volume, values, box)


def _scaling(plan: Plan, box: Box) -> Scaling:
    """Return the scaling of the output slices of a box."""
    return plan.intensity.at(range(box[0].start, box[0].stop))


def _sums(plan: Plan, tiles: Array, quantity: int, box: Box) -> NDArray[np.float32]:
    """Return a box (z, y, x) of a quantity, summed over the blocks that overlap it."""
    grid = plan.grid
    begin = (box[0].start, box[1].start, box[2].start)
    end = (box[0].stop, box[1].stop, box[2].stop)
    sums = np.zeros([e - b for b, e in zip(begin, end, strict=True)], np.float32)
    for block in grid.overlapping(begin, end):
        if grid.idle(block):
            continue
        low = [max(a, b) for a, b in zip(begin, block.begin, strict=True)]
        high = [min(a, b) for a, b in zip(end, block.end, strict=True)]
        corner = [place.start for place in tiles.box((0, *block.index))[1:]]
        there = tuple(
            slice(lo - b + c, hi - b + c) for lo, hi, b, c in zip(low, high, block.begin, corner, strict=True)
        )
        here = tuple(slice(lo - b, hi - b) for lo, hi, b in zip(low, high, begin, strict=True))
        sums[here] += tiles[(slice(quantity, quantity + 1), *there)][0]
    return sums


def _consistent(plan: Plan, volume: Volume, tiles: Array, name: str, box: Box) -> NDArray[np.float32]:
    """Return a box of a quantity that averages to the real slices, float32 in the input's intensities.

    The difference to a real slice is added to the output slices that it integrates over, in proportion to its
    weights there, which is the smallest change in the least-squares sense. Missing slices are not matched.
    """
    zs = plan.grid.z
    assert isinstance(zs, SliceGrid)
    quantity = plan.quantities.index(name)
    near = range(max(int(box[0].start / zs.factor) - 1, 0), min(int(box[0].stop / zs.factor) + 1, zs.slices))
    wanted = [z for z in near if z not in zs.missing and _meets(zs.integrated(z), box[0])]
    windows = [zs.integrated(z) for z in wanted]
    begin = min([box[0].start, *(first for first, _ in windows)])
    end = max([box[0].stop, *(first + len(weights) for first, weights in windows)])
    whole = (slice(begin, end), *box[1:])
    values = leave_plain(plan, volume, _sums(plan, tiles, quantity, whole), name, whole)
    scaling = _scaling(plan, whole)
    for z, image in enumerate(values):
        values[z] = from_unit(image, scaling[z])
    lacking = np.zeros_like(values)
    for z, (first, weights) in zip(wanted, windows, strict=True):
        there = slice(first - begin, first - begin + len(weights))
        real = volume.array[slice(z, z + 1), box[1], box[2]][0].astype(np.float32)
        residual = real - np.tensordot(weights.astype(np.float32), values[there], 1)
        lacking[there] += (weights / (weights @ weights)).astype(np.float32)[:, None, None] * residual
    return (values + lacking)[box[0].start - begin : box[0].stop - begin]


def _meets(window: tuple[int, NDArray[np.float64]], zs: slice) -> bool:
    return window[0] < zs.stop and zs.start < window[0] + len(window[1])


def _real_uncertainty(plan: Plan, values: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
    """Insert the uncertainty of the real slices into a box, if a model restored these."""
    known = plan.input / "uncertainty"
    if not known.exists():
        return values
    uncertainty = open_volume(known).array
    for z in range(box[0].start, box[0].stop):
        real = plan.grid.z.real(z)
        if real is not None:
            values[z - box[0].start] = uncertainty[slice(real, real + 1), box[1], box[2]][0]
    return values


def pyramid(path: Path) -> None:
    """Add the coarser levels to the restored volume, and finish it.

    Parameters
    ----------
    path : Path
        ``plan.json``; all shards of level 0 must be written.

    Raises
    ------
    StoreError
        If a shard is missing or damaged.
    """
    plan = read_plan(path)
    voxel_size = restored_voxel_size(plan)
    images, words = [], {"metadata": {"description": told_origin(plan)}}
    for left in (*plan.restored.glob(".zarr.json.*"), *plan.restored.glob("*/.zarr.json.*")):
        left.unlink()  # left by a pyramid that was killed while writing its metadata
    for name in plan.outputs:
        array = open_array_of(plan, plan.restored / name / "0")
        try:
            array.require_whole()
            array.tidy()
            scales = build_pyramid(plan.restored / name, voxel_size, plan.hash)
        except DamagedError as error:
            plan.forget("stitch")
            raise StoreError(
                f"{error.chunk}: this shard is {error.what}; start again; only this shard is recomputed"
            ) from None
        levels = [str(i) for i in range(len(scales))]
        own = multiscale(name, voxel_size, levels, scales) | words
        ome = {"version": "0.5", "multiscales": [own]}
        write_group(plan.restored / name, {"ome": ome, "emdiffuse": plan.facts.as_json()})
        images.append(multiscale(name, voxel_size, [f"{name}/{level}" for level in levels], scales) | words)
        logger.info("%s: %d resolution levels", name, len(scales))
    facts = plan.facts
    if "uncertainty" in plan.outputs:
        facts = facts.model_copy(update={"reliability": reliability(plan)})
    facts = facts.model_copy(update={"empty": write_layer(plan, open_input(plan), voxel_size)})
    ome = {"version": "0.5", "multiscales": images}
    write_group(plan.restored, {"ome": ome, "emdiffuse": facts.as_json()})


def told_origin(plan: Plan) -> str:
    """Return a sentence, for readers in other programs, that the volume was computed, not measured."""
    facts = plan.facts
    return (
        f"restored from the dataset '{facts.dataset}' by emdiffuse {facts.version} with the model "
        f"'{facts.model}' ({facts.task}, {facts.estimator}, weights SHA-256 {facts.weights}); "
        "computed, not measured"
    )


def reliability(plan: Plan) -> Reliability:
    """Score every generated slice by its uncertainty, and count the reliable ones.

    Returns
    -------
    Reliability
        ``scores``: the 99th percentile of the uncertainty of every generated slice (or image), as a fraction
        of its intensity range, to 1/1000; ``threshold``: the largest score of a reliable one; ``slices``: the
        numbers of the slices; ``reliable``: how many are reliable.
    """
    array, zs = Array(plan.restored / "uncertainty" / "0"), plan.grid.z
    generated = [z for gap in range(zs.gaps) for z in zs.generated(gap)]
    counts = np.zeros((array.shape[0], 1000), np.int64)
    for box in array.boxes():
        shares = array[box] / _scaling(plan, box).span.astype(np.float32)
        bins = np.minimum(1000 * shares, 999).astype(np.int64)
        for z, plane in enumerate(bins, box[0].start):
            counts[z] += np.bincount(plane.ravel(), minlength=1000)
    shares = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
    scores = [float((shares[z] < SCORE_PERCENTILE / 100).sum() + 1) / 1000 for z in generated]
    good = sum(score <= plan.reliable for score in scores)
    return Reliability(slices=tuple(generated), scores=tuple(scores), threshold=plan.reliable, reliable=good)
