"""Denoisers that learn from noisy images alone, beside one that learns from pairs and classical methods.

    python benchmarks/self_supervised.py shared/data --minutes 2 --careamics CAREAMICS_ENV/bin/python
    python benchmarks/self_supervised.py shared/data --only volume --minutes 2
    python benchmarks/self_supervised.py shared/data --only gaps --minutes 1
    python benchmarks/self_supervised.py shared/data --only intervals

Real pairs: the clean images are the ground truth; only the method "pairs" learns from clean ones, of other
fields. Each training has the same CPU time on one thread. PSNR over 255 (dB) and SSIM, after a linear fit of
the intensities to the clean image for every method (a fast and a slow scan differ in brightness and
contrast).

- `n2v`, `structn2v`: single noisy images, with a blind spot of one pixel, and with one matched to the
measured
  noise correlation. They also learn from the test images, as in use.
- `n2n`: two noisy scans. No pair here was scanned twice: the second scan is the clean image with the noise
  (noisy minus clean) of another field, or of another part of it.
- `pairs`: regular emdiffuse-n, trained on other fields than the test fields.
- `careamics`: its N2V, and its structN2V along x, with its defaults except for the patch size, in a separate
  environment: `pip install careamics`.
- The width of the Gaussian and the strength of non-local means are the best for each image (an oracle); BM3D
  gets the standard deviation of the noise.
- `volume`: a volume with Gaussian noise of 25 grey levels and known clean voxels, denoised by a model that
  learned from it alone, with and without the neighbouring slices (`patches.context`).
- `gaps`: every third or sixth slice of a volume with noise of 20 grey levels, first denoised (`real_slices`)
  with and without the neighbouring slices; the shipped vemdiffuse then fills the gaps.
- `intervals`: the real pairs restored by the shipped model with 4 samples; intervals calibrated by a second
scan
  (as for `n2n`) on half of the fields, and the fraction of clean voxels inside in the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

Images = NDArray[Any]
SIZE = 64
SIGMAS = np.arange(0.4, 3.1, 0.2)
CAREAMICS = """
import sys, time, numpy as np, torch
torch.set_num_threads(1)
from pytorch_lightning.callbacks import Callback
from careamics.careamist import CAREamist
from careamics.config import create_n2v_config, create_structn2v_config
noisy, out, seconds, reach = sys.argv[1:]
class Limit(Callback):
    def on_train_batch_end(self, trainer, *_):
        if time.process_time() - start > float(seconds):
            trainer.should_stop = True
            trainer.limit_val_batches = 0
images = np.load(noisy).astype(np.float32)
known = dict(data_type="array", axes="SYX", patch_size=[64, 64], batch_size=8, num_epochs=1000)
if int(reach):
    known |= dict(struct_n2v_axes="horizontal", struct_n2v_span=2 * int(reach) + 1)
config = (create_structn2v_config if int(reach) else create_n2v_config)("benchmark", **known)
engine = CAREamist(config, work_dir=".", callbacks=[Limit()], enable_progress_bar=False)
start = time.process_time()
engine.train(train_data=images)
sides = images.shape[1:]
padded = np.pad(images, [(0, 0), *((0, -side % 16) for side in sides)], mode="symmetric")
made, _ = engine.predict(padded, data_type="array", axes="SYX")
made = np.concatenate([np.asarray(image).reshape(-1, *padded.shape[1:]) for image in made])
np.save(out, made[:, : sides[0], : sides[1]])
"""


def fields(folder: Path) -> Iterator[tuple[str, Images, Images, int]]:
    """Yield name, noisy and clean images (N, H, W), and the number that "pairs" learns from."""
    brain = [tifffile.imread(folder / f"brain22_level07_{kind}.tif") for kind in ("input", "gt")]
    noisy, clean = (np.stack([image[:384], image[384:]]) for image in brain)
    yield "brain", noisy, clean, 1
    for kind, learned in (("dwell", 9), ("line", 4)):
        images = [
            tifffile.imread(folder / f"more/kriss_sem_{kind}_{role}.tif") for role in ("noisy", "clean")
        ]
        yield kind, images[0], images[1], learned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=2, help="CPU time of each training.")
    parser.add_argument("--careamics", help="Python of an environment with CAREamics.")
    parser.add_argument("--only", nargs="+", help="Some of the pairs: brain, dwell, line.")
    parser.add_argument("--methods", nargs="+", help="Some of the methods.")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    alone = {"volume": volume, "gaps": gaps, "intervals": intervals}
    if options.only and options.only[0] in alone:
        alone[options.only[0]](options)
        return
    print("| pairs | method | PSNR (dB) | SSIM | CPU (s) |\n| --- | --- | --- | --- | --- |")
    for name, noisy, clean, learned in fields(options.data):
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for method, made, seconds in methods(options, Path(folder), noisy, clean, learned):
                scores = [quality(a, b) for a, b in zip(made[learned:], clean[learned:], strict=True)]
                psnr, ssim = np.mean(scores, axis=0)
                print(f"| {name} | {method} | {psnr:.2f} | {ssim:.3f} | {seconds:.0f} |", flush=True)


def quality(image: Images, clean: Images) -> tuple[float, float]:
    """Return PSNR and SSIM after a linear fit."""
    from emdiffuse.evaluation.metrics import psnr, ssim

    slope, offset = np.polyfit(image.ravel().astype(float), clean.ravel().astype(float), 1)
    fitted = (slope * image + offset).astype(np.float32)
    return psnr(fitted, clean.astype(np.float32), 255), ssim(fitted, clean.astype(np.float32), 255)


def methods(
    options: argparse.Namespace, folder: Path, noisy: Images, clean: Images, learned: int
) -> Iterator[tuple[str, Images, float]]:
    """Yield name, restored images and CPU time of every method."""
    wanted = set(options.methods or ("classical", "n2v", "structn2v", "n2n", "pairs", "careamics"))
    if "classical" in wanted:
        yield from classical(noisy, clean)
    shifted = np.roll(noisy.astype(float) - clean, 1, axis=0)
    second = np.clip(np.rint(clean + shifted), 0, 255).astype(np.uint8)
    taught = slice(0, learned)
    trained = {
        "n2v": ({"blind_spot": [0, 0]}, None),
        "structn2v": ({}, None),
        "n2n": ({}, (noisy, second, ["first", "second"])),
        "pairs": ({}, (noisy[taught], clean[taught], None)),
    }
    for method, (training, pairs) in trained.items():
        if method in wanted:
            yield method, *ours(folder / method, noisy, pairs, {**training, "minutes": options.minutes})
    if "careamics" in wanted and options.careamics:
        for method, reach in (("careamics n2v", 0), ("careamics structn2v", 1)):
            yield method, *careamics(options, folder, noisy, reach)


def classical(noisy: Images, clean: Images) -> Iterator[tuple[str, Images, float]]:
    """Yield the input, the best Gaussian, the best non-local means, and BM3D."""
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import denoise_nl_means

    yield "input", noisy, 0.0
    floats = noisy.astype(np.float32)

    def best(made: list[Images], truth: Images) -> Images:
        return max(made, key=lambda image: quality(image, truth)[0])

    start = time.process_time()
    smooth = [best([gaussian_filter(a, s) for s in SIGMAS], b) for a, b in zip(floats, clean, strict=True)]
    yield "best Gaussian", np.stack(smooth), time.process_time() - start
    deviations = [float((a - b).std()) for a, b in zip(floats, clean, strict=True)]
    start = time.process_time()
    means = [
        best([denoise_nl_means(a, 5, 6, h=k * d, fast_mode=True) for k in (0.6, 0.9, 1.2)], b)
        for a, b, d in zip(floats, clean, deviations, strict=True)
    ]
    yield "best non-local means", np.stack(means), time.process_time() - start
    try:
        import bm3d
    except ImportError:
        print("BM3D is not installed here", flush=True)
        return
    start = time.process_time()
    made = [bm3d.bm3d(a, d) for a, d in zip(floats, deviations, strict=True)]
    yield "BM3D", np.stack(made), time.process_time() - start


def volume(options: argparse.Namespace) -> None:
    """Print the gain from neighbouring slices, on a volume with noise."""
    from scipy.ndimage import gaussian_filter

    from emdiffuse.evaluation.metrics import psnr, ssim

    clean = tifffile.imread(options.data / "medulla_training2_250.tif")[:48, :192, :192]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    noisy = np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)
    print("| volume | method | PSNR (dB) | SSIM | CPU (s) |\n| --- | --- | --- | --- | --- |")

    def row(method: str, made: Images, seconds: float) -> None:
        pairs = [(a.astype(np.float32), b.astype(np.float32)) for a, b in zip(made, clean, strict=True)]
        scores = np.mean([(psnr(a, b, 255), ssim(a, b, 255)) for a, b in pairs], axis=0)
        print(f"| medulla | {method} | {scores[0]:.2f} | {scores[1]:.3f} | {seconds:.0f} |", flush=True)

    row("input", noisy, 0)
    floats = noisy.astype(np.float32)
    for name, z in (("in the plane", 0.0), ("in 3-D", 1.0)):
        smooth = [gaussian_filter(floats, (z * s, s, s)) for s in SIGMAS]
        best = min(smooth, key=lambda image: float(((image - clean) ** 2).mean()))
        row(f"best Gaussian, {name}", best, 0)
    with tempfile.TemporaryDirectory() as folder:
        for context in (0, 1):
            training = {"minutes": options.minutes, "blind_spot": [0, 0]}
            made, seconds = ours(Path(folder) / str(context), noisy, None, training, context)
            row(f"n2v, context {context}", made, seconds)


def gaps(options: argparse.Namespace) -> None:
    """Print the gain from denoising slices first, for the slices and the gaps between them."""
    from fractions import Fraction

    from scipy.ndimage import gaussian_filter

    from emdiffuse.config.shipped import model_folder
    from emdiffuse.enhance.one_file import Enhancement, enhance
    from emdiffuse.evaluation.baselines import interpolate
    from emdiffuse.evaluation.metrics import psnr
    from emdiffuse.restoration.geometry import SliceGrid

    clean = tifffile.imread(options.data / "more/medulla_validation_far_250.tif")[:97, :160, :160]
    noise = np.random.default_rng(0).normal(0, 20, clean.shape)
    noisy = np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)
    print("| factor | slices | kept slices (dB) | linear | vemdiffuse |\n| --- | --- | --- | --- | --- |")
    for factor in (3, 6):
        kept, truth = noisy[::factor], clean[::factor]
        grid = SliceGrid(len(kept), Fraction(factor))
        made = [z for gap in range(grid.gaps) for z in grid.generated(gap)]

        def score(images: Images, truth: Images) -> float:
            pairs = zip(images.astype(np.float32), truth.astype(np.float32), strict=True)
            return float(np.mean([psnr(np.clip(a, 0, 255), b, 255) for a, b in pairs]))

        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            smooth = [gaussian_filter(kept.astype(np.float32), (0, s, s)) for s in SIGMAS]
            best = max(smooth, key=lambda image: score(image, truth))
            slices = {"as they are": kept, "best Gaussian (oracle)": np.rint(best).astype(np.uint8)}
            for context in (0, 1):
                training = {"minutes": options.minutes, "blind_spot": [0, 0]}
                slices[f"denoised, context {context}"], _ = ours(
                    work / str(context), kept, None, training, context
                )
            for name, images in slices.items():
                tifffile.imwrite(work / "kept.tif", images, photometric="minisblack")
                how = Enhancement(model_folder("vemdiffuse"), factor=Fraction(factor), device="cpu")
                enhance(work / "kept.tif", work / "out.tif", how, overwrite=True)
                found = [
                    score(volume[made], clean[made])
                    for volume in (
                        interpolate(images, grid, range(grid.length), "linear"),
                        tifffile.imread(work / "out.tif"),
                    )
                ]
                row = [f"{value:.2f}" for value in (score(images, truth), *found)]
                print(f"| {factor} | {name} | {' | '.join(row)} |", flush=True)


def intervals(options: argparse.Namespace) -> None:
    """Print the coverage of intervals calibrated by a second scan, on real pairs with ground truth."""
    from emdiffuse.acquisition.acquire import acquire
    from emdiffuse.config import Calibration, Restoration
    from emdiffuse.config.shipped import model_folder
    from emdiffuse.evaluation.calibration import calibrate
    from emdiffuse.restoration.intervals import floors
    from emdiffuse.restoration.planning import make_plan
    from emdiffuse.restoration.stitch import pyramid, stitch
    from emdiffuse.restoration.tiles import restore
    from emdiffuse.stores.array import Array
    from emdiffuse.stores.volume import open_volume

    print("| pairs | calibrated by | scale | clean voxels inside (%) |\n| --- | --- | --- | --- |")
    for name, noisy, clean, _ in fields(options.data):
        noisy, clean = (images[:6, :256, :256] for images in (noisy, clean))
        shifted = np.roll(noisy.astype(float) - clean, 1, axis=0)
        second = np.clip(np.rint(clean + shifted), 0, 255).astype(np.uint8)
        half = len(noisy) // 2
        parts = {"first": noisy[:half], "second": second[:half], "clean": clean[:half], "rest": noisy[half:]}
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            for kind, images in parts.items():
                tifffile.imwrite(work / f"{kind}.tif", images, photometric="minisblack")
                acquire(str(work / f"{kind}.tif"), (4, 4, 4), work / f"{kind}.ome.zarr", kind, images=True)
            settings = Restoration.model_validate({"dataset": "a", "model": "m", "sampler": {"samples": 4}})
            for kind in ("first", "rest"):
                path = work / kind / "plan.json"
                make_plan(work / f"{kind}.ome.zarr", model_folder("emdiffuse-n"), settings, path)
                restore(path, 1, 1, "cpu")
                stitch(path, 1, 1)
                pyramid(path)
            store = work / "rest/restored.ome.zarr"
            restored, deviation = (
                Array(store / output / "0")[:, :, :].astype(float) for output in ("restored", "uncertainty")
            )
            reach = np.maximum(deviation, floors(open_volume(store).intensity.at(range(len(restored)))))
            for by in ("second", "clean"):
                found = calibrate(
                    work / "first/restored.ome.zarr", work / "first.ome.zarr", work / f"{by}.ome.zarr",
                    work / f"{by}.json", Calibration(dataset="a", block=32), second_scan=by == "second",
                )  # fmt: skip
                inside = np.abs(restored - clean[half:]) <= found.scale * reach
                print(f"| {name} | {by} | {found.scale:.2f} | {100 * inside.mean():.1f} |", flush=True)


def ours(
    folder: Path,
    noisy: Images,
    pairs: tuple[Images, Images, Any] | None,
    training: dict[str, Any],
    context: int = 0,
) -> tuple[Images, float]:
    """Train with the pipeline for a CPU time, and restore the noisy images with the result."""
    from emdiffuse.acquisition.acquire import acquire
    from emdiffuse.acquisition.image_pairs import acquire_pairs
    from emdiffuse.config import Model
    from emdiffuse.enhance.one_file import Enhancement, enhance
    from emdiffuse.patches.cut import cut_patches
    from emdiffuse.training import train as loop

    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "noisy.tif", noisy, photometric="minisblack")
    size = (4.0, 4.0, 4.0)
    store = folder / "a.ome.zarr"
    if pairs is None:
        acquire(str(folder / "noisy.tif"), size, store, "a", images=not context)
    else:
        first, second, scans = pairs
        for role, images in zip(scans or ("noisy", "clean"), (first, second), strict=True):
            (folder / "pairs" / role).mkdir(parents=True)
            for number, image in enumerate(images):
                tifffile.imwrite(folder / f"pairs/{role}/{number:02d}.tif", image)
        acquire_pairs(str(folder / "pairs"), size, store, "a", scans=scans)
    model = Model.model_validate(
        {
            "task": "emdiffuse-n",
            "datasets": ["a"],
            "patches": {"size": SIZE, "overlap": 0.5, "context": context},
            "network": {"channels": 32, "blocks": 1},
            "training": {
                "steps": 1000000,
                "validate_every": 250,
                "ema": 0.995,
                "precision": "float32",
                **training,
            },
        }
    )
    cut_patches([store], model, folder / "p.zarr")
    start = time.process_time()
    # minutes are CPU time here, as the machine may be shared
    loop.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    loop.train(folder / "p.zarr", model, "a", folder / "e", "cpu")
    seconds = time.process_time() - start
    enhance(folder / "noisy.tif", folder / "made.tif", Enhancement(folder / "e/best", device="cpu"))
    return tifffile.imread(folder / "made.tif").reshape(noisy.shape), seconds


def careamics(options: argparse.Namespace, folder: Path, noisy: Images, reach: int) -> tuple[Images, float]:
    """Train CAREamics for a CPU time in a separate environment, and restore."""
    work = folder / f"careamics{reach}"
    work.mkdir()
    np.save(work / "noisy.npy", noisy)
    (work / "run.py").write_text(CAREAMICS)
    command = [
        options.careamics,
        "run.py",
        "noisy.npy",
        "made.npy",
        str(60 * options.minutes),
        str(reach),
    ]
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, cwd=work, env=own, check=True, capture_output=True, text=True)
    return np.load(work / "made.npy"), 60 * options.minutes


if __name__ == "__main__":
    main()
