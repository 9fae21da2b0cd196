"""The tables of the shipped models' cards: held-out data restored, beside classical methods.

    python benchmarks/shipped_models.py vemdiffuse raw/held_out
    python benchmarks/shipped_models.py emdiffuse-n raw/held_out
    python benchmarks/shipped_models.py emdiffuse-r raw/held_out

The folder is written by `config/pretrained/prepare.py`. `--model` measures another model of this package;
`--dimensions` crops volumes for a quick look. To compare another method:

    python benchmarks/shipped_models.py vemdiffuse raw/held_out --inputs given
    python benchmarks/shipped_models.py vemdiffuse raw/held_out --results theirs

The first command writes the inputs of every method, `given/LABEL.tif`; the second measures that method's
results, `theirs/LABEL.tif`: 8-bit grey levels, in the shape of the restoration (for volumes the whole block).

- `vemdiffuse`: isotropic volumes, of which slices are *dropped* (every R-th is kept) or *averaged* (R at a
  time). Measured on the restored slices, xy planes; ends included. For a factor like 45/8 the kept slices are
  between those of the truth, interpolated from them by a cubic spline.
- `emdiffuse-n`: real pairs. Each method is measured as it is and after a linear fit of its intensities to the
  clean image; then both again after the clean image was registered to the noisy one, which all methods are
  given as it is (the two scans of a pair are up to 5 pixels apart, and drift). The width of the Gaussian and
  the strengths of non-local means and BM3D (`pip install 'emdiffuse[bm3d]'`; omitted without it) are the best
  for each image (an oracle).
- `emdiffuse-r`: slices of volumes, binned 2 x 2 and noisy; cubic interpolation, directly and after the best
  Gaussian for each image.

PSNR is over a range of 255 (8-bit data), in dB; means over planes or images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOLUMES = ("medulla_far", "hemibrain", "gala", "celegans")
FACTORS = (2, 3, 4, 5, Fraction(45, 8), 6, 7, 8, 10, 12)
COARSE = {"electrons": 80, "gaussian": 0.03}
SIGMAS = np.arange(0.3, 3.1, 0.3)
MARGIN = 8
"""Pixels excluded at the edges of a registered pair."""
Images = NDArray[Any]
Rows = dict[str, tuple[float, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("vemdiffuse", "emdiffuse-n", "emdiffuse-r"))
    parser.add_argument("held_out", type=Path)
    parser.add_argument(
        "--model", help="A shipped model or a folder; by default the shipped one of the task."
    )
    parser.add_argument("--volumes", nargs="+", default=VOLUMES)
    parser.add_argument("--factors", type=Fraction, nargs="+", default=FACTORS)
    parser.add_argument("--thickness", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument(
        "--dimensions", type=int, nargs=3, default=[97, 160, 160], help="Maximum size of volumes."
    )
    parser.add_argument(
        "--sampler", default="{}", help="Sampler, as JSON; by default the mean in one evaluation."
    )
    parser.add_argument("--inputs", type=Path, help="Folder to write the inputs to.")
    parser.add_argument("--results", type=Path, help="Folder of another method's results.")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    measure = {"vemdiffuse": volumes, "emdiffuse-n": pairs, "emdiffuse-r": coarse}[options.task]
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in measure(options, Path(folder)):
            print(f"| {name} | " + " | ".join(f"{m}: {' / '.join(text(v))}" for m, v in rows.items()) + " |")


def text(values: tuple[float, ...]) -> list[str]:
    return [f"{value:.2f}" if value > 2 else f"{value:.3f}" for value in values]


def restored(dataset: Path, options: argparse.Namespace, folder: Path) -> Images:
    """Return a store's restoration, by the pipeline or another method."""
    import tifffile
    import yaml

    from emdiffuse.config import Restoration
    from emdiffuse.config.settings import parse
    from emdiffuse.config.shipped import model_folder
    from emdiffuse.restoration.planning import make_plan
    from emdiffuse.restoration.stitch import stitch
    from emdiffuse.restoration.tiles import restore
    from emdiffuse.stores.array import Array
    from emdiffuse.stores.volume import open_volume

    if options.inputs:
        options.inputs.mkdir(parents=True, exist_ok=True)
        given = open_volume(dataset).array[:, :, :]
        tifffile.imwrite(options.inputs / f"{folder.name}.tif", given, photometric="minisblack")
    if options.results:
        made: Images = tifffile.imread(options.results / f"{folder.name}.tif")
        return made.reshape(-1, *made.shape[-2:])
    settings = {"dataset": "a", "model": "m", "sampler": {"steps": 1, **yaml.safe_load(options.sampler)}}
    model = model_folder(options.model or options.task)
    plan = make_plan(dataset, model, parse(Restoration, settings), folder / "plan.json")
    restore(folder / "plan.json", 1, 1)
    stitch(folder / "plan.json", 1, 1)
    return Array(plan.restored / "restored" / "0")[:, :, :]


def scores(images: Images, truth: Images) -> tuple[float, ...]:
    """Return PSNR, SSIM and FSIM, means over planes."""
    from emdiffuse.evaluation.metrics import fsim, psnr, ssim

    both = list(zip(np.clip(images, 0, 255).astype(np.float32), truth.astype(np.float32), strict=True))
    return tuple(float(np.mean([one(a, b, 255) for a, b in both])) for one in (psnr, ssim, fsim))


def volumes(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Rows]]:
    import tifffile

    from emdiffuse.acquisition.acquire import acquire, keep_every
    from emdiffuse.evaluation.baselines import interpolate
    from emdiffuse.evaluation.methods import baselines_of
    from emdiffuse.restoration.slice_grid import slice_grid
    from emdiffuse.stores.volume import open_volume

    for name in options.volumes:
        truth = tifffile.imread(options.held_out / f"{name}.tif")
        truth = truth[tuple(slice(0, n) for n in options.dimensions)]
        tifffile.imwrite(folder / f"{name}.tif", truth, photometric="minisblack")
        acquire(str(folder / f"{name}.tif"), (10, 10, 10), folder / f"{name}.ome.zarr", name)
        for thickness in options.thickness:
            for factor in options.factors:
                if len(truth) < 2 * factor + 1 or (thickness and factor.denominator > 1):
                    continue
                label = f"{name}-z{factor}-{thickness:g}".replace("/", "over")
                thin = folder / f"{label}.ome.zarr"
                if factor.denominator > 1:
                    tifffile.imwrite(
                        folder / f"{label}.tif", between(truth, factor), photometric="minisblack"
                    )
                    acquire(str(folder / f"{label}.tif"), (float(10 * factor), 10, 10), thin, "thin")
                else:
                    keep_every(folder / f"{name}.ome.zarr", int(factor), thin, "thin", thickness)
                grid, given = slice_grid(open_volume(thin)), open_volume(thin).array[:, :, :]
                made = [z for gap in range(grid.gaps) for z in grid.generated(gap)]
                rows = {
                    kind: interpolate(given, grid, range(grid.length), kind)
                    for kind in baselines_of("vemdiffuse-i", grid.thick)
                    if kind not in ("nearest", "flow")
                }
                rows["restored"] = restored(thin, options, folder / label)
                yield label, {kind: scores(values[made], truth[made]) for kind, values in rows.items()}


def between(truth: Images, factor: Fraction) -> Images:
    """Return every R-th slice of a volume for a non-integer R, by a cubic spline along z."""
    from scipy.interpolate import CubicSpline

    places = [float(n * factor) for n in range(int((len(truth) - 1) / factor) + 1)]
    values = CubicSpline(range(len(truth)), truth.astype(np.float32))(places)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def pairs(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Rows]]:
    import tifffile
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import denoise_nl_means

    from emdiffuse.acquisition.acquire import acquire
    from emdiffuse.evaluation.baselines import noise_of
    from emdiffuse.registration.pair import register_pair
    from emdiffuse.registration.raft import Flow

    flow = Flow("shipped")
    for file in sorted(options.held_out.glob("*/noisy_*.tif")):
        noisy = tifffile.imread(file).astype(np.float32)
        clean = tifffile.imread(file.with_name(file.name.replace("noisy", "clean"))).astype(np.float32)
        label = f"{file.parent.name}-{file.stem.removeprefix('noisy_')}"
        store = folder / f"{label}.ome.zarr"
        acquire(str(file), (50, 5, 5), store, label, images=True)
        noise = noise_of(noisy)
        smooth = [gaussian_filter(noisy, sigma) for sigma in SIGMAS]
        means = [
            denoise_nl_means(noisy, 5, 6, h=h * noise, sigma=noise, fast_mode=True)
            for h in (0.4, 0.6, 0.8, 1.0, 1.3)
        ]
        methods = {
            "input": [noisy],
            "best Gaussian": smooth,
            "best non-local means": means,
            **bm3d(noisy, noise),
            "restored": [restored(store, options, folder / label)[0].astype(np.float32)],
        }
        yield label, {kind: best(images, clean) for kind, images in methods.items()}
        inner = (..., *(slice(MARGIN, -MARGIN),) * 2)
        truth = register_pair(noisy, clean, flow).moving[inner]
        yield (
            f"{label}, registered",
            {kind: best([image[inner] for image in images], truth) for kind, images in methods.items()},
        )


def bm3d(noisy: Images, noise: float) -> dict[str, list[Images]]:
    """Return results of BM3D for a few noise levels, if it is installed."""
    if find_spec("bm3d") is None:
        return {}
    from bm3d import bm3d as denoise

    return {"best BM3D": [denoise(noisy, strength * noise) for strength in (0.7, 1.0, 1.4, 2.0)]}


def best(images: list[Images], clean: Images) -> tuple[float, ...]:
    """Return PSNR and SSIM of the best of a few images as they are, then of the best after a linear fit."""
    as_they_are, after_fit = (
        max(scores(image[None], clean[None])[:2] for image in each)
        for each in (images, [fitted(image, clean) for image in images])
    )
    return *as_they_are, *after_fit


def fitted(image: Images, clean: Images) -> Images:
    """Return an image with the best linear fit of its intensities to the clean one."""
    slope, offset = np.polyfit(image.ravel(), clean.ravel(), 1)
    return slope * image + offset


def coarse(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Rows]]:
    import tifffile
    from scipy.ndimage import gaussian_filter

    from emdiffuse.acquisition.acquire import acquire
    from emdiffuse.acquisition.degradation import degrade
    from emdiffuse.config import Degrade
    from emdiffuse.config.settings import parse
    from emdiffuse.stores.resampling import enlarge
    from emdiffuse.stores.volume import open_volume

    for name in options.volumes:
        truth = tifffile.imread(options.held_out / f"{name}.tif")
        sides = [min(n, m) // 2 * 2 for n, m in zip(truth.shape[1:], options.dimensions[1:], strict=True)]
        truth = truth[:: max(len(truth) // 12, 1), : sides[0], : sides[1]]
        tifffile.imwrite(folder / f"{name}.tif", truth, photometric="minisblack")
        acquire(str(folder / f"{name}.tif"), (10, 10, 10), folder / f"{name}.ome.zarr", name)
        small = folder / f"{name}-coarse.ome.zarr"
        settings = parse(Degrade, {"dataset": name, "bin": 2, "noise": COARSE})
        degrade(folder / f"{name}.ome.zarr", settings, small, "coarse", images=True)
        given = open_volume(small).array[:, :, :].astype(np.float32)
        large = enlarge(given, 2)
        smooth = [
            enlarge(np.stack([gaussian_filter(image, sigma) for image in given]), 2) for sigma in SIGMAS / 2
        ]
        rows = {
            "cubic": large,
            "best smoothed cubic": max(smooth, key=lambda images: scores(images, truth)[0]),
            "restored": restored(small, options, folder / f"{name}-restored"),
        }
        yield name, {kind: scores(images, truth) for kind, images in rows.items()}


if __name__ == "__main__":
    main()
