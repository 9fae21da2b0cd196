"""What adds up over the blocks of a volume: the sums that every measure of every plane is made of.

Conventions
-----------
* See `emdiffuse.evaluation.evaluate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation import metrics
from emdiffuse.evaluation.comparison import Comparison, Grid, read
from emdiffuse.evaluation.structures import STRUCTURES, overlap, segment

if TYPE_CHECKING:
    from emdiffuse.evaluation.metrics.perceptual import Lpips

PLANES = {"xy": 0, "xz": 1, "yz": 2}
"""Each orientation, and the axis that its planes are perpendicular to."""
STEPS = ("step_ratio", "real_step_ratio")
"""Continuity along z: steps between two generated slices, and between a generated one and a real one."""
TILE, DEPTH = 256, 32
"""Lateral side and depth of a block, in voxels, at most; a block holds one gap at least."""
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """A box of voxels, with the margin that SSIM's windows reach into.

    Attributes
    ----------
    box : tuple of slice
        With its margin, in the volume.
    counted : tuple of ndarray
        The voxels along each axis that it counts, from the corner of its box; along z the generated slices.
    windows : tuple of ndarray
        Those of them whose window lies within the volume; along z all.
    own : tuple of slice
        All voxels but the margin, real slices too, from the corner of its box.
    generated : ndarray
        Which slices of its box, margin and all, are generated.
    """

    box: tuple[slice, slice, slice]
    counted: tuple[NDArray[np.int64], ...]
    windows: tuple[NDArray[np.int64], ...]
    own: tuple[slice, slice, slice]
    generated: NDArray[np.bool_]


def blocks_of(grid: Grid, shape: tuple[int, ...]) -> Iterator[Block]:
    """Cut the evaluated volume into blocks: some gaps, and a tile along y and x."""
    generated = np.array([z for gap in range(grid.gaps) for z in grid.generated(gap)])
    gaps = max(int(DEPTH / grid.factor), 1)
    cuts = [[grid.first(gap) for gap in range(0, grid.gaps, gaps)] + [grid.length]]
    for length in shape[1:]:
        parts = ceil(length / TILE)
        cuts.append([length * part // parts for part in range(parts + 1)])
    for spans in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
        box, counted, windows, own = [], [], [], []
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
            own.append(slice(begin - start, end - start))
        made = np.isin(np.arange(box[0].start, box[0].stop), generated)
        yield Block((box[0], box[1], box[2]), tuple(counted), tuple(windows), (own[0], own[1], own[2]), made)


class Reference:
    """A block of the truth, with what every method is compared to."""

    def __init__(self, found: Comparison, block: Block, lpips: Lpips | None) -> None:
        self.data_range, self.low, self.lpips = found.data_range, found.low, lpips
        self.voxel = found.restored.voxel_size[2]
        values = self.values = read(found.truth, block.box)
        planes = self.planes = values[np.ix_(*block.counted)]
        self.features = [metrics.fsim_features(plane, self.data_range) for plane in planes]
        self.spectra = [metrics.spectrum(plane) for plane in planes]
        self.segments = [segment(plane, self.voxel) for plane in planes]
        self.seen = [lpips.features(plane, self.low, self.data_range) for plane in planes] if lpips else []
        self.whole = metrics.spectrum(values[block.own])
        self.steps = _steps(values, block)
        self.energy = (planes.astype(np.float64) ** 2).sum(axis=(1, 2))


class Sums:
    """What adds up over the blocks of every plane, for one method."""

    def __init__(self, shape: tuple[int, ...], planes: dict[str, int]) -> None:
        self.planes = planes
        self.error, self.voxels, self.similarity, self.windows = (
            {name: np.zeros(shape[axis]) for name, axis in planes.items()} for _ in range(4)
        )
        self.energy, self.power, self.true_power, self.feature, self.weight, self.scales = np.zeros(
            (6, shape[0])
        )
        self.perceived: Vector | None = None
        self.moments = np.zeros((5, shape[0]))
        self.overlap = {name: np.zeros((2, shape[0])) for name in STRUCTURES}
        self.rings = np.zeros((shape[0], 5, metrics.RINGS))
        self.steps = {name: np.zeros((2, shape[0])) for name in STEPS}
        self.shells: list[Vector] = []

    def add(self, image: NDArray[Any], truth: Reference, block: Block) -> None:
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
            self.scales[z] += (
                metrics.ms_ssim(planes[row], truth.planes[row], truth.data_range) * planes[row].size
            )
            if truth.lpips is not None:
                seen = truth.lpips.features(planes[row], truth.low, truth.data_range)
                distance = truth.lpips.distance(seen, truth.seen[row])
                self.perceived = np.zeros(len(self.scales)) if self.perceived is None else self.perceived
                self.perceived[z] += distance * planes[row].size
            for name, mask in segment(planes[row], truth.voxel).items():
                self.overlap[name][:, z] += overlap(mask, truth.segments[row][name])
            a, b = (plane.astype(np.float64).ravel() for plane in (planes[row], truth.planes[row]))
            self.moments[:, z] += a.sum(), b.sum(), a @ a, b @ b, a @ b
            ours, theirs, shape = metrics.spectrum(planes[row]), truth.spectra[row], planes[row].shape
            self.rings[z] += metrics.ring_sums(ours, theirs, shape)
            self.power[z] += metrics.high_frequency_power(ours, shape) * planes[row].size
            self.true_power[z] += metrics.high_frequency_power(theirs, shape) * planes[row].size
            self.energy[z] += truth.energy[row]
        if len(self.planes) > 1:
            self._add_steps(_steps(image, block), truth.steps, block)
            whole = image[block.own]
            self.shells.append(metrics.ring_sums(metrics.spectrum(whole), truth.whole, whole.shape))

    def _add_steps(self, ours: Vector, theirs: Vector, block: Block) -> None:
        """Add the steps from generated slices to those beside them; of two generated the later has it."""
        for row in block.counted[0]:
            for other in (row - 1, row + 1):
                if other == len(block.generated) or (other > row and block.generated[other]):
                    continue
                step = min(row, other)
                name = "step_ratio" if block.generated[other] else "real_step_ratio"
                self.steps[name][:, row + block.box[0].start] += ours[step], theirs[step]

    def scores(self, data_range: float, voxel: float) -> dict[str, dict[str, Vector]]:
        """Return every measure of every plane, by orientation; not a number where there is none."""
        scores: dict[str, dict[str, Vector]] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for name in self.planes:
                error = self.error[name] / self.voxels[name]
                ssim = self.similarity[name] / self.windows[name]
                scores[name] = {"psnr": 10 * np.log10(data_range**2 / error), "ssim": ssim}
            scores["xy"] |= {
                "ms_ssim": self.scales / self.voxels["xy"],
                "fsim": self.feature / self.weight,
                "frc_resolution": voxel * _each(metrics.correlation_resolution, self.rings),
                "decorrelation_resolution": voxel * _each(metrics.decorrelation_resolution, self.rings),
                "nrmse": np.sqrt(self.error["xy"] / self.energy),
                "high_frequency_ratio": self.power / self.true_power,
                **{f"{name}_iou": common / joint for name, (common, joint) in self.overlap.items()},
            }
            if self.perceived is not None:
                scores["xy"]["lpips"] = self.perceived / self.voxels["xy"]
            if len(self.planes) == 1:
                scores["xy"]["psnr_fitted"] = 10 * np.log10(data_range**2 / self._fitted())
            else:
                for name, (ours, theirs) in self.steps.items():
                    scores["xy"][name] = np.where(theirs > 0, ours / theirs, np.nan)
        if self.shells:
            fsc = _each(metrics.correlation_resolution, np.array(self.shells))
            scores["xyz"] = {"fsc_resolution": voxel * fsc}
        return scores

    def _fitted(self) -> Vector:
        """Return the mean squared error of every image that the best linear fit to its truth leaves."""
        mean, true_mean, *products = self.moments / self.voxels["xy"]
        variance, true_variance = products[0] - mean**2, products[1] - true_mean**2
        covariance = products[2] - mean * true_mean
        explained = np.divide(covariance**2, variance, out=np.zeros_like(mean), where=variance > 0)
        return np.maximum(true_variance - explained, 0)


def _steps(values: NDArray[Any], block: Block) -> Vector:
    """Sum the absolute differences of each slice of a block and the next, over the voxels that it counts."""
    own = values[:, block.counted[1][:, None], block.counted[2]].astype(np.float64)
    total: Vector = np.abs(np.diff(own, axis=0)).sum(axis=(1, 2))
    return total


def _each(resolution: Callable[[Vector], float], sums: Vector) -> Vector:
    """Return the resolution of every plane or block."""
    return np.array([resolution(own) for own in sums])
