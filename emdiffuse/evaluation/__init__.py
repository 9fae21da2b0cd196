"""Measures restored volumes and images against the truth, beside classical methods, on the same voxels.

Conventions
-----------
* Axes are (z, y, x). Output slice 0 is real slice 0 is truth slice 0; all volumes share the lateral grid.
* Only *generated* slices count: never a real one, which every method passes through. In xz and yz planes the
  structural similarity is mapped on whole planes, and its values on generated rows are counted.
* Images (emdiffuse-n, emdiffuse-r) are measured whole, each by itself: only xy planes count.
* A measure is taken a plane at a time, and averaged over planes. Planes that equal the truth have no finite
  PSNR: they are counted as ``identical`` and left out of its mean, which is null when there is no other
  plane. Of images ``psnr_fitted`` is the PSNR after the scale and offset that fit each to its truth best.
* Intervals are 95 % bootstrap intervals of that mean. Neighbouring planes resemble each other, so what is
  drawn again is the gap or image (xy), a run of `RUN` planes (xz, yz) or a block (shells), the same draws for
  every method.
* Shell correlation (``xyz``) is of blocks as they stand, real slices among them: a gap alone is too thin.
* Work goes by blocks with the margin that the windows need, so that memory depends on the block size alone,
  and the numbers do not depend on blocks; FSIM, MS-SSIM and the spectra alone are of tiles of at most `TILE`
  pixels a side, and so are the baselines that the module `baselines` says it of.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.atomic import write_atomically
from emdiffuse.baselines import IMAGE_KINDS, KINDS, image_baseline, interpolate
from emdiffuse.config import anisotropy_factor
from emdiffuse.errors import DataError
from emdiffuse.evaluation.sums import PLANES, Block, Grid, Reference, Sums, blocks_of
from emdiffuse.evaluation.tables import MEASURES, RUN, as_csv, summary, table
from emdiffuse.geometry import ImageStack, SliceGrid
from emdiffuse.progress import progress
from emdiffuse.tasks import TASKS
from emdiffuse.volume import Volume, open_volume

REFERENCES = {"emdiffuse-n": "input", "emdiffuse-r": "cubic"}
"""What a restoration is compared with by name; gaps with linear interpolation."""
THREADS = 2

__all__ = ["evaluate", "summary"]


def evaluate(restored: Path, dataset: Path, truth: Path, out: Path) -> dict[str, Any]:
    """Measure a restored volume, and what classical methods make of its input, against the truth.

    Parameters
    ----------
    restored : Path
        Restored volume (z, y, x), isotropic, or a stack of restored images.
    dataset : Path
        The registered volume, or stack, that was restored.
    truth : Path
        The registered volume to compare with: same dtype and lateral shape, at least as deep.
    out : Path
        JSON file to write; a CSV file with the same table is written beside it.

    Returns
    -------
    dict
        What was written: ``methods[method][orientation][measure]`` with mean, low and high;
        ``gain`` (the paired difference in xy to the method ``reference``) and ``beats``; voxels, data_range,
        estimator and the names of the volumes.

    Raises
    ------
    DataError
        If the truth does not fit the restored volume or was among the model's training data, or a voxel is
        not a number.
    """
    volumes = {
        name: open_volume(p) for name, p in (("restored", restored), ("input", dataset), ("truth", truth))
    }
    grid = _check(**volumes)
    shape = (grid.length, *volumes["truth"].array.shape[1:])
    data_range = _data_range(volumes["truth"])
    images = isinstance(grid, ImageStack)
    kinds = IMAGE_KINDS[volumes["restored"].facts["task"]] if images else KINDS
    planes = {"xy": 0} if images else PLANES
    sums = {method: Sums(shape, planes) for method in (*kinds, "restored")}
    blocks = list(blocks_of(grid, shape))
    with ThreadPoolExecutor(THREADS) as pool:
        for block in progress(blocks, len(blocks), "evaluate", "block"):
            if not len(block.counted[0]):
                continue
            reference = Reference(_read(volumes["truth"], block), block, data_range)

            def measure(method: str, block: Block = block, reference: Reference = reference) -> None:
                sums[method].add(_method(method, volumes, grid, block), reference, block)

            list(pool.map(measure, sums))
    voxel = volumes["restored"].voxel_size[2]
    scores = {method: own.scores(data_range, voxel) for method, own in sums.items()}
    plain = scores[kinds[0]]["xy"]["frc_resolution"]
    for own in scores.values():
        own["xy"]["frc_ratio"] = own["xy"]["frc_resolution"] / plain
    result = {
        "dataset": volumes["restored"].facts.get("dataset") or _name(dataset),
        "model": volumes["restored"].facts.get("model"),
        "truth": _name(truth),
        "estimator": volumes["restored"].facts.get("estimator") or "not stated",
        "voxels": int(sums["restored"].voxels["xy"].sum()),
        "data_range": data_range,
        "units": MEASURES,
        "interval": "95 % bootstrap interval over images"
        if images
        else f"95 % bootstrap interval over gaps (xy), runs of {RUN} planes (xz, yz) and blocks (xyz)",
        **table(scores, grid, REFERENCES.get(volumes["restored"].facts.get("task", ""), "linear")),
    }
    write_atomically(out, json.dumps(result, indent=2, allow_nan=False))
    write_atomically(out.with_suffix(".csv"), as_csv(result))
    return result


def _method(method: str, volumes: dict[str, Volume], grid: Grid, block: Block) -> NDArray[Any]:
    """Return a block of the restored volume, or make it by a classical method."""
    if method == "restored":
        return _read(volumes["restored"], block)
    if isinstance(grid, ImageStack):
        scale = volumes["restored"].array.shape[1] // volumes["input"].array.shape[1]
        return image_baseline(volumes["input"].array, block.box, method, scale)
    z, *window = block.box
    kind = next(kind for kind in KINDS if kind == method)
    return interpolate(volumes["input"].array, grid.factor, range(z.start, z.stop), kind, window)


def _read(volume: Volume, block: Block) -> NDArray[Any]:
    """Read a block, and refuse voxels that are not finite."""
    values = volume.array[block.box]
    if not np.isfinite(values).all():
        raise DataError(f"{volume.path}: some voxels are not finite numbers; it cannot be evaluated")
    return values


def _check(restored: Volume, input: Volume, truth: Volume) -> Grid:
    """Return the output slices, when the three volumes fit together."""
    task = TASKS[restored.facts.get("task", "vemdiffuse-i")]
    grid: Grid = ImageStack(input.array.shape[0])
    if task.volumetric:
        grid = SliceGrid(input.array.shape[0], anisotropy_factor(input.voxel_size, str(input.path)))
    expected = (grid.length, *(n * task.scale for n in input.array.shape[1:]))
    if restored.array.shape != expected:
        raise DataError(
            f"{restored.path}: it has {_by(restored.array.shape)} voxels, but {input.path} restored has "
            f"{_by(expected)}; run the stage `restore` again"
        )
    if truth.array.shape[1:] != expected[1:]:
        raise DataError(
            f"{truth.path}: its slices have {_by(truth.array.shape[1:])} pixels, those of {input.path} "
            f"{_by(expected[1:])}; the truth must show the same field"
        )
    if truth.array.shape[0] < grid.length:
        raise DataError(
            f"{truth.path}: it has {truth.array.shape[0]} slices, but the restored volume has {grid.length}; "
            "the truth must reach as deep"
        )
    if truth.array.dtype != restored.array.dtype:
        raise DataError(
            f"{truth.path}: its voxels are {truth.array.dtype}, the restored ones {restored.array.dtype}; "
            "the truth must have the same intensities"
        )
    if not np.allclose(truth.voxel_size, restored.voxel_size, rtol=0.01):
        raise DataError(
            f"{truth.path}: its voxel is {_by(truth.voxel_size)} nm, but the restored one is "
            f"{_by(restored.voxel_size)} nm; the truth must have the same voxel size"
        )
    trained = _digests(restored.facts.get("training_sources"))
    for volume in (truth, input):
        if trained & _digests(volume.facts.get("sources")):
            raise DataError(f"{volume.path}: the model was trained on these files; take others")
    return grid


def _data_range(truth: Volume) -> float:
    """Return the range that PSNR and SSIM refer to: 255 for 8-bit data, else the truth's high less low."""
    if truth.array.dtype == np.uint8:
        return 255.0
    intensity = truth.facts.get("intensity") or {}
    try:
        data_range = float(intensity["high"]) - float(intensity["low"])
    except (KeyError, TypeError):
        raise DataError(f"{truth.path}: its range of intensities is not known; acquire it again") from None
    if not (0 < data_range < inf):
        raise DataError(f"{truth.path}: its intensities have no range ({intensity}); it cannot be a truth")
    return data_range


def _digests(sources: Any) -> set[str]:
    """Return the checksums in a list of source files, however it is nested."""
    return set(re.findall(r"\b[0-9a-f]{32,128}\b", json.dumps(sources)))


def _name(path: Path) -> str:
    return path.name.removesuffix(".ome.zarr")


def _by(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
