"""Cost of one network evaluation, published or native: plain against the package's, with the same weights.

    python benchmarks/network_call.py [--repeats 15] [--threads 2] [--size 256]

The plain implementations are `tests/unit/plain_unet.py` and `plain_native.py`: float32, eager, NCHW, one
operation after the other. A native network restores an image, or the five slices of a gap; its condition is
bound once, as by a sampler. Both are timed alternately in one process per allocator, in CPU time, which other
load on the machine affects little:

- `stock`: glibc's defaults, as for the published code;
- `workers`: glibc keeps freed memory, as set by the commands `train` and `restore` (`runtime.allocator`).

The ceiling is the speed of this machine's convolutions alone: each 3x3 convolution of the plain network is
timed alone, channels last, and the times are summed. The package's networks need fewer multiplications: the
published one folds the repetition of pixels into three kernels, the native one caches what is constant
between evaluations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from plain_native import PlainNative
from plain_unet import PlainUNet, random_weights

from emdiffuse.models.networks.build import NativeNetwork, UNet
from emdiffuse.runtime.allocator import keep_freed_memory

ALLOCATORS = ("stock", "workers")
FACTOR = 6

Call = Callable[[], Tensor]
Network = TypeVar("Network", bound=nn.Module)
Shapes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def published(size: int, **settings: Any) -> tuple[Call, Call]:
    """Return one evaluation of the published network for an image: plain, and the package's."""
    network, weights = healthy(UNet(**settings))
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(1, settings["in_channels"], size, size, generator=generator), torch.tensor([0.5])]
    if "slice_index" in settings:
        inputs.append(torch.tensor([2]))
    plain = PlainUNet(weights)
    return lambda: plain(*inputs), lambda: network(*inputs)


def native(size: int, slices: int, **settings: Any) -> tuple[Call, Call]:
    """Return one evaluation of the native network for some slices: plain, and the package's."""
    network, weights = healthy(NativeNetwork(**settings))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, slices, size, size, generator=generator)
    condition = torch.randn(1, settings.get("conditions", 4), size, size, generator=generator)
    positions = torch.arange(1, slices + 1)[None] / (slices + 1)
    known = (condition, positions, torch.full((1,), slices + 1.0 if slices > 1 else 1.0), torch.zeros(1))
    plain, gamma, flow = PlainNative(weights), torch.tensor([0.5]), network.bind(*known)
    return lambda: plain(x, gamma, *known), lambda: flow(x, gamma)


NETWORKS: dict[str, Callable[[int], tuple[Call, Call]]] = {
    "2-D (n, r)": partial(published, in_channels=2),
    "vEM (i, a)": partial(published, in_channels=3, slice_index=True),
    "native, image": partial(native, slices=1, conditions=1),
    "native, gap": partial(native, slices=FACTOR - 1),
}


def healthy(network: Network) -> tuple[Network, dict[str, Tensor]]:
    """Give a network random weights, none of them zero; return both."""
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    weights = random_weights(shapes, seed=0)
    network.load_state_dict(weights)
    return network.eval(), weights


def seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def convolutions(call: Call) -> Shapes:
    """Return the shapes of input and kernel of every convolution in one evaluation."""
    shapes: Shapes = []
    original = F.conv2d

    def recording(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append((tuple(x.shape), tuple(weight.shape)))
        return original(x, weight, *args, **kwargs)

    F.conv2d = recording  # type: ignore[assignment]  # it takes the arguments of every overload
    try:
        call()
    finally:
        F.conv2d = original
    return shapes


def ceiling(shapes: Shapes, repeats: int) -> tuple[float, float]:
    """Return the seconds of the 3x3 convolutions alone, and their operations (2 per multiplication)."""
    total = operations = 0.0
    for image, kernel in sorted(set(shapes)):
        if kernel[-1] != 3:
            continue
        x = torch.randn(image).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(kernel)
        alone = partial(F.conv2d, x, weight, padding=1)
        alone()
        times = [seconds(alone) for _ in range(repeats)]
        count = shapes.count((image, kernel))
        total += count * min(times)
        operations += count * 2.0 * weight.numel() * image[0] * image[2] * image[3]
    return total, operations


@torch.inference_mode()
def measure(size: int, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Time both implementations with the allocator of this process."""
    torch.set_num_threads(threads)
    results = {}
    for name, make in NETWORKS.items():
        plain, package = make(size)
        expected = plain()
        difference = ((package() - expected).norm() / expected.norm()).item()
        times = [(seconds(plain), seconds(package)) for _ in range(repeats)]
        alone, operations = ceiling(convolutions(plain), max(repeats // 3, 1))
        results[name] = dict(zip(("plain", "package"), map(min, zip(*times, strict=True)), strict=True)) | {
            "difference": difference,
            "ceiling": alone,
            "throughput": operations / alone / 1e9,
        }
    return results


def report(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print one table."""
    print(
        f"{'network':<13} {'allocator':<10} {'plain':>8} {'package':>8} {'ratio':>6} {'difference':>11}",
        end="",
    )
    print(f" {'3x3 alone':>10} {'GFLOP/s':>8} {'package / 3x3 alone':>20}")
    for name in NETWORKS:
        for allocator, rows in results.items():
            row = rows[name]
            print(
                f"{name:<13} {allocator:<10} {row['plain']:>7.3f}s {row['package']:>7.3f}s"
                f" {row['plain'] / row['package']:>5.2f}x {row['difference']:>11.1e}"
                f" {row['ceiling']:>9.3f}s {row['throughput']:>8.0f}"
                f" {row['package'] / row['ceiling']:>19.2f}x"
            )
        launched = results["stock"][name]["plain"] / results["workers"][name]["package"]
        print(f"{name:<13} as launched (plain: stock, package: workers) {launched:.2f}x;", end=" ")
        same = min(rows[name]["plain"] / rows[name]["package"] for rows in results.values())
        print(f"same allocator, the lesser ratio {same:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="height and width of the image")
    parser.add_argument(
        "--repeats", type=int, default=15, help="timed evaluations of each; the minimum counts"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads per evaluation")
    parser.add_argument("--child", choices=ALLOCATORS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.child == "workers" and not keep_freed_memory():
            sys.exit("the C library does not take the settings, or MALLOC_ variables are set")
        print(json.dumps(measure(args.size, args.repeats, args.threads)))
        return
    results = {}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    for allocator in ALLOCATORS:
        command = [sys.executable, __file__, f"--child={allocator}", f"--size={args.size}"]
        command += [f"--repeats={args.repeats}", f"--threads={args.threads}"]
        child = subprocess.run(command, env=inherited, stdout=subprocess.PIPE, check=True)
        results[allocator] = json.loads(child.stdout)
    print(
        f"one evaluation, {args.size} x {args.size}, float32, {args.threads} threads; least of {args.repeats}"
    )
    print("goals for the published networks: as launched 1.35x, with the same allocator 1.15x")
    report(results)


if __name__ == "__main__":
    main()
