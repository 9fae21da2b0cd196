"""Tools of `gpu.py`: models, volumes, restorations that record their batches, floors of a network."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from helpers import INTENSITY, write_volume  # noqa: E402

from emdiffuse.config import Restoration  # noqa: E402
from emdiffuse.models.description import Description, NativeSpec, OwnSampler, UnetSpec  # noqa: E402
from emdiffuse.models.inference import RestorationModel  # noqa: E402
from emdiffuse.models.networks.build import build_network  # noqa: E402
from emdiffuse.models.networks.compilation import CompiledNetwork  # noqa: E402
from emdiffuse.models.networks.precision import autocast_for  # noqa: E402
from emdiffuse.models.networks.weights import save_model  # noqa: E402
from emdiffuse.models.processes import Batch  # noqa: E402
from emdiffuse.restoration import tiles  # noqa: E402
from emdiffuse.restoration.plan import open_array_of  # noqa: E402
from emdiffuse.restoration.planning import make_plan  # noqa: E402
from emdiffuse.stores.array import Array  # noqa: E402

DEMO = ROOT / "resources" / "demo" / "medulla_train.tif"
FACTOR = 6
_batches: list[int] = []


def model_folder(folder: Path, kind: str, toy: bool) -> Path:
    """Write a model with random weights and outputs of order one; return its folder."""
    path = folder / f"model-{kind}"
    if path.exists():
        return path
    small = {"multipliers": (1, 2), "blocks": 1} if toy else {}
    spec: NativeSpec | UnetSpec
    if kind == "published":
        spec, task = UnetSpec(in_channels=2, **small), "emdiffuse-n"
    else:
        gap = kind == "native"
        spec, task = NativeSpec(conditions=4 if gap else 1, residual_scale=0.2, **small), "vemdiffuse-i"
        task = task if gap else "emdiffuse-n"
    torch.manual_seed(0)
    network = build_network(spec)
    with torch.no_grad():
        for parameter in network.parameters():  # zeros at the exits would hide the network
            if not parameter.any():
                parameter.normal_(std=0.05)
    factors = (FACTOR,) if kind == "native" else ()
    own = OwnSampler(name="unipc", steps=8)
    save_model(path, network, Description(task=task, factors=factors, network=spec, sampler=own))
    return path


def batch_for(model: RestorationModel, count: int, side: int) -> Batch:
    """Return tiles of the demo's volume as a model sees them."""
    volume = torch.from_numpy(demo()[: 3 * FACTOR + 1, :side, :side].astype(np.float32) / 127.5 - 1)
    if model.description.task == "emdiffuse-n":
        return Batch.of_images(volume[:count, None].clone())
    condition = torch.stack([volume[::FACTOR].roll(shift, -1) for shift in range(count)])
    return Batch.of_gaps(condition, torch.arange(1, FACTOR) / FACTOR, float(FACTOR))


@functools.cache
def demo() -> NDArray[np.uint8]:
    """Return the demo's isotropic volume, (z, y, x)."""
    values: NDArray[np.uint8] = tifffile.imread(DEMO)
    return values


def isotropic_volume(folder: Path, side: int) -> Path:
    """Write a part of the demo's volume as a registered store."""
    return write_volume(folder / "iso.ome.zarr", demo()[:side, :side, :side], (10, 10, 10))


def thin_volume(folder: Path, slices: int, side: int) -> Path:
    """Write every 6th slice of a volume, the demo's repeated as often as needed."""
    path = folder / f"thin-{slices}-{side}.ome.zarr"
    if path.exists():
        return path
    values = demo()
    repeats = [-(-n // have) for n, have in zip((slices, side, side), values.shape, strict=True)]
    return write_volume(path, np.tile(values, repeats)[:slices, :side, :side], (10 * FACTOR, 10, 10))


def plan_for(
    folder: Path, volume: Path, model: Path, steps: int, tile: int, block: tuple[int, int, int]
) -> Path:
    """Plan a restoration."""
    settings = {
        "dataset": "a", "model": "m", "sampler": {"steps": steps},
        "tiling": {"tile": tile, "halo": 16 if tile < 128 else 32, "blend": 8, "block": block},
    }  # fmt: skip
    make_plan(volume, model, Restoration.model_validate(settings), folder / "plan.json")
    return folder / "plan.json"


def restore_volume(
    folder: Path,
    name: str,
    *,
    device: str,
    batch: int | None,
    precision: str,
    toy: bool,
    large: bool = False,
) -> NDArray[np.float32]:
    """Restore a small volume; return the weighted partial sums of its tiles, in grey levels of 255."""
    from emdiffuse.restoration.plan import read_plan

    size = (6, 96, 64) if toy else (9, 700, 256) if large else (6, 300, 128)
    slices, side, tile = size
    volume, model = thin_volume(folder, slices, side), model_folder(folder, "native", toy)
    path = plan_for(folder / name, volume, model, 2, tile, (8, 4, 4))
    with noted_batches():
        tiles.restore(path, 1, 1, device, batch=batch, precision=precision)
    plan = read_plan(path)
    stored = open_array_of(plan, plan.tiles)
    chunks = [_chunk(stored, index) for index in np.ndindex(*stored.grid) if stored.exists(index)]
    return np.stack(chunks) * np.float32((INTENSITY["high"] - INTENSITY["low"]) / 2)


def _chunk(array: Array, index: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.zeros(array.chunk, np.float32)
    part = array[array.box(index)]
    values[tuple(slice(0, n) for n in part.shape)] = part
    return values


class noted_batches:
    """Record the batch sizes that restorations try, in order."""

    def __enter__(self) -> None:
        _batches.clear()
        self.original = tiles._block_sums

        def noting(plan: Any, numbers: Any, volume: Any, model: Any, batch: int) -> Iterator[Any]:
            _batches.append(batch)
            return self.original(plan, numbers, volume, model, batch)

        tiles._block_sums = noting

    def __exit__(self, *_: object) -> None:
        tiles._block_sums = self.original


def batches_seen() -> list[int]:
    """Return the batch sizes that the last restoration tried."""
    return list(_batches)


def grey(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the largest difference between two restorations, in grey levels of 255."""
    return float(np.abs(one - other).max())


def flops(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Return the operations of an evaluation, two per multiplication."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops())


def moved(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Return the float32 bytes that an evaluation reads and writes, once per layer."""
    total = 0

    def count(module: nn.Module, seen: tuple[Any, ...], made: Any) -> None:
        nonlocal total
        for tensor in (*seen, made, *module.parameters(recurse=False)):
            total += 4 * tensor.numel() if isinstance(tensor, Tensor) else 0

    hooks = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return float(total)


def call_seconds(bench: Any, network: nn.Module, inputs: Any, precision: str, mode: str | None) -> float:
    """Return the time of an evaluation in a precision: eager, compiled, or as a CUDA graph."""
    autocast, _ = autocast_for(bench.device, precision)
    called = network if mode is None else CompiledNetwork(network, mode)
    with autocast:
        return float(bench.seconds(lambda: called(*inputs)))


@dataclass(frozen=True)
class Speed:
    """Output voxels per second, end to end and of the network alone; batch, and peak memory in bytes."""

    rate: float
    network: float
    batch: int
    peak: int


def speed(bench: Any, steps: int) -> Speed:
    """Restore a volume with a model of the default size, from opened stores to written tiles."""
    slices = bench.size(3, 13 if steps == 1 else 5)
    side, tile = bench.size(96, 1536), bench.size(64, 256)
    folder = bench.folder
    volume, model_at = thin_volume(folder, slices, side), model_folder(folder, "native", bench.toy)
    model = RestorationModel.load(model_at, str(bench.device))
    took = 0.0
    for attempt in ("warm", "timed"):  # the first one fills caches and selects kernels
        path = plan_for(folder / f"speed-{attempt}-{steps}", volume, model_at, steps, tile, (4, 4, 4))
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        with noted_batches():
            tiles.restore(path, 1, 1, str(bench.device), model)
        took = time.perf_counter() - begin
    from emdiffuse.restoration.plan import open_input, read_plan

    plan, batch = read_plan(path), batches_seen()[-1]
    grid = plan.grid
    peak = torch.cuda.max_memory_allocated() if bench.cuda else 0
    groups = [group for block in grid for group in tiles._batches(grid, block, batch)]
    known = tiles._read_batch(plan, grid, groups[0], open_input(plan)).to(bench.device)
    noise = torch.randn(known.shape, device=bench.device)
    once = bench.seconds(lambda: model.restore(known, plan.sampler, lambda *_: noise))
    count = sum(len(group) for group in groups)
    voxels = (slices - 1) * (FACTOR - 1) * side * side
    return Speed(voxels / took, voxels / (once * count / len(groups[0])), batch, peak)
