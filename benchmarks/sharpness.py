"""A sharp restoration instead of the mean: its cost in PSNR, and its effect on segmented membranes.

    python benchmarks/sharpness.py raw/held_out [--model vemdiffuse] [--factor 6] [--stlpips]

Every R-th slice of the held-out medulla is kept; the slices between are measured, xy planes. Compromises
between the posterior mean and a sample:

- a weighted mean of both;
- a flow that starts from the mean with added noise: `sampler.sharpen` (`NativeProcess.sharpen`);
- linear interpolation, for comparison.

PSNR and SSIM; the power of the gradient over the truth's; intersection over union of the segmented membranes
(`evaluation.metrics.structures`), and the F-score of their outlines within 2 pixels; with `--stlpips` also
ST-LPIPS (arXiv 2207.13686), a perceptual distance learned from photographs, with its authors' package, which
includes its weights (BSD): `pip install --no-deps stlpips-pytorch torchsummary`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion

from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.config import Sampler
from emdiffuse.config.shipped import model_folder
from emdiffuse.evaluation.baselines import interpolate
from emdiffuse.evaluation.metrics import psnr, ssim
from emdiffuse.evaluation.metrics.structures import overlap, segment
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.processes import Batch, NativeProcess
from emdiffuse.restoration.slice_grid import SliceGrid, slice_grid
from emdiffuse.restoration.tiles import read_condition
from emdiffuse.stores.intensity import from_unit
from emdiffuse.stores.volume import Volume, open_volume

STEPS = 8
VOXEL = 10.0
TOLERANCE = 2
Images = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--model", default="vemdiffuse")
    parser.add_argument("--factor", type=int, default=6)
    parser.add_argument("--dimensions", type=int, nargs=3, default=[61, 128, 128])
    parser.add_argument("--stlpips", action="store_true", help="Measure ST-LPIPS too; less is better.")
    options = parser.parse_args()
    distance = stlpips() if options.stlpips else None
    model = RestorationModel.load(model_folder(options.model))
    truth = tifffile.imread(options.held_out / "medulla_far.tif")
    truth = truth[tuple(slice(0, n) for n in options.dimensions)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tifffile.imwrite(folder / "a.tif", truth, photometric="minisblack")
        acquire(str(folder / "a.tif"), (VOXEL,) * 3, folder / "a.ome.zarr", "a")
        keep_every(folder / "a.ome.zarr", options.factor, folder / "thin.ome.zarr", "thin", 0.0)
        thin = open_volume(folder / "thin.ome.zarr")
        grid = slice_grid(thin)
        made = [z for gap in range(grid.gaps) for z in grid.generated(gap)]
        linear = interpolate(thin.array[:, :, :], grid, range(grid.length), "linear")[made]
        ways = {"linear": linear, **restored(model, thin, grid)}
    columns = ["way", "PSNR", "SSIM", "gradient power", "membranes, IoU", "outlines, F"]
    columns += ["ST-LPIPS"] if distance else []
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|")
    for way, images in ways.items():
        pair = np.clip(images, 0, 255).astype(np.float32), truth[made].astype(np.float32)
        found = [*scores(*pair), *([distance(*pair)] if distance else [])]
        print(f"| {way} | " + " | ".join(f"{v:.2f}" if v > 2 else f"{v:.3f}" for v in found) + " |")


@torch.inference_mode()
def restored(model: RestorationModel, thin: Volume, grid: SliceGrid) -> dict[str, Images]:
    """Return the restored slices of all gaps, by each method."""
    assert isinstance(model.process, NativeProcess)
    parts: dict[str, list[Images]] = {}
    sides = (thin.array.shape[1], thin.array.shape[2])
    for gap in range(grid.gaps):
        around = grid.around(gap)
        known = torch.from_numpy(read_condition(thin, around, (0, 0), sides))[None]
        places = torch.from_numpy(grid.positions(gap))
        batch = Batch.of_gaps(known, places, float(grid.width(gap)))
        before, after = (thin.intensity.at([z])[0] for z in around[1:3])
        t = places.numpy()[:, None, None]
        for way, values in _ways(model, batch, gap).items():
            image = values[0].numpy()
            made = (1 - t) * from_unit(image, before) + t * from_unit(image, after)
            parts.setdefault(way, []).append(made.astype(np.float32))
    return {way: np.concatenate(images) for way, images in parts.items()}


def _ways(model: RestorationModel, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
    """Return one gap, (1, D, H, W), by each method, all from the same noise."""
    process, network = model.process, model.network
    assert isinstance(process, NativeProcess)
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(seed))
    mean = process.sample(network, batch, Sampler(name="unipc", steps=1), lambda step: noise)

    def flow_from(level: float) -> torch.Tensor:
        sampler = Sampler(name="unipc", steps=STEPS, sharpen=level)
        return process.sharpen(network, batch, sampler, mean, lambda step: noise)

    sample = flow_from(1.0)
    weighted = {f"mean + {t:g} (sample - mean)": mean + t * (sample - mean) for t in (0.25, 0.5, 0.75)}
    flows = {f"sharpen {t:g}": flow_from(t) for t in (0.3, 0.5, 0.7)}
    return {"mean": mean, **weighted, **flows, "sample": sample}


def scores(images: Images, truth: Images) -> list[float]:
    """Return the metrics of planes (Z, Y, X), as the table's columns."""
    pairs = list(zip(images, truth, strict=True))
    both, either, hits = 0, 0, np.zeros(4)
    for image, wanted in pairs:
        ours, theirs = (segment(plane, VOXEL)["membranes"] for plane in (image, wanted))
        common, joint = overlap(ours, theirs)
        both, either = both + common, either + joint
        a, b = outline(ours), outline(theirs)
        near_a, near_b = (binary_dilation(edge, iterations=TOLERANCE) for edge in (a, b))
        hits += [(a & near_b).sum(), a.sum(), (b & near_a).sum(), b.sum()]
    precision, recall = hits[0] / hits[1], hits[2] / hits[3]
    means: list[float] = [float(np.mean([one(a, b, 255) for a, b in pairs])) for one in (psnr, ssim)]
    return [
        *means,
        power(images) / power(truth),
        both / either,
        2 * precision * recall / (precision + recall),
    ]


def stlpips() -> Callable[[Images, Images], float]:
    """Return the mean ST-LPIPS of planes (Z, Y, X) of grey levels, by AlexNet."""
    from stlpips_pytorch.stlpips import LPIPS  # type: ignore[import-not-found]

    network = LPIPS(net="alex", variant="shift_tolerant", verbose=False)

    def colours(plane: Images) -> torch.Tensor:
        return torch.from_numpy(plane / 127.5 - 1).expand(1, 3, -1, -1)

    @torch.inference_mode()
    def distance(images: Images, truth: Images) -> float:
        pairs = zip(images, truth, strict=True)
        return float(np.mean([network(colours(a), colours(b)).item() for a, b in pairs]))

    return distance


def outline(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the boundary pixels of a mask."""
    return mask & ~binary_erosion(mask)


def power(images: Images) -> float:
    """Return the mean squared gradient in the plane."""
    return float(sum(np.square(np.diff(images, axis=axis)).mean() for axis in (1, 2)))


if __name__ == "__main__":
    main()
