"""Training: the published 2-D network against a plain loop, memory with checkpointing, the loader.

    python benchmarks/training.py [--size 64] [--batch 16] [--steps 3] [--threads 1]

A step is forward, backward, AdamW and the moving average, in float32 on random images, in wall and CPU
seconds (the latter less affected by other load). "plain" is a textbook network and loop (eager, NCHW, stock
allocator), "package" is `training.train`. Each is a separate process, with its maximum resident set as the
memory. The loader reads and augments patches of a store on a warm file system.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # imported where needed: "plain" measures a process without the package
    from emdiffuse.config import Model
    from emdiffuse.patches.cut import PatchStore

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "tests/unit"))


def now() -> NDArray:
    """Return wall and CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def settings(options: argparse.Namespace, checkpointing: bool = False) -> dict[str, Any]:
    return {
        "task": "emdiffuse-n",
        "datasets": ["a"],
        "patches": {"size": options.size, "overlap": 0.5},
        "network": {"architecture": "unet", "checkpointing": checkpointing},
        "augmentation": {"blur": 0.2, "noise": 0.1},
        "training": {"batch": options.batch, "learning_rate": 5e-5, "ema": 0.9999, "precision": "float32"},
    }


def package(options: argparse.Namespace, checkpointing: bool) -> list[NDArray]:
    """Return the seconds of each step of the package's loop, without reading patches."""
    import torch

    from emdiffuse.config import Model
    from emdiffuse.models.processes import Batch
    from emdiffuse.training import train as training
    from emdiffuse.training.parallel import Ranks
    from emdiffuse.training.state import new_state

    model = Model.model_validate(settings(options, checkpointing))

    ranks = Ranks(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        state = new_state(model, patches(Path(folder), model, 4), ranks.device)
    images = torch.rand(options.batch, 1, options.size, options.size) * 2 - 1
    own, seconds = ranks.part(options.batch), []
    for _ in range(options.steps + 1):
        begin = now()
        training._backward(
            state, state.network, model.training, (Batch.of_images(images), images), own, ranks
        )
        training._update(state, model.training, 0.0)
        seconds.append(now() - begin)
    return seconds[1:]


def plain(options: argparse.Namespace) -> list[NDArray]:
    """Return the seconds of each step of a plain loop with a plain network of the same shape."""
    import torch
    from plain_unet import PlainUNet, random_weights

    from emdiffuse.models.description import UnetSpec
    from emdiffuse.models.networks.build import build_network

    shapes = {n: list(p.shape) for n, p in build_network(UnetSpec(in_channels=2)).state_dict().items()}
    weights = {n: p.requires_grad_() for n, p in random_weights(shapes, 0).items()}
    network, parameters = PlainUNet(weights), list(weights.values())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, 5e-5)
    images, seconds = torch.rand(options.batch, 1, options.size, options.size) * 2 - 1, []
    for _ in range(options.steps + 1):
        begin = now()
        gamma, noise = torch.rand(options.batch), torch.randn_like(images)
        level = gamma[:, None, None, None]
        noisy = level.sqrt() * images + (1 - level).sqrt() * noise
        loss = (network(torch.cat([images, noisy], 1), gamma) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average = [0.9999 * a + 0.0001 * p.detach() for a, p in zip(average, parameters, strict=True)]
        seconds.append(now() - begin)
    return seconds[1:]


def patches(folder: Path, model: Model, across: int) -> PatchStore:
    """Cut patches from two pairs of noise, each a number of patches across."""
    from helpers import write_pairs

    from emdiffuse.patches.cut import PatchStore, cut_patches

    images = np.random.default_rng(0).integers(0, 255, (2, 2, *2 * (across * model.patches.size,)), np.uint8)
    pairs = write_pairs(folder / "a", [(moving, fixed) for moving, fixed in images])
    cut_patches([pairs], model, folder / "p.zarr")
    return PatchStore(folder / "p.zarr")


def loader(options: argparse.Namespace) -> float:
    """Return the patches per second that two workers read and augment."""
    from emdiffuse.config import Model
    from emdiffuse.training import feed

    model = Model.model_validate(settings(options))
    with tempfile.TemporaryDirectory() as folder:
        examples = feed.batches(patches(Path(folder), model, 16), model, np.arange(options.batch), 0)
        for _ in range(3):
            next(examples)
        begin, count = time.perf_counter(), 40
        for _ in range(count):
            next(examples)
        return count * options.batch / (time.perf_counter() - begin)


def measure(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one case in a separate process."""
    arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps", "threads")]
    command = [sys.executable, __file__, "--case", what, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=["plain", "package", "checkpointing", "loader"])
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    if options.case is None:
        rows = {what: measure(what, options) for what in ("plain", "package", "checkpointing", "loader")}
        print(f"\nbatch {options.batch} of {options.size} px, {options.threads} thread(s)")
        print("| case | wall, s | patches/s | CPU, s | peak memory |\n" + "| --- " * 5 + "|")
        for what in ("plain", "package", "checkpointing"):
            clock, processor = rows[what]["seconds"]
            rate, memory = options.batch / clock, rows[what]["memory"]
            print(f"| {what} | {clock:.2f} | {rate:.2f} | {processor:.2f} | {memory:.0f} MiB |")
        print(f"| loader, 2 workers | | {rows['loader']['rate']:.0f} | | |")
        return
    import torch

    from emdiffuse.runtime.allocator import keep_freed_memory

    if options.case != "plain":
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    if options.case == "loader":
        print(json.dumps({"rate": loader(options)}))
        return
    seconds = plain(options) if options.case == "plain" else package(options, options.case == "checkpointing")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": np.median(seconds, 0).tolist(), "memory": memory}))


if __name__ == "__main__":
    main()
