"""Two single-thread workers against one, on the two cores of an idle machine.

    python benchmarks/parallel_efficiency.py

Each worker is a process with the threads of a workflow worker. They load the model and warm up; then, from a
common start, each restores its share of the same volume. The efficiency is the time of one worker for all
blocks over twice the time of two workers for half of them each; both are measured alternately in one run.
"""

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from memory import make_model, make_volume

SETTINGS = {"dataset": "a", "model": "m", "sampler": {"steps": 4}, "tiling": {"block": [1, 1, 1]}}


def work(path: Path, worker: int, workers: int, ready: Barrier) -> None:
    """Restore a share, from a common start."""
    import torch

    from emdiffuse.models.inference import RestorationModel
    from emdiffuse.restoration.plan import open_input, read_plan
    from emdiffuse.restoration.tiles import restore, restore_blocks
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    plan = read_plan(path)
    model = RestorationModel.load(plan.model)
    next(restore_blocks(plan, [0], open_input(plan), model))
    ready.wait()
    restore(path, worker, workers, "cpu", model)
    ready.wait()


def measure(path: Path, workers: int) -> float:
    """Return the seconds until a number of workers are done."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers + 1)
    processes = [context.Process(target=work, args=(path, n + 1, workers, ready)) for n in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return seconds


def main() -> None:
    from emdiffuse.config import Restoration
    from emdiffuse.restoration.planning import make_plan

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=640)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        volume = make_volume(folder / "a.ome.zarr", (3, options.side, options.side))
        model = make_model(folder / "model")
        for _ in range(options.repeats):
            times = []
            for workers in (1, 2):
                shutil.rmtree(folder / "out", ignore_errors=True)
                plan = make_plan(
                    volume, model, Restoration.model_validate(SETTINGS), folder / "out/plan.json"
                )
                times.append(measure(folder / "out/plan.json", workers))
            rows.append((*times, times[0] / (2 * times[1])))
    print(
        f"{len(plan.grid)} blocks\n\n| one worker (s) | two workers (s) | efficiency |\n| --- | --- | --- |"
    )
    for row in rows:
        print(f"| {row[0]:.2f} | {row[1]:.2f} | {row[2]:.3f} |")
    print(f"\nmedian: {statistics.median(row[2] for row in rows):.3f}")


if __name__ == "__main__":
    main()
