"""Everything that runs on a GPU, checked against the CPU and timed, in one command of at most four minutes.

    python benchmarks/gpu.py --out DIR [--device cuda] [--minutes 4] [--toy]

Each row of the table is a check: the measured value, its bound or goal, and whether it holds. Rows are
written to DIR/gpu.json as they come, so an interrupted run keeps its results; the table comes last. `--toy`
uses small sizes that suit a CPU; its timings have no bounds, and features only of GPUs (CUDA graphs, running
out of GPU memory) are listed as skipped.

Correctness: noise bit by bit; one evaluation of each network, and a restoration by each process, in float32
within 1e-4 of the CPU; lower precisions in dB of the restored image; compiled networks; batches of 1 and as
large as memory allows; running out of memory; an interrupted training; a volume restored by GPU and by CPU.

Speed, each beside its floor: operations over the measured rate of matrix products of this device, bytes over
its memory bandwidth. A restoration is timed from opened stores to written tiles.

For an offline machine, `benchmarks/gpu_pack.sh` collects the missing wheels in an ignored folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "unit")]
import gpu_parts as parts  # noqa: E402
from gpu_table import Bench, Table  # noqa: E402
from plain_unet import PlainUNet, random_weights  # noqa: E402

from emdiffuse.config import Model, Sampler  # noqa: E402
from emdiffuse.models.inference import RestorationModel  # noqa: E402
from emdiffuse.models.networks.build import NativeNetwork, UNet, channels_last  # noqa: E402
from emdiffuse.models.networks.precision import autocast_for  # noqa: E402
from emdiffuse.patches.cut import PatchStore, cut_patches  # noqa: E402
from emdiffuse.restoration.device_noise import device_noise  # noqa: E402
from emdiffuse.restoration.noise import noise_field  # noqa: E402
from emdiffuse.runtime.interruption import Interrupted, Stop  # noqa: E402
from emdiffuse.training import feed  # noqa: E402
from emdiffuse.training import train as training  # noqa: E402
from emdiffuse.training.parallel import Ranks  # noqa: E402
from emdiffuse.training.state import new_state  # noqa: E402

PRECISIONS = {"tf32": 60.0, "bfloat16": 40.0, "float16": 55.0}
"""Minimum PSNR (dB, range 2) of a restoration in a precision against float32 on the CPU."""
HOURS = {1: 2.0, 8: 12.0}
"""GPU-hours for 10^12 voxels of output, by network evaluations: the goals."""


# ------------------------------------------------------------------------------------------------- correct


def noise_bits(bench: Bench) -> None:
    """Check the noise field bit by bit, also far from the origin."""
    origins, shape, wrong = [(0, -40, 7), (2**20, 2**22 + 5, 63)], (3, 200, 150), 0
    for seed in (0, 2**70 + 9):
        drawn = device_noise(seed, 2, 5, origins, shape, bench.device).cpu().numpy()
        expected = np.stack([noise_field(seed, 2, 5, origin, shape) for origin in origins])
        wrong += int((drawn.view(np.uint32) != expected.view(np.uint32)).sum())
    bench.table.at_most("noise: values that differ from the CPU's", wrong, 0)


def filled(network: nn.Module) -> nn.Module:
    """Give a network random weights, none of them zero."""
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(random_weights(shapes, seed=0))
    return network.eval()


def network_inputs(network: nn.Module, count: int, side: int) -> tuple[Tensor, ...]:
    """Return the arguments of an evaluation for a number of tiles, on the CPU."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(count, *shape, side, side, generator=generator)

    gamma = torch.full((count,), 0.5)
    if isinstance(network, UNet):
        seen = next(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))
        return (random(seen), gamma) if seen == 2 else (random(seen), gamma, torch.full((count,), 2))
    assert isinstance(network, NativeNetwork)
    gap = network.entry.in_channels > 4
    depth, conditions = (5, 4) if gap else (1, 1)
    positions = torch.arange(1, depth + 1).expand(count, -1) / (depth + 1)
    return (
        random(depth), gamma, random(conditions), positions,
        torch.full((count,), depth + 1.0 if gap else 1.0), torch.zeros(count),
    )  # fmt: skip


def networks(toy: bool) -> dict[str, nn.Module]:
    """Return the published networks and the native ones, with random weights."""
    small: dict[str, Any] = {"base_channels": 32, "multipliers": (1, 2)} if toy else {}
    return {
        "published 2-D": filled(UNet(in_channels=2, **small)),
        "published vEM": filled(UNet(in_channels=3, slice_index=True, **small)),
        "native image": filled(NativeNetwork(conditions=1)),
        "native gap": filled(NativeNetwork()),
    }


@torch.inference_mode()
def network_calls(bench: Bench) -> None:
    """Check one evaluation of each network in float32 against the CPU."""
    for name, network in networks(bench.toy).items():
        inputs = network_inputs(network, 2, bench.size(32, 128))
        expected = network(*inputs)
        with autocast_for(bench.device, "float32")[0]:
            found = channels_last(network.to(bench.device))(*(v.to(bench.device) for v in inputs)).cpu()
        error = float((found - expected).abs().max() / expected.abs().max())
        bench.table.at_most(f"call, {name}: float32 against the CPU, of the largest value", error, 1e-4)


PROCESSES: dict[str, tuple[str, dict[str, object]]] = {
    "native, mean": ("native", {"steps": 1}),
    "native, unipc 8": ("native", {"name": "unipc", "steps": 8}),
    "native, heun 4": ("native", {"name": "heun", "steps": 4}),
    "native image, mean": ("image", {"steps": 1}),
    "published, ddim 8": ("published", {"name": "ddim", "steps": 8}),
    "published, dpm++ 8": ("published", {"name": "dpm++", "steps": 8}),
    "published, ddpm 20": ("published", {"name": "ddpm", "steps": 20}),
}


def restored(model: RestorationModel, sampler: dict[str, object], side: int) -> Tensor:
    """Return a model's restoration of two fixed tiles, on the CPU."""
    batch = parts.batch_for(model, 2, side)
    generator = torch.Generator().manual_seed(3)
    drawn = {step: torch.randn(batch.shape, generator=generator) for step in range(20)}
    settings = Sampler.model_validate(sampler)
    return model.restore(batch, settings, lambda _, step: drawn[step].to(model.device))[0].cpu()


def processes(bench: Bench) -> None:
    """Check a restoration by each process, in float32 and lower precisions, against the CPU."""
    side = bench.size(32, 128)
    for name, (kind, sampler) in PROCESSES.items():
        folder = parts.model_folder(bench.folder, kind, bench.toy)
        expected = restored(RestorationModel.load(folder), sampler, side)
        load = partial(RestorationModel.load, folder, str(bench.device))
        error = float((restored(load(precision="float32"), sampler, side) - expected).abs().max())
        bench.table.at_most(f"restored, {name}: float32 against the CPU (range 2)", error, 1e-4)
        for precision, least in PRECISIONS.items() if bench.cuda else ():
            rough = restored(load(precision=precision), sampler, side)
            psnr = float(10 * torch.log10(4 / (rough - expected).square().mean()))
            bench.table.at_least(f"restored, {name}: {precision} against float32", psnr, least, "dB")


def compiled(bench: Bench) -> None:
    """Check compiled networks, and CUDA graphs, against eager ones."""
    if not bench.cuda:
        bench.table.add("compiled networks and CUDA graphs", "left out", bound="a GPU's")
        return
    for kind in ("native", "published"):
        folder = parts.model_folder(bench.folder, kind, bench.toy)
        sampler: dict[str, object] = {"steps": 8}
        model = RestorationModel.load(folder, str(bench.device), "float32")
        expected = restored(model, sampler, 128)
        for mode in ("default", "reduce-overhead"):
            error = float((restored(model.compiled(mode), sampler, 128) - expected).abs().max())
            bench.table.at_most(f"compiled, {kind}, {mode}: against eager (range 2)", error, 1e-4)


def volumes(bench: Bench) -> None:
    """Check a small volume on the CPU and the device, in one batch and in many, and short of memory."""
    run = partial(parts.restore_volume, bench.folder, toy=bench.toy)
    expected = run("cpu", device="cpu", batch=1, precision="float32")
    one = run("one", device=str(bench.device), batch=1, precision="float32")
    auto = run("auto", device=str(bench.device), batch=None, precision="float32")
    bench.table.at_most("volume, device against the CPU, float32", parts.grey(one, expected), 0.1, "of 255")
    bench.table.at_most("volume, batches of 1 against auto, float32", parts.grey(auto, one), 0.1, "of 255")
    if not bench.cuda:
        bench.table.add("out of memory: the batch is halved", "left out", bound="a GPU's")
        return
    total, torch_floor = torch.cuda.get_device_properties(bench.device).total_memory, 2**30
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(torch_floor / total)
    try:
        short = run("short", device=str(bench.device), batch=1024, precision="float32", large=True)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    whole = run("roomy", device=str(bench.device), batch=1, precision="float32", large=True)
    batches = parts.batches_seen()
    bench.table.add(
        "out of memory: batches tried", " > ".join(map(str, batches)), "", "halved", batches[-1] < batches[0]
    )
    bench.table.at_most("out of memory: against roomy, float32", parts.grey(short, whole), 0.1, "of 255")


def interrupted(bench: Bench) -> None:
    """Check an interrupted and resumed training against an uninterrupted one."""
    store, model = patches(bench), settings(bench, steps=12, batch=4)

    class After(Stop):
        """A stop signal after a number of checks."""

        looks = 0

        @property
        def number(self) -> int:  # type: ignore[override]
            self.looks += 1
            return 15 if self.looks > 5 else 0

    whole, parted = (bench.folder / name for name in ("whole", "parted"))
    training.train(store, model, "m", whole, str(bench.device))
    try:
        training.train(store, model, "m", parted, str(bench.device), After())
        stopped = False
    except Interrupted:
        stopped = True
    training.train(store, model, "m", parted, str(bench.device))
    first, second = (RestorationModel.load(f / "best").network.state_dict() for f in (whole, parted))
    error = max(float((first[name] - second[name]).abs().max()) for name in first)
    bench.table.add("training: a signal stops it, its state saved", str(stopped), "", "True", stopped)
    # backward kernels add in arbitrary order
    bench.table.at_most("training: resumed against uninterrupted, weights", error, 1e-3 if bench.cuda else 0)


# ---------------------------------------------------------------------------------------------------- fast


def floors(bench: Bench) -> dict[str, float]:
    """Measure the rate of matrix products by precision (FLOP/s), and the memory's bandwidth (B/s)."""
    side, found = bench.size(256, 8192), {}
    for precision in ("float32", *PRECISIONS) if bench.cuda else ("float32",):
        autocast, _ = autocast_for(bench.device, precision)
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
        a = torch.randn(side, side, device=bench.device, dtype=dtype)
        with autocast:
            found[precision] = 2 * side**3 / bench.seconds(partial(torch.matmul, a, a))
        bench.table.add(f"floor: matrix products in {precision}", found[precision] / 1e12, "TFLOP/s")
    block = torch.empty(bench.size(2**22, 2**30), device=bench.device, dtype=torch.uint8)
    found["bytes"] = 2 * block.numel() / bench.seconds(lambda: block.clone())
    bench.table.add("floor: bandwidth of the memory", found["bytes"] / 1e9, "GB/s")
    return found


@torch.inference_mode()
def call_times(bench: Bench) -> None:
    """Time one evaluation of the published network, plain and ours, and of the native one."""
    rates, side = floors(bench), bench.size(32, 256)
    for name, network in networks(bench.toy).items():
        if name not in ("published 2-D", "native gap"):
            continue
        count = bench.size(1, 8 if name.startswith("published") else 32)
        inputs = tuple(v.to(bench.device) for v in network_inputs(network, count, side))
        autocast_for(bench.device, "tf32")
        flops = parts.flops(network.to(bench.device), inputs)
        plain = None
        if name.startswith("published") and not bench.toy:
            textbook = PlainUNet({k: v.to(bench.device) for k, v in network.state_dict().items()})
            plain = bench.seconds(partial(textbook, *inputs))
            bench.table.add(f"call, {name}: plain (eager, NCHW, tf32)", 1000 * plain / count, "ms a tile")
        fast = channels_last(network)
        moved = parts.moved(fast, inputs)
        for precision in ("tf32", "bfloat16") if bench.cuda else ("float32",):
            bytes_ = moved / (2 if precision == "bfloat16" else 1)
            floor = max(flops / rates[precision], bytes_ / rates["bytes"])
            for mode in (None, "default", "reduce-overhead") if bench.cuda else (None,):
                took = parts.call_seconds(bench, fast, inputs, precision, mode)
                what = f"call, {name}: {precision}, {mode or 'eager'}"
                bench.table.add(what, 1000 * took / count, "ms a tile", f"floor {1000 * floor / count:.3g}")
                if plain and precision == "bfloat16" and mode is None:
                    bench.table.at_least(f"call, {name}: plain over ours", plain / took, 2.0, "x")


def restoration_speed(bench: Bench) -> None:
    """Measure voxels per second from opened stores to written tiles, and the share outside the network."""
    for steps, goal in HOURS.items():
        found = parts.speed(bench, steps)
        hours = 1e12 / found.rate / 3600
        name = f"restore, {steps} evaluation{'s' if steps > 1 else ''}"
        bench.table.add(f"{name}: output", found.rate / 1e6, "Mvoxel/s")
        bench.table.add(f"{name}: network alone", found.network / 1e6, "Mvoxel/s")
        share = 1 - found.rate / found.network
        what = f"{name}: time that is not the network's"
        bench.table.add(what, 100 * share, "%", "<= 10", bench.goal(share <= 0.1))
        what = f"{name}: hours for 1 TB of output"
        bench.table.add(what, hours, "h", f"<= {goal:g}", bench.goal(hours <= goal))
        if bench.cuda:
            what = f"{name}: peak of the GPU's memory"
            bench.table.add(what, found.peak / 2**30, "GiB", f"batch {found.batch}")


def training_speed(bench: Bench) -> None:
    """Measure patches per second with each feed, against the pure step."""
    store = PatchStore(patches(bench))
    model = settings(bench, steps=1000, batch=bench.size(4, 256))
    ranks = Ranks(bench.device)
    own, count = ranks.part(model.training.batch), bench.size(2, 30)
    state = new_state(model, store, bench.device)

    def rate(examples: Callable[[], tuple]) -> float:
        def steps() -> None:
            for _ in range(count):
                training._backward(state, state.network, model.training, examples(), own, ranks)
                training._update(state, model.training, 0.5)

        return count * model.training.batch / bench.seconds(steps, repeats=3)

    one = feed.draw_batch(store, model, 0, own)
    one = (one[0].to(bench.device), one[1].to(bench.device))
    pure = rate(lambda: one)
    bench.table.add("training: the pure step", pure, "patches/s")
    for kind in ("device", "workers"):
        fed_by = settings(bench, 1000, model.training.batch, feed=kind)
        examples = feed.batches(store, fed_by, own, 0, bench.device)
        fed = rate(partial(next, examples))
        bound, holds = (">= 90 %", bench.goal(fed >= 0.9 * pure)) if kind == "device" else ("", None)
        bench.table.add(f"training: fed by {kind}", fed, f"patches/s, {100 * fed / pure:.0f} %", bound, holds)


def settings(bench: Bench, steps: int, batch: int, **others: object) -> Model:
    """Return the settings of a small gap training."""
    network = {"channels": 8, "multipliers": [1, 2], "blocks": 1} if bench.toy else {"channels": 32}
    return Model.model_validate({
        "task": "vemdiffuse-i", "datasets": ["a"], "factor": [3, 6] if not bench.toy else 3,
        "patches": {"size": bench.size(32, 64), "overlap": 0.5, "validation": 0.25},
        "network": network, "augmentation": {"gain": 0.2, "noise": 0.05},
        "training": {"steps": steps, "batch": batch, "validate_every": 1000, **others},
    })  # fmt: skip


def patches(bench: Bench) -> Path:
    """Cut training patches from the demo's volume, once."""
    store = bench.folder / "patches.zarr"
    if not store.exists():
        volume = parts.isotropic_volume(bench.folder, bench.size(64, 160))
        cut_patches([volume], settings(bench, 1, 4), store)
    return store


CHECKS = (
    *(noise_bits, network_calls, processes, volumes, interrupted),
    *(call_times, restoration_speed, training_speed, compiled),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    table = Table(options.out / "gpu.json", device, 60 * options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, options.toy, table, Path(folder))
        for check in CHECKS:
            what = (check.__doc__ or "").splitlines()[0]
            if time.monotonic() > table.end:
                table.add(what, "left out", bound="no time left")
                continue
            try:
                check(bench)
            except Exception as error:  # a failing check must not lose the rows of the others
                table.add(what, f"{type(error).__name__}: {error}", "", "no error", False)
            print(f"{table.end - time.monotonic():.0f} s left", file=sys.stderr, flush=True)
    table.print()
    sys.exit(any(row.holds is False for row in table.rows))


if __name__ == "__main__":
    main()
