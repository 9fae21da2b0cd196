"""Cost and quality against the published process: both networks trained with the same data and wall time.

    python benchmarks/published_process.py n NOISY.tif CLEAN.tif --minutes 10
    python benchmarks/published_process.py vem TRAIN.tif TEST.tif --minutes 10

`n` denoises the last 256 x 256 pixels of an image pair, whose rows above are trained on; `vem` fills one gap
of 256 x 256 pixels between two slices 6 apart; `--side` says another size. The published network is run by
its own process (1000 calls an image, 200 a slice) and in few calls (12 are the default for imported weights),
the native one by its defaults; all in one process, so that the ratios are of one run and one allocator. The
published network learns from batches of 4, which in this little time are worth more than fewer ones of 8.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

FACTOR = 6
TEST_ROWS = 256
MARGIN = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["n", "vem"])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--native-minutes", type=float, help="Less than --minutes, for the native network.")
    parser.add_argument("--calls", type=int, nargs="*", default=[8, 12, 20])
    parser.add_argument(
        "--side", type=int, default=256, help="Side of the square that is restored, in pixels."
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="Where to work; what is trained there is not trained again."
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary))


def run(options: argparse.Namespace, folder: Path) -> None:
    import torch

    from emdiffuse.allocator import keep_freed_memory
    from emdiffuse.config import Sampler
    from emdiffuse.inference import RestorationModel
    from emdiffuse.progress import setup

    setup()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    store, batch, truth, task = (images if options.task == "n" else gaps)(options, folder)
    models = {
        name: RestorationModel.load(trained(folder, store, task, name, options))
        for name in ("unet", "native")
    }
    long = Sampler(name="ddpm", steps=1000 if options.task == "n" else 200)
    runs = {
        "published network, published process": ("unet", long),
        **{f"published network, {n} calls": ("unet", Sampler(steps=n)) for n in options.calls},
        "native, one sample": ("native", Sampler()),
        "native, mean of 8 samples": ("native", Sampler(samples=8)),
        "native, one-call mean": ("native", Sampler(steps=1)),
    }
    slices = batch.shape[1]
    rows = {"input" if options.task == "n" else "linear": ("", "", scores(plain(batch), truth))}
    for label, (name, sampler) in runs.items():
        generator = torch.Generator().manual_seed(0)

        def white(sample: int, step: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(batch.shape, generator=generator)

        models[name].restore(batch, Sampler(steps=1), white)
        begin = time.perf_counter()
        restored, _ = models[name].restore(batch, sampler, white)
        rows[label] = (sampler, time.perf_counter() - begin, scores(restored, truth))
    whole = rows["published network, published process"][1]
    print(
        f"\n{torch.get_num_threads()} threads, freed memory kept, "
        f"{slices} slice(s) of {truth.shape[-2]} x {truth.shape[-1]}, "
        f"{options.minutes:g} minutes of training of the published network, "
        f"{options.native_minutes or options.minutes:g} of the native one\n"
    )
    print("| method | seconds | times less | PSNR | SSIM | FSIM | fine detail (truth = 1) |")
    print("| --- " * 7 + "|")
    for label, (_, seconds, (psnr, ssim, fsim, fine)) in rows.items():
        cost = f"{seconds:.2f} | {whole / seconds:.0f}" if seconds else " | "
        print(f"| {label} | {cost} | {psnr:.2f} | {ssim:.3f} | {fsim:.3f} | {fine:.2f} |")


def images(options: argparse.Namespace, folder: Path):
    """Write the pair's upper rows as a store of pairs; return it, and the last square as a batch."""
    import tifffile
    import torch

    from emdiffuse.processes import Batch
    from emdiffuse.volume import create_image_array, write_group, write_image

    pair = {"moving": tifffile.imread(options.first), "fixed": tifffile.imread(options.second)}
    height, width = pair["fixed"].shape
    rows = height - TEST_ROWS - MARGIN
    intensity = measured(pair["moving"][:rows])
    store = folder / "pairs.ome.zarr"
    for name, image in pair.items():
        part = image[None, :rows]
        array = create_image_array(store / "0000" / name / "0", part.shape, part.dtype)
        array[tuple(slice(0, n) for n in part.shape)] = part
        write_image(store / "0000" / name, name, (1, 1, 1), {"intensity": intensity})
    facts = {"kind": "pairs", "scale": 1, "sources": [], "fields": [{"group": "0000", "name": "0"}]}
    write_group(store, {"emdiffuse": {**facts, "intensity": {"moving": intensity, "fixed": intensity}}})
    last = {
        name: unit(image[-options.side :, width - options.side :], intensity)[None, None]
        for name, image in pair.items()
    }
    return store, Batch.of_images(torch.from_numpy(last["moving"])), last["fixed"][0], "emdiffuse-n"


def gaps(options: argparse.Namespace, folder: Path):
    """Acquire the training volume; return it, and the middle gap of the test volume as a batch."""
    import tifffile
    import torch

    from emdiffuse.acquisition import acquire
    from emdiffuse.processes import Batch

    store = folder / "train.ome.zarr"
    if not store.exists():
        acquire(str(options.first), (10.0, 10.0, 10.0), store, "train")
    volume = tifffile.imread(options.second)
    side = min(options.side, *volume.shape[1:]) // 16 * 16
    z = len(volume) // 2
    values = unit(volume[z - FACTOR : z + 2 * FACTOR + 1, :side, :side], measured(volume))
    positions = torch.arange(1, FACTOR)[None] / FACTOR
    batch = Batch(torch.from_numpy(values[::FACTOR][None].copy()), positions, torch.full((1,), float(FACTOR)))
    return store, batch, values[FACTOR + 1 : 2 * FACTOR], "vemdiffuse-i"


def measured(values):
    import numpy as np

    low, high = np.percentile(values, [0.5, 99.5])
    return {"low": float(low), "high": float(high)}


def unit(values, intensity):
    from emdiffuse.acquisition import to_unit

    return to_unit(values, intensity)


def plain(batch):
    from emdiffuse.networks.native import plain_estimate

    return plain_estimate(batch.condition, batch.positions)


def trained(folder: Path, store: Path, task: str, architecture: str, options: argparse.Namespace) -> Path:
    """Train a network for the wall time, unless it is there; return the folder of the model."""
    from emdiffuse.config import Model
    from emdiffuse.patches import cut_patches
    from emdiffuse.settings import parse
    from emdiffuse.training import train

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
    values = {
        "task": task,
        "datasets": ["train"],
        "network": {"architecture": architecture},
        "training": training,
    }
    if task == "vemdiffuse-i":
        values["factor"] = FACTOR
    model = parse(Model, values, "model")
    out = folder / architecture
    if not (out / "best" / "model.json").exists():
        cut_patches([store], model, folder / "patches.zarr")
        train(folder / "patches.zarr", model, architecture, out, "cpu")
    return out / "best"


def scores(restored, truth) -> tuple[float, float, float, float]:
    """Return PSNR, SSIM, FSIM and the ratio of power in fine detail, means over the slices."""
    import numpy as np

    from emdiffuse.metrics import fsim, high_frequency_power, psnr, ssim

    pairs = list(zip(restored[0].numpy(), truth, strict=True))
    fine = sum(high_frequency_power(a) for a, _ in pairs) / sum(high_frequency_power(b) for _, b in pairs)
    means = [float(np.mean([measure(a, b, 2.0) for a, b in pairs])) for measure in (psnr, ssim, fsim)]
    return means[0], means[1], means[2], fine


if __name__ == "__main__":
    main()
