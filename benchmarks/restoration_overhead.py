"""Overhead of a restoration outside its network: reading, noise, blending and writing, each alone.

    python benchmarks/restoration_overhead.py

A network of the default size with initial weights restores a synthetic volume on one thread. Each part is
timed alone, over the same tiles and blocks, as if nothing ran in parallel (in a worker, reading, noise and
writing have their own threads), and compared with the whole restoration in the same run.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import make_model, make_volume

from emdiffuse.config import Restoration
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.processes import Batch
from emdiffuse.restoration import tiles as parts
from emdiffuse.restoration.plan import open_array_of, open_input
from emdiffuse.restoration.planning import make_plan

SETTINGS = {"dataset": "a", "model": "m", "sampler": {"samples": 1}}


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of a task, which other processes hardly affect."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=400)
    parser.add_argument("--slices", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        volume = make_volume(folder / "a.ome.zarr", (options.slices, options.side, options.side))
        model = RestorationModel.load(make_model(folder / "model"))
        path = folder / "plan.json"
        plan = make_plan(volume, folder / "model", Restoration.model_validate(SETTINGS), path)
        source, grid, tiles = open_input(plan), plan.grid, open_array_of(plan, plan.tiles)
        groups = [(block, group) for block in grid for group in parts._batches(grid, block, 1)]
        known = model.description.draws(plan.sampler)
        batches: list[Batch] = []
        noises: list[list[Any]] = []
        results: list[list[Any]] = []
        rows = {
            "reading": seconds(
                lambda: batches.extend(parts._read_batch(plan, grid, g, source) for _, g in groups)
            ),
            "noise": seconds(
                lambda: noises.extend(
                    [parts._noise(plan, grid, g, *d, model.device) for d in known] for _, g in groups
                )
            ),
        }

        def network() -> None:
            for batch, noise in zip(batches, noises, strict=True):
                white = iter(noise)
                results.append(parts._restore_batch(plan, model, batch, lambda *_, w=white: next(w)))

        rows["network"] = seconds(network)
        sums = {b.index: torch.zeros((len(plan.quantities), *b.shape)).numpy() for b in grid}

        def blend() -> None:
            for (block, group), values in zip(groups, results, strict=True):
                parts._blend(sums[block.index], block, grid, group[0], [value[0] for value in values])

        rows["blending"] = seconds(blend)

        def write() -> None:
            for block in grid:
                parts._write(tiles, block, sums[block.index])

        rows["writing"] = seconds(write)
        plan = make_plan(
            volume, folder / "model", Restoration.model_validate(SETTINGS), folder / "b/plan.json"
        )
        rows["the whole restoration"] = seconds(
            lambda: parts.restore(folder / "b/plan.json", 1, 1, "cpu", model)
        )
    beside = sum(value for name, value in rows.items() if name in ("reading", "noise", "blending", "writing"))
    rows["all but the network"] = beside
    print(f"{len(groups)} tiles of {grid.y.tile} x {grid.x.tile}, {plan.sampler.steps} evaluations each\n")
    print("| part | CPU seconds | share of the network's |\n| --- | --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} | {value / rows['network']:.1%} |")


if __name__ == "__main__":
    main()
