"""The patch store: stacks of slices cut from volumes, from which a model is trained.

Conventions
-----------
* A patch is a gap: `condition` holds the real slices at `tasks.CONDITION_OFFSETS`, `target` the slices inside
  the gap. With factor R it is cut from 3 R + 1 neighbouring slices of an isotropic volume along any of its
  axes, taken as depth.
* Values are float16 in [-1, 1] by the robust range of their dataset (`acquisition.to_unit`).
* The far end of every volume in z is kept for validation, one gap away from what is trained on. Validation
  patches do not overlap training patches; both are cut on a regular grid.
* A patch whose standard deviation is below `minimum_contrast` is blank and is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdiffuse.acquisition import to_unit
from emdiffuse.atomic import replaced
from emdiffuse.config import Model, Patches
from emdiffuse.errors import DataError
from emdiffuse.progress import logger, progress
from emdiffuse.settings import settings_hash
from emdiffuse.tasks import CONDITION_OFFSETS
from emdiffuse.volume import Array, Volume, create_array, open_volume, read_metadata, write_group

PATCHES_PER_SHARD = 64
TRAINING, VALIDATION = 0, 1
ORIGIN_COLUMNS = ("dataset", "axis", "z", "y", "x", "split")


class Origin(NamedTuple):
    """Where a patch was cut: number of its dataset, axis taken as depth, first voxel (z, y, x), split."""

    dataset: int
    axis: int
    z: int
    y: int
    x: int
    split: int


def cut_patches(volumes: list[Path], model: Model, out: Path) -> None:
    """Cut the patches of a model from registered isotropic volumes into a store.

    Parameters
    ----------
    volumes : list of Path
        Registered OME-Zarr volumes, in the order of ``model.datasets``.
    model : Model
        Its factor and its patch settings.
    out : Path
        The store: arrays ``condition`` (N, 4, H, W) and ``target`` (N, R - 1, H, W), float16 in [-1, 1], and
        ``origin`` (N, 6), int64, with the columns `ORIGIN_COLUMNS`.

    Raises
    ------
    DataError
        If a volume is not isotropic, or too small to hold a patch for training and one for validation.
    """
    opened = [open_volume(path) for path in volumes]
    for volume in opened:
        _require_isotropic(volume)
    origins = [o for i, volume in enumerate(opened) for o in _origins(i, volume, model)]
    chosen = _draw(origins, opened, model)
    size, factor = model.patches.size, model.factor
    logger.info("%d patches of %d x %d pixels are cut, of %d places", len(chosen), size, size, len(origins))
    with replaced(out) as partial:
        shapes = {"condition": len(CONDITION_OFFSETS), "target": factor - 1}
        arrays = {
            name: create_array(
                partial / name,
                (len(chosen), channels, size, size),
                np.float16,
                chunk=(1, channels, size, size),
                shard=(PATCHES_PER_SHARD, channels, size, size),
            )
            for name, channels in shapes.items()
        }
        starts = range(0, len(chosen), PATCHES_PER_SHARD)
        for start in progress(starts, len(starts), "patches", "shard"):
            part = chosen[start : start + PATCHES_PER_SHARD]
            stacks = np.stack([cut_stack(opened[o.dataset], o, factor, size) for o in part])
            box = slice(start, start + len(part))
            full = tuple(slice(None) for _ in range(3))
            arrays["condition"][(box, *full)] = stacks[:, ::factor].astype(np.float16)
            arrays["target"][(box, *full)] = stacks[:, factor + 1 : 2 * factor].astype(np.float16)
        table = create_array(
            partial / "origin", (len(chosen), len(ORIGIN_COLUMNS)), np.int64, chunk=(len(chosen), 6)
        )
        table[:, :] = np.array(chosen, np.int64)
        facts = {
            "stage": "patches",
            "factor": factor,
            "datasets": list(model.datasets),
            "columns": list(ORIGIN_COLUMNS),
            "sources": [source for volume in opened for source in volume.facts.get("sources", [])],
            "residual_scale": _residual_scale(arrays, table),
            "hash": settings_hash(model.patches, factor, [v.facts.get("sources") for v in opened]),
        }
        write_group(partial, {"emdiffuse": facts})


def _require_isotropic(volume: Volume) -> None:
    z, y, x = volume.voxel_size
    if max(z, y, x) > 1.05 * min(z, y, x):
        size = f"{z:g} x {y:g} x {x:g} nm"
        raise DataError(
            f"{volume.path}: vemdiffuse-i learns from isotropic volumes, but this voxel is {size}"
        )


def _origins(number: int, volume: Volume, model: Model) -> Iterator[Origin]:
    """Yield the places of all patches of a volume: regular grids in the region of each split."""
    depth, size = 3 * model.factor + 1, model.patches.size
    nz, ny, nx = volume.array.shape
    kept = max(round(nz * model.patches.validation), depth)
    regions = {TRAINING: (0, nz - kept - model.factor), VALIDATION: (nz - kept, nz)}
    for split, (begin, end) in regions.items():
        found = False
        for axis in range(3) if split == TRAINING else (0,):
            extent = [depth if i == axis else size for i in range(3)]
            lateral = max(round(size * (1 - model.patches.overlap)), 1) if split == TRAINING else size
            steps = [model.factor if i == axis else lateral for i in range(3)]
            lows, highs = (begin, 0, 0), (end, ny, nx)
            starts = [
                range(lo, hi - e + 1, s) for lo, hi, e, s in zip(lows, highs, extent, steps, strict=True)
            ]
            for z, y, x in itertools.product(*starts):
                found = True
                yield Origin(number, axis, z, y, x, split)
        if not found:
            raise DataError(
                f"{volume.path}: {nz} x {ny} x {nx} voxels are too few for patches of {depth} slices of "
                f"{size} x {size} pixels in both training and validation; use a larger volume, or a smaller "
                "`patches.size` or `factor`"
            )


def _draw(origins: list[Origin], volumes: list[Volume], model: Model) -> list[Origin]:
    """Leave out blank patches, and draw at most `limit` of the rest, evenly over all places."""
    settings: Patches = model.patches
    order = np.random.default_rng(settings.seed).permutation(len(origins))
    kept: list[int] = []
    blank = 0
    for i in order:
        o = origins[i]
        if cut_stack(volumes[o.dataset], o, model.factor, settings.size).std() < settings.minimum_contrast:
            blank += 1
            continue
        kept.append(int(i))
        if len(kept) == settings.limit:
            break
    if blank:
        logger.info("%d blank patches are left out", blank)
    chosen = [origins[i] for i in sorted(kept)]
    for split, name in ((TRAINING, "training"), (VALIDATION, "validation")):
        if not any(o.split == split for o in chosen):
            paths = ", ".join(str(volume.path) for volume in volumes)
            raise DataError(f"{paths}: no patch is left for {name}; lower `patches.minimum_contrast`")
    return chosen


def cut_stack(volume: Volume, origin: Origin, factor: int, size: int) -> NDArray[np.float32]:
    """Return the 3 R + 1 slices of a patch, (depth, H, W), float32 in [-1, 1], its axis taken as depth."""
    extent = [3 * factor + 1 if i == origin.axis else size for i in range(3)]
    start = (origin.z, origin.y, origin.x)
    values = volume.array[tuple(slice(s, s + e) for s, e in zip(start, extent, strict=True))]
    return to_unit(np.moveaxis(values, origin.axis, 0), volume.facts["intensity"])


def _residual_scale(arrays: dict[str, Array], table: Array) -> float:
    """Return the standard deviation of target less linear interpolation, over about 512 training patches."""
    rows = np.flatnonzero(table[:, :][:, ORIGIN_COLUMNS.index("split")] == TRAINING)
    squares = []
    for i in rows[:: max(len(rows) // 512, 1)]:
        box = (slice(i, i + 1), slice(None), slice(None), slice(None))
        condition, target = (arrays[name][box][0].astype(np.float32) for name in ("condition", "target"))
        t = (np.arange(1, len(target) + 1, dtype=np.float32) / (len(target) + 1))[:, None, None]
        squares.append(float(np.mean((target - condition[1] - t * (condition[2] - condition[1])) ** 2)))
    return float(np.sqrt(np.mean(squares)))


class PatchStore:
    """A finished patch store, opened for reading.

    Attributes
    ----------
    condition, target : Array
        (N, 4, H, W) and (N, R - 1, H, W), float16 in [-1, 1].
    training, validation : ndarray
        Row numbers of each split.
    facts : dict
        What `cut_patches` noted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = read_metadata(path, "group")["attributes"]["emdiffuse"]
        self.condition, self.target = Array(path / "condition"), Array(path / "target")
        split = Array(path / "origin")[:, :][:, ORIGIN_COLUMNS.index("split")]
        self.training, self.validation = (
            np.flatnonzero(split == TRAINING),
            np.flatnonzero(split == VALIDATION),
        )

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the condition and target of rows, (N, C, H, W), float32."""
        full = (slice(None),) * 3
        parts = [[array[(slice(i, i + 1), *full)] for i in rows] for array in (self.condition, self.target)]
        condition, target = (np.concatenate(part).astype(np.float32) for part in parts)
        return condition, target
