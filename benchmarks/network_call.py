"""Cost of one call of the published network: its plain form against the package's, with the same weights.

    python benchmarks/network_call.py [--repeats 15] [--threads 2] [--size 256]

Plain is `tests/unit/plain_unet.py`: float32, eager, NCHW, one obvious operation after the other. Both forms
are timed in turns in one process for each allocator, so that both meet the same machine:

- `stock`: glibc's defaults, as the published code is launched;
- `workers`: glibc keeps freed memory, as the commands `train` and `restore` set it (`emdiffuse.allocator`).

The ceiling is what this machine's convolutions reach by themselves: each 3x3 convolution of the plain network
is timed alone, channels last, and these times are summed. The package's network makes fewer multiplications,
since it folds the repetition of pixels into the kernels of three of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from plain_unet import PlainUNet, random_weights

from emdiffuse.allocator import keep_freed_memory
from emdiffuse.networks import UNet

ALLOCATORS = ("stock", "workers")
NETWORKS = {
    "2-D (n, r)": {"in_channels": 2},
    "vEM (i, a)": {"in_channels": 3, "slice_index": True},
}


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def convolutions(
    weights: dict[str, Tensor], inputs: tuple[Tensor, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of input and kernel of every convolution that one plain call makes."""
    shapes = []
    original = F.conv2d

    def recording(x: Tensor, weight: Tensor, *args: object, **kwargs: object) -> Tensor:
        shapes.append((tuple(x.shape), tuple(weight.shape)))
        return original(x, weight, *args, **kwargs)

    F.conv2d = recording
    try:
        PlainUNet(weights)(*inputs)
    finally:
        F.conv2d = original
    return shapes


def ceiling(shapes: list[tuple[tuple[int, ...], tuple[int, ...]]], repeats: int) -> tuple[float, float]:
    """Seconds that the 3x3 convolutions of a call take alone, and their operations (2 a multiplication)."""
    total = operations = 0.0
    for image, kernel in sorted(set(shapes)):
        if kernel[-1] != 3:
            continue
        x = torch.randn(image).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(kernel)
        F.conv2d(x, weight, padding=1)
        times = [seconds(lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)) for _ in range(repeats)]
        count = shapes.count((image, kernel))
        total += count * min(times)
        operations += count * 2.0 * weight.numel() * image[0] * image[2] * image[3]
    return total, operations


@torch.inference_mode()
def measure(size: int, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Time both forms under the allocator of this process."""
    torch.set_num_threads(threads)
    results = {}
    for name, kwargs in NETWORKS.items():
        network = UNet(**kwargs).eval()
        weights = random_weights(
            {key: list(value.shape) for key, value in network.state_dict().items()}, seed=0
        )
        network.load_state_dict(weights)
        plain = PlainUNet(weights)
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(1, kwargs["in_channels"], size, size, generator=generator), torch.tensor([0.5])]
        if "slice_index" in kwargs:
            inputs.append(torch.tensor([2]))
        expected = plain(*inputs)
        difference = ((network(*inputs) - expected).norm() / expected.norm()).item()
        times: dict[str, list[float]] = {"plain": [], "package": []}
        for _ in range(repeats):
            times["plain"].append(seconds(lambda plain=plain, inputs=inputs: plain(*inputs)))
            times["package"].append(seconds(lambda network=network, inputs=inputs: network(*inputs)))
        alone, operations = ceiling(convolutions(weights, tuple(inputs)), max(repeats // 3, 1))
        results[name] = {key: statistics.median(values) for key, values in times.items()} | {
            "difference": difference,
            "ceiling": alone,
            "throughput": operations / alone / 1e9,
        }
    return results


def report(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print one table."""
    print(
        f"{'network':<11} {'allocator':<10} {'plain':>8} {'package':>8} {'ratio':>6} {'difference':>11}",
        end="",
    )
    print(f" {'3x3 alone':>10} {'GFLOP/s':>8} {'package / 3x3 alone':>20}")
    for name in NETWORKS:
        for allocator, rows in results.items():
            row = rows[name]
            print(
                f"{name:<11} {allocator:<10} {row['plain']:>7.3f}s {row['package']:>7.3f}s"
                f" {row['plain'] / row['package']:>5.2f}x {row['difference']:>11.1e}"
                f" {row['ceiling']:>9.3f}s {row['throughput']:>8.0f}"
                f" {row['package'] / row['ceiling']:>19.2f}x"
            )
        launched = results["stock"][name]["plain"] / results["workers"][name]["package"]
        print(f"{name:<11} as launched (plain: stock, package: workers) {launched:.2f}x, aim 1.35x;", end=" ")
        same = min(rows[name]["plain"] / rows[name]["package"] for rows in results.values())
        print(f"same allocator, the lesser ratio {same:.2f}x, aim 1.15x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="height and width of the image")
    parser.add_argument(
        "--repeats", type=int, default=15, help="timed calls of each form; their median counts"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of a call")
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
    print(f"one call at {args.size} x {args.size}, float32, {args.threads} threads, median of {args.repeats}")
    report(results)


if __name__ == "__main__":
    main()
