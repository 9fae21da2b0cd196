"""Measures restored volumes and images against the truth, beside classical methods, on the same voxels.

Conventions
-----------
* Axes are (z, y, x). Output slice 0 is real slice 0 is truth slice 0; all volumes share the lateral grid.
* Only *generated* slices count: never a real one, which every method passes through. In xz and yz planes the
  structural similarity is mapped on whole planes, and its values on generated rows are counted.
* Images (emdiffuse-n, emdiffuse-r) are measured whole, each by itself: only xy planes count.
* A measure is taken a plane at a time, and averaged over planes. Planes that equal the truth have no finite
  PSNR: they are counted as ``identical`` and left out of its mean, which is null when there is no other
  plane.
* Intervals are 95 % bootstrap intervals of that mean. Neighbouring planes resemble each other, so what is
  drawn again is the gap or image (xy) or a run of `RUN` planes (xz, yz), the same draws for every method.
* Work goes by blocks with the margin that the windows need, so that memory depends on the block size alone,
  and the numbers do not depend on blocks; FSIM and the spectra alone are of tiles of at most `TILE` pixels a
  side.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse import metrics
from emdiffuse.atomic import write_atomically
from emdiffuse.baselines import IMAGE_KINDS, KINDS, image_baseline, interpolate
from emdiffuse.config import anisotropy_factor
from emdiffuse.errors import DataError
from emdiffuse.geometry import ImageStack, SliceGrid
from emdiffuse.progress import progress
from emdiffuse.tasks import TASKS
from emdiffuse.volume import Volume, open_volume

PLANES = {"xy": 0, "xz": 1, "yz": 2}
"""Each orientation, and the axis that its planes are perpendicular to."""
MEASURES = {
    "psnr": "dB",
    "ssim": "no unit, at most 1",
    "fsim": "no unit, at most 1",
    "nrmse": "share of the truth's root mean square",
    "high_frequency_ratio": "share of the truth's spectral power above a quarter of the sampling frequency",
}
TILE, DEPTH = 256, 32
"""Lateral side and depth of a block, in voxels, at most; a block holds one gap at least."""
REFERENCES = {"emdiffuse-n": "input", "emdiffuse-r": "cubic"}
"""What a restoration is compared with by name; gaps with linear interpolation."""
RUN = 16
RESAMPLES = 2000
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Block:
    """A box of voxels, with the margin that SSIM's windows reach into.

    Attributes
    ----------
    box : tuple of slice
        With its margin, in the volume.
    counted : tuple of ndarray
        The voxels along each axis that it counts, from the corner of its box; along z the generated slices.
    windows : tuple of ndarray
        Those of them whose window lies within the volume; along z all.
    """

    box: tuple[slice, slice, slice]
    counted: tuple[NDArray[np.int64], ...]
    windows: tuple[NDArray[np.int64], ...]


Grid = SliceGrid | ImageStack


def _blocks(grid: Grid, shape: tuple[int, ...]) -> Iterator[_Block]:
    """Cut the evaluated volume into blocks: some gaps, and a tile along y and x."""
    generated = np.array([z for gap in range(grid.gaps) for z in grid.generated(gap)])
    gaps = max(int(DEPTH / grid.factor), 1)
    cuts = [[grid.first(gap) for gap in range(0, grid.gaps, gaps)] + [grid.length]]
    for length in shape[1:]:
        parts = ceil(length / TILE)
        cuts.append([length * part // parts for part in range(parts + 1)])
    for spans in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
        box, counted, windows = [], [], []
        for axis, ((begin, end), length) in enumerate(zip(spans, shape, strict=True)):
            start = max(begin - metrics.SSIM_RADIUS, 0)
            box.append(slice(start, min(end + metrics.SSIM_RADIUS, length)))
            at, inner = np.arange(begin, end), metrics.inside(length)
            if axis == 0:
                at = inside = generated[(generated >= begin) & (generated < end)]
            else:
                inside = at[(at >= inner.start) & (at < inner.stop)]
            counted.append(at - start)
            windows.append(inside - start)
        yield _Block((box[0], box[1], box[2]), tuple(counted), tuple(windows))


class _Truth:
    """A block of the truth, with what every method is compared to."""

    def __init__(self, values: NDArray[Any], block: _Block, data_range: float) -> None:
        self.values, self.data_range = values, data_range
        planes = values[np.ix_(*block.counted)]
        self.features = [metrics.fsim_features(plane, data_range) for plane in planes]
        self.power = [metrics.high_frequency_power(plane) * plane.size for plane in planes]
        self.energy = (planes.astype(np.float64) ** 2).sum(axis=(1, 2))


class _Sums:
    """What adds up over the blocks of every plane, for one method."""

    def __init__(self, shape: tuple[int, ...], planes: dict[str, int]) -> None:
        self.planes = planes
        self.error, self.voxels, self.similarity, self.windows = (
            {name: np.zeros(shape[axis]) for name, axis in planes.items()} for _ in range(4)
        )
        self.energy, self.power, self.true_power, self.feature, self.weight = np.zeros((5, shape[0]))

    def add(self, image: NDArray[Any], truth: _Truth, block: _Block) -> None:
        """Add what a block, given with its margin, holds of each plane."""
        inner = np.ix_(*block.counted)
        planes = image[inner]
        error = (planes.astype(np.float64) - truth.values[inner]) ** 2
        for name, axis in self.planes.items():
            here = block.counted[axis] + block.box[axis].start
            first, second = (other for other in range(3) if other != axis)
            self.error[name][here] += error.sum(axis=(first, second))
            self.voxels[name][here] += error.shape[first] * error.shape[second]
            ours, theirs = (v.take(block.counted[axis], axis) for v in (image, truth.values))
            near = metrics.ssim_map(ours, theirs, truth.data_range, axes=(first, second))
            near = near.take(block.windows[first], first).take(block.windows[second], second)
            self.similarity[name][here] += near.sum(axis=(first, second))
            self.windows[name][here] += near.shape[first] * near.shape[second]
        for row, z in enumerate(block.counted[0] + block.box[0].start):
            features = metrics.fsim_features(planes[row], truth.data_range)
            pool = metrics.fsim_pool(features, truth.features[row])
            self.feature[z], self.weight[z] = self.feature[z] + pool[0], self.weight[z] + pool[1]
            self.power[z] += metrics.high_frequency_power(planes[row]) * planes[row].size
            self.true_power[z] += truth.power[row]
            self.energy[z] += truth.energy[row]

    def scores(self, data_range: float) -> dict[str, dict[str, Vector]]:
        """Return every measure of every plane, by orientation; not a number where there is none."""
        scores: dict[str, dict[str, Vector]] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for name in self.planes:
                error = self.error[name] / self.voxels[name]
                ssim = self.similarity[name] / self.windows[name]
                scores[name] = {"psnr": 10 * np.log10(data_range**2 / error), "ssim": ssim}
            scores["xy"] |= {
                "fsim": self.feature / self.weight,
                "nrmse": np.sqrt(self.error["xy"] / self.energy),
                "high_frequency_ratio": self.power / self.true_power,
            }
        return scores


def summary(values: Vector, groups: NDArray[np.int64]) -> dict[str, float | int | None]:
    """Return the mean of the finite values, and its 95 % bootstrap interval.

    Parameters
    ----------
    values : ndarray
        One value a plane; infinite ones are counted as ``identical``, those that are not a number left out.
    groups : ndarray
        Number of the group that each plane belongs to: groups are drawn again, not planes.

    Returns
    -------
    dict
        mean, low, high (null where there is nothing to average, the interval also with fewer than two
        groups), and identical: how many planes equal the truth, where there are any.
    """
    finite = np.isfinite(values)
    result: dict[str, float | int | None] = {"mean": None, "low": None, "high": None}
    if finite.any():
        result["mean"] = float(values[finite].mean())
        _, members = np.unique(groups[finite], return_inverse=True)
        sums, counts = np.bincount(members, values[finite]), np.bincount(members)
        if len(counts) > 1:
            draws = np.random.default_rng(0).multinomial(
                len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES
            )
            low, high = np.percentile(draws @ sums / (draws @ counts), (2.5, 97.5))
            result |= {"low": float(low), "high": float(high)}
    if np.isinf(values).any():
        result["identical"] = int(np.isinf(values).sum())
    return result


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
    sums = {method: _Sums(shape, planes) for method in (*kinds, "restored")}
    blocks = list(_blocks(grid, shape))
    for block in progress(blocks, len(blocks), "evaluate", "block"):
        if not len(block.counted[0]):
            continue
        reference = _Truth(_read(volumes["truth"], block), block, data_range)
        for method, own in sums.items():
            own.add(_method(method, volumes, grid, block), reference, block)
    scores = {method: own.scores(data_range) for method, own in sums.items()}
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
        else f"95 % bootstrap interval over gaps (xy) and runs of {RUN} planes (xz, yz)",
        **_table(scores, grid, REFERENCES.get(volumes["restored"].facts.get("task", ""), "linear")),
    }
    write_atomically(out, json.dumps(result, indent=2, allow_nan=False))
    write_atomically(out.with_suffix(".csv"), as_csv(result))
    return result


def _table(scores: dict[str, dict[str, dict[str, Vector]]], grid: Grid, reference: str) -> dict[str, Any]:
    """Summarise the scores of all planes, and compare the restored volume with the method of reference."""
    gaps = np.array([int(z / grid.factor) for z in range(grid.length)])
    groups = dict.fromkeys(("xy",), gaps)
    for name in scores[reference].keys() - {"xy"}:
        groups[name] = np.arange(len(scores[reference][name]["psnr"])) // RUN
    methods = {
        method: {
            name: {measure: summary(values, groups[name]) for measure, values in own.items()}
            for name, own in orientations.items()
        }
        for method, orientations in scores.items()
    }
    gain, beats = {}, {}
    for measure in ("psnr", "ssim"):
        ours, theirs = (scores[method]["xy"][measure] for method in ("restored", reference))
        with np.errstate(invalid="ignore"):
            gain[measure] = summary(np.where(np.isfinite(ours), ours - theirs, np.nan), gaps)
        means = [methods[method]["xy"][measure]["mean"] for method in ("restored", reference)]
        first, second = (inf if mean is None else mean for mean in means)
        beats[measure] = first > second
    return {"methods": methods, "reference": reference, "gain": gain, "beats": beats}


def as_csv(result: dict[str, Any]) -> str:
    """Return the table of an evaluation as CSV: a row for each orientation, measure and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["plane", "measure", "unit", "method", "mean", "low", "high", "identical"])
    for method, orientations in result["methods"].items():
        for name, measures in orientations.items():
            for measure, value in measures.items():
                numbers = [value["mean"], value["low"], value["high"], value.get("identical", 0)]
                writer.writerow([name, measure, MEASURES[measure], method, *numbers])
    return text.getvalue()


def _method(method: str, volumes: dict[str, Volume], grid: Grid, block: _Block) -> NDArray[Any]:
    """Return a block of the restored volume, or make it by a classical method."""
    if method == "restored":
        return _read(volumes["restored"], block)
    if isinstance(grid, ImageStack):
        scale = volumes["restored"].array.shape[1] // volumes["input"].array.shape[1]
        return image_baseline(volumes["input"].array, block.box, method, scale)
    z, *window = block.box
    kind = next(kind for kind in KINDS if kind == method)
    return interpolate(volumes["input"].array, grid.factor, range(z.start, z.stop), kind, window)


def _read(volume: Volume, block: _Block) -> NDArray[Any]:
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
