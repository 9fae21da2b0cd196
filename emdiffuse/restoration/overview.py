"""Progress of restorations, read from their stores, whoever and wherever the workers are.

Conventions
-----------
* A block is done if its chunk exists; the modification time tells when. Rates are those of the last `WINDOW`
  seconds, over all workers, in voxels of blocks of average size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

from emdiffuse.restoration.plan import Plan, read_plan
from emdiffuse.runtime.errors import StoreError
from emdiffuse.runtime.progress import clock
from emdiffuse.stores.array import Array

WINDOW = 600.0


@dataclass(frozen=True)
class RestorationState:
    """Progress of a restoration.

    Attributes
    ----------
    name : str
        Dataset and model.
    stage : str
        Current stage: restoring, stitching, or finished.
    done, total : int
        Blocks, or shards, that are done, and their total number.
    voxels : int
        Voxels of blocks that remain to be restored.
    rate : float
        Recent rate, in voxels per second.
    """

    name: str
    stage: str
    done: int
    total: int
    voxels: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        if self.stage == "finished":
            return f"{self.name}: finished"
        unit = "blocks" if self.stage == "restoring" else "shards"
        share = f"{self.done} of {self.total} {unit} ({self.done / self.total:.0%})"
        return f"{self.name}: {self.stage}, {share}{_speed(self.voxels, self.rate)}"


def states(results: Path) -> list[RestorationState]:
    """Return the progress of all restorations in a results folder.

    Raises
    ------
    StoreError
        If there are none.
    """
    plans = sorted(results.glob("restored/*/*/plan.json"))
    if not plans:
        raise StoreError(f"{results}: there is no planned restoration; give the results folder")
    return [_state(read_plan(path)) for path in plans]


def table(found: list[RestorationState]) -> str:
    """Return a line for each restoration, and a total if several are running."""
    lines = [str(state) for state in found]
    running = [state for state in found if state.voxels]
    if len(running) > 1:
        voxels, rate = sum(state.voxels for state in running), sum(state.rate for state in running)
        lines.append(f"total: {len(running)} restorations{_speed(voxels, rate)}")
    return "\n".join(lines)


def _speed(voxels: int, rate: float) -> str:
    if not voxels:
        return ""
    if not rate:
        return f", no block in the last {clock(WINDOW)}"
    return f", {rate:.3g} voxels per second, {clock(voxels / rate)} left"


def _state(plan: Plan) -> RestorationState:
    name = f"{plan.facts.dataset} by {plan.facts.model}"
    if (plan.restored / "zarr.json").exists():
        return RestorationState(name, "finished", 0, 0)
    grid, now = plan.grid, time.time()
    busy = [z for z in range(grid.counts[0]) if not grid.idle(grid.at((z, 0, 0)))]
    total = len(busy) * grid.counts[1] * grid.counts[2]
    written = Array(plan.tiles).written()
    if len(written) < total:
        since = max(now - WINDOW, (plan.folder / "plan.json").stat().st_mtime)
        lately = [at for at in written.values() if at > since]
        a_block = prod(grid.volume) // len(grid)  # on average
        left = (total - len(written)) * a_block
        rate = len(lately) * a_block / max(now - since, 1.0)
        return RestorationState(name, "restoring", len(written), total, left, rate)
    shards = [Array(plan.restored / quantity / "0") for quantity in plan.outputs]
    done = sum(len(array.written()) for array in shards)
    return RestorationState(name, "stitching", done, sum(prod(array.grid) for array in shards))
