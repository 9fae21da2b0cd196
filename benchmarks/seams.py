"""Seams between tiles, brightness of tiles, and continuity along z, measured on restored real data.

    python benchmarks/seams.py n MODEL NOISY.tif
    python benchmarks/seams.py vem MODEL ISOTROPIC.tif --factor 6 --slices 61

The image, or the volume of which every `--factor`-th slice is kept, is restored in tiles and, for comparison,
in one tile as large as itself, with the same noise. Tables:

* *Steps*: the mean absolute difference of neighbouring pixels across the lines where two tiles meet (all
  lines of the seam, in which they blend), over that across all lines. A line may coincide with an edge in the
  tissue: hence the same number for the same lines of the restoration in one tile, and their quotient.
* *Brightness*: the mean of each tile minus that of the input (linear interpolation for volumes) in the same
  place, as the standard deviation over tiles, beside that of the restoration in one tile; and the largest
  difference of a tile's mean between the two restorations. In grey levels.
* *Continuity* (vem): the mean absolute difference between neighbouring restored slices, and between restored
  slices and adjacent real ones, over the truth's.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch

from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.config import Restoration
from emdiffuse.evaluation.baselines import interpolate
from emdiffuse.restoration.plan import Plan
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.slice_grid import slice_grid
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.stores.volume import open_volume

ESTIMATORS = {
    "one-call mean": {"steps": 1},
    "one sample, 8 calls": {"steps": 8},
    "mean of 4 samples, 4 calls": {"steps": 4, "samples": 4},
}


def restored(volume: Path, model: Path, sampler: dict, tile: int, out: Path) -> tuple[Plan, np.ndarray]:
    """Restore a volume in tiles of a size; return the plan and the generated slices, as float64."""
    settings = Restoration.model_validate({
        "dataset": "a", "model": "m", "sampler": sampler,
        "tiling": {"tile": tile, "halo": 32, "blend": 16, "block": [1, 8, 8]},
    })  # fmt: skip
    plan = make_plan(volume, model, settings, out / "plan.json")
    restore(out / "plan.json", 1, 1, "cpu")
    stitch(out / "plan.json", 1, 1)
    pyramid(out / "plan.json")
    return plan, open_volume(plan.restored).array[:, :, :].astype(np.float64)


def step_ratio(values: np.ndarray, plan: Plan) -> float:
    """Return the mean absolute step within seams over that across all lines, of slices (z, y, x)."""
    inside, everywhere = [], []
    for axis, tiles in ((1, plan.grid.y), (2, plan.grid.x)):
        steps = np.abs(np.diff(values, axis=axis)).mean(axis=(0, 3 - axis))
        half = tiles.blend // 2
        lines = np.concatenate([np.arange(s - half - 1, s + half) for s in tiles.seams])
        inside.append(steps[lines].mean())
        everywhere.append(steps.mean())
    return sum(inside) / sum(everywhere)


def tile_means(values: np.ndarray, plan: Plan) -> np.ndarray:
    """Return the mean of every slice within every tile's interior, up to the middle of its seams."""
    cuts = [[0, *axis.seams, axis.length] for axis in (plan.grid.y, plan.grid.x)]
    rows = np.add.reduceat(values, cuts[0][:-1], axis=1)
    sums = np.add.reduceat(rows, cuts[1][:-1], axis=2)
    return sums / np.outer(np.diff(cuts[0]), np.diff(cuts[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["n", "vem"])
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--factor", type=int, default=6)
    parser.add_argument("--slices", type=int, default=61, help="Number of slices to use.")
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    values = tifffile.imread(options.image)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tifffile.imwrite(folder / "raw.tif", values if options.task == "n" else values[: options.slices])
        raw, thin = folder / "raw.ome.zarr", folder / "thin.ome.zarr"
        acquire(str(folder / "raw.tif"), (10, 10, 10), raw, "raw", options.task == "n")
        if options.task == "vem":
            keep_every(raw, options.factor, thin, "thin")
        truth = open_volume(raw).array[:, :, :].astype(np.float64)
        whole = -(-max(truth.shape[1:]) // 16) * 16
        for number, (name, sampler) in enumerate(ESTIMATORS.items()):
            source = raw if options.task == "n" else thin
            plan, tiled = restored(source, options.model, sampler, options.tile, folder / f"{number}")
            _, single = restored(source, options.model, sampler, whole, folder / f"{number}-whole")
            rows.append((name, plan, tiled, single))
        plain = truth
        if options.task == "vem":
            grid = slice_grid(open_volume(thin))
            truth = truth[: grid.length]
            plain = interpolate(open_volume(thin).array, grid, range(grid.length), "linear").astype(
                np.float64
            )
    made = [z for gap in range(plan.grid.z.gaps) for z in plan.grid.z.generated(gap)]
    print_tiles(rows, plain, made)
    if options.task == "vem":
        print_continuity(rows, truth, plain, options.factor)


def print_tiles(rows: list, plain: np.ndarray, made: list[int]) -> None:
    head = ("estimator", "steps in seams / elsewhere", "the same lines, one tile", "quotient")
    print("|", " | ".join((*head, "brightness", "one tile", "largest difference")), "|")
    print("| --- " * 7 + "|")
    for name, plan, tiled, single in rows:
        tiled, single = tiled[made], single[made]
        steps, control = step_ratio(tiled, plan), step_ratio(single, plan)
        means, other, base = (tile_means(v, plan) for v in (tiled, single, plain[made]))
        spread = [np.std(m - base, axis=(1, 2)).mean() for m in (means, other)]
        ratios = f"{steps:.4f} | {control:.4f} | {steps / control:.4f}"
        most = np.abs(means - other).max()
        print(f"| {name} | {ratios} | {spread[0]:.3f} | {spread[1]:.3f} | {most:.3f} |")


def print_continuity(rows: list, truth: np.ndarray, plain: np.ndarray, factor: int) -> None:
    def changes(values: np.ndarray) -> tuple[float, float]:
        steps = np.abs(np.diff(values, axis=0)).mean(axis=(1, 2))
        beside = np.array([z % factor in (0, factor - 1) for z in range(len(steps))])
        return steps[~beside].mean(), steps[beside].mean()

    among, beside = changes(truth)
    print("\n| estimator | restored to restored / truth | restored to real / truth |\n| --- | --- | --- |")
    print(f"| truth (grey levels) | {among:.2f} | {beside:.2f} |")
    for name, values in [("linear interpolation", plain), *((row[0], row[2]) for row in rows)]:
        ours = changes(values)
        print(f"| {name} | {ours[0] / among:.3f} | {ours[1] / beside:.3f} |")


if __name__ == "__main__":
    main()
