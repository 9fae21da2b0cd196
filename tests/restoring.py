"""A small restoration from plan to pyramid, and helpers to inspect its results."""

from pathlib import Path

import torch

from emdiffuse.config import Restoration
from emdiffuse.models.description import Description
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.networks.weights import save_model
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.stores.array import Array

SAMPLER = {"name": "dpm++", "steps": 2, "samples": 2, "texture": 0.5, "seed": 3}


def settings(block=(2, 2, 1), tile=64, by="m", real_slices=None, **sampler):
    return Restoration.model_validate(
        {
            "dataset": "a",
            "model": by,
            "real_slices": real_slices,
            "sampler": {**SAMPLER, **sampler},
            "tiling": {"tile": tile, "halo": 8, "blend": 8, "block": block},
        }
    )


def image_model(folder, task="emdiffuse-n"):
    """Write a small image model with random weights, and return its folder."""
    torch.manual_seed(0)
    spec = {
        "conditions": 1,
        "channels": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "residual_scale": 0.2,
    }
    network = NativeNetwork(**spec)
    torch.nn.init.normal_(network.head.exit.weight, std=0.05)
    description = {
        "task": task,
        "network": {"architecture": "native", **spec},
    }
    save_model(folder, network, Description.model_validate(description))
    return folder


def run(dataset, model, folder, block=(2, 2, 1), workers=1, order=None, tile=64, batch=1, **others):
    """Plan, restore and stitch; return the plan. `others` are those of `settings`."""
    plan = make_plan(dataset, model, settings(block, tile, **others), folder / "plan.json")
    for worker in order or range(1, workers + 1):
        restore(folder / "plan.json", worker, workers, "cpu", batch=batch)
    for worker in range(1, workers + 1):
        stitch(folder / "plan.json", worker, workers)
    pyramid(folder / "plan.json")
    return plan


def content(folder):
    """Return the bytes of every file of the restored volume."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def volumes(plan):
    return [Array(plan.restored / name / "0")[:, :, :] for name in plan.quantities]


def chunks(plan):
    """Return the file of every block's chunk."""
    return [Array(plan.tiles).chunk_path((0, *plan.grid[n].index)) for n in range(len(plan.grid))]


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    values = bytearray(path.read_bytes())
    values[len(values) // 2] ^= 1
    path.write_bytes(values)


def cut(path: Path) -> None:
    """Truncate a file to its first half."""
    values = path.read_bytes()
    path.write_bytes(values[: len(values) // 2])
