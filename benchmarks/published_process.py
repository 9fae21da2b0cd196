"""Cost and quality against the published process: both networks trained with the same data and wall time.

    python benchmarks/published_process.py n NOISY.tif CLEAN.tif --minutes 10
    python benchmarks/published_process.py vem TRAIN.tif [TRAIN.tif ...] TEST.tif --minutes 10

`n` denoises the last 256 x 256 pixels of an image pair, and trains on the rows above; `vem` fills one gap of
256 x 256 pixels (less if the volume is smaller) between two slices 6 apart. The published network runs with
its own process (1000 evaluations per image, 200 per slice) and with few evaluations (8 of ddim are the
default for imported weights), the native one with its defaults; all in one process, so that ratios share run
and allocator. The cost is the CPU time of an evaluation, which other load on the machine affects little,
times the number of evaluations, compared with the published network's plain implementation (float32, eager,
NCHW), whose output is the same; `--side` selects a smaller square for the quality, since the published
process is slow. The published network trains on batches of 4: in so little time they achieve more than fewer
batches of 8.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

if TYPE_CHECKING:  # numerical libraries must start after their number of threads is set
    from emdiffuse.models.inference import RestorationModel
    from emdiffuse.models.processes import Batch
    from emdiffuse.stores.intensity import Intensity

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))

FACTOR = 6
SIDE = 256
CALLS = 4
"""Evaluations per sample when measuring the cost."""
TEST_ROWS = 256
MARGIN = 32


class Example(NamedTuple):
    """Training stores, a batch to restore, its truth (slices, height, width) in [-1, 1], and the task."""

    stores: list[Path]
    batch: Batch
    truth: NDArray[Any]
    task: str


class Quality(NamedTuple):
    """PSNR (dB), SSIM, FSIM and the ratio of power in fine detail, means over the slices."""

    psnr: float
    ssim: float
    fsim: float
    fine: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["n", "vem"])
    parser.add_argument("first", type=Path, nargs="+", help="The noisy image, or the training volumes.")
    parser.add_argument("second", type=Path, help="The clean image, or the test volume.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--native-minutes", type=float, help="Fewer minutes for the native network.")
    parser.add_argument(
        "--samplers", nargs="*", default=["dpm++:8", "dpm++:12", "dpm++:20", "ddim:8", "ddim:16"]
    )
    parser.add_argument(
        "--side", type=int, default=SIDE, help="Side of the square for measuring quality, in pixels."
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--published-calls",
        type=int,
        help="Fewer evaluations for a quick look; the table is then misleading.",
    )
    parser.add_argument("--folder", type=Path, help="Working folder; existing models are not trained again.")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary))


def run(options: argparse.Namespace, folder: Path) -> None:
    import torch

    from emdiffuse.config import Sampler
    from emdiffuse.models.inference import RestorationModel
    from emdiffuse.runtime.allocator import keep_freed_memory
    from emdiffuse.runtime.progress import setup

    setup()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    data = images if options.task == "n" else gaps
    stores, batch, truth, task = data(options, folder, options.side)
    whole = data(options, folder, SIDE).batch
    models = {
        name: RestorationModel.load(trained(folder, stores, task, name, options))
        for name in ("unet", "native")
    }
    seconds = costs(models, whole)
    calls = options.published_calls or (1000 if options.task == "n" else 200)
    long = Sampler(name="ddpm", steps=calls)
    runs = {
        "published network, published process": ("unet", long),
        **{
            f"published network, {name}, {steps} calls": ("unet", Sampler(name=name, steps=int(steps)))
            for name, _, steps in (sampler.partition(":") for sampler in options.samplers)
        },
        "native, one sample, 4 calls": ("native", Sampler(texture=1, steps=4)),
        "native, one sample": ("native", Sampler(texture=1)),
        "native, one-call mean": ("native", Sampler(steps=1)),
    }
    rows: dict[str, tuple[float | None, Quality]] = {}
    rows["input" if options.task == "n" else "linear"] = (None, scores(plain(batch), truth))
    for label, (name, asked) in runs.items():
        generator = torch.Generator().manual_seed(0)

        def white(sample: int, step: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(batch.shape, generator=generator)

        sampler = models[name].description.resolve(asked)
        restored, _ = models[name].restore(batch, sampler, white)
        steps, samples = sampler.steps or 0, sampler.samples or 0
        cost = seconds[name] * steps * samples
        rows[label] = (cost, scores(restored, truth))
        print(label, f"{cost:.2f} s of CPU", *rows[label][1], flush=True)
    published = seconds["plain"] * calls
    rows["the same, plain form"] = (published, rows["published network, published process"][1])
    print(
        f"\n{torch.get_num_threads()} threads, freed memory kept; costs of {whole.shape[1:]} voxels by "
        f"the time of a call; quality on {options.side} x {options.side} pixels; "
        f"{options.minutes:g} minutes of training of the published network, "
        f"{options.native_minutes or options.minutes:g} of the native one\n"
    )
    print("| method | CPU seconds | times faster | PSNR | SSIM | FSIM | fine detail (truth = 1) |")
    print("| --- " * 7 + "|")
    for label, (spent, found) in rows.items():
        figures = f"{spent:.2f} | {published / spent:.0f}" if spent else " | "
        quality = f"{found.psnr:.2f} | {found.ssim:.3f} | {found.fsim:.3f} | {found.fine:.2f}"
        print(f"| {label} | {figures} | {quality} |")


def costs(models: dict[str, RestorationModel], batch: Batch) -> dict[str, float]:
    """Return the CPU time of one evaluation of a batch: both networks, and the published plain one."""
    import torch
    from plain_unet import PlainUNet

    from emdiffuse.config import Sampler

    slices, (height, width) = batch.shape[1], batch.shape[2:]
    plain = PlainUNet(models["unet"].network.state_dict())
    images = torch.randn(slices, 2 if slices == 1 else 3, height, width)
    index = () if slices == 1 else (torch.arange(slices),)

    def call_plain() -> None:
        with torch.inference_mode():
            plain(images, torch.full((slices,), 0.5), *index)

    def call(model: RestorationModel) -> None:
        model.restore(batch, Sampler(texture=1, steps=CALLS), lambda sample, step: torch.randn(batch.shape))

    return {"plain": least(call_plain)} | {
        name: least(partial(call, model)) / CALLS for name, model in models.items()
    }


def least(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the minimum CPU time of a few repetitions."""
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        found.append(time.process_time() - begin)
    return min(found)


def images(options: argparse.Namespace, folder: Path, side: int) -> Example:
    """Acquire the upper rows of the pair, once; return them, and the last square as a batch."""
    import tifffile
    import torch

    from emdiffuse.acquisition.image_pairs import acquire_pairs
    from emdiffuse.models.processes import Batch

    (noisy,) = options.first
    pair = {"noisy": tifffile.imread(noisy), "clean": tifffile.imread(options.second)}
    height, width = pair["clean"].shape
    rows = height - TEST_ROWS - MARGIN
    store = folder / "pairs.ome.zarr"
    for role, image in pair.items():
        (folder / "pairs" / role).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "pairs" / role / "0.tif", image[:rows])
    acquire_pairs(str(folder / "pairs"), (1, 1, 1), store, store.name.split(".")[0])
    intensity = measured(pair["noisy"][:rows])  # a target is scaled like its noisy image
    last = {role: unit(image[-side:, width - side :], intensity)[None, None] for role, image in pair.items()}
    return Example([store], Batch.of_images(torch.from_numpy(last["noisy"])), last["clean"][0], "emdiffuse-n")


def gaps(options: argparse.Namespace, folder: Path, side: int) -> Example:
    """Acquire the training volumes; return them, and the middle gap of the test volume as a batch."""
    import tifffile
    import torch

    from emdiffuse.acquisition.acquire import acquire
    from emdiffuse.models.processes import Batch

    stores = [folder / f"train{number}.ome.zarr" for number in range(len(options.first))]
    for store, source in zip(stores, options.first, strict=True):
        if not store.exists():
            acquire(str(source), (10.0, 10.0, 10.0), store, store.name.split(".")[0], override=True)
    volume = tifffile.imread(options.second)
    side = min(side, *volume.shape[1:]) // 16 * 16
    z = len(volume) // 2
    values = unit(volume[z - FACTOR : z + 2 * FACTOR + 1, :side, :side], measured(volume))
    batch = Batch.of_gaps(
        torch.from_numpy(values[::FACTOR][None].copy()), torch.arange(1, FACTOR) / FACTOR, FACTOR
    )
    return Example(stores, batch, values[FACTOR + 1 : 2 * FACTOR], "vemdiffuse-i")


def measured(values: NDArray[Any]) -> Intensity:
    """Return the range of a typical image or slice."""
    import numpy as np

    from emdiffuse.stores.intensity import Intensity

    low, high = np.percentile(values, [0.5, 99.5])
    return Intensity(low=float(low), high=float(high))


def unit(values: NDArray[Any], intensity: Intensity) -> NDArray[Any]:
    """Scale grey levels to [-1, 1]."""
    from emdiffuse.stores.intensity import to_unit

    return to_unit(values, intensity.at())


def plain(batch: Batch) -> Any:
    """Return the plain estimate of a native network: the image itself, or linear interpolation."""
    from emdiffuse.models.networks.native import plain_estimate

    return plain_estimate(batch.condition, batch.positions)


def trained(
    folder: Path, stores: list[Path], task: str, architecture: str, options: argparse.Namespace
) -> Path:
    """Train a network for the wall time, unless it exists; return the model's folder."""
    from emdiffuse.config import Model
    from emdiffuse.config.settings import parse
    from emdiffuse.patches.cut import cut_patches
    from emdiffuse.training.train import train

    native = architecture == "native"
    training = {
        "steps": 10**6,
        "minutes": (native and options.native_minutes) or options.minutes,
        "batch": 8 if native else 4,
        "learning_rate": 1e-3 if native else 3e-4,
        "warmup": 50,
        "validate_every": 10**6,
        "ema": 0.99,
    }
    values: dict[str, Any] = {
        "task": task,
        "datasets": [store.name.split(".")[0] for store in stores],
        "network": {"architecture": architecture},
        "training": training,
    }
    if task == "vemdiffuse-i":
        values["factor"] = FACTOR
    model = parse(Model, values, "model")
    out = folder / architecture
    if not (out / "best" / "model.json").exists():
        cut_patches(stores, model, folder / "patches.zarr")
        train(folder / "patches.zarr", model, architecture, out, "cpu")
    return out / "best"


def scores(restored: Any, truth: NDArray[Any]) -> Quality:
    """Measure one restored tile, (1, slices, height, width), against its truth."""
    import numpy as np

    from emdiffuse.evaluation.metrics import fsim, high_frequency_power, psnr, spectrum, ssim

    def power(image: NDArray[Any]) -> float:
        return high_frequency_power(spectrum(image), image.shape)

    pairs = list(zip(restored[0].numpy(), truth, strict=True))
    fine = sum(power(a) for a, _ in pairs) / sum(power(b) for _, b in pairs)

    def mean(measure: Callable[..., float]) -> float:
        return float(np.mean([measure(a, b, 2.0) for a, b in pairs]))

    return Quality(mean(psnr), mean(ssim), mean(fsim), fine)


if __name__ == "__main__":
    main()
