"""Bounded memory: a worker's need depends on blocks and tiles, not on the volume."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import write_volume

from emdiffuse.restoration.footprint import LIBRARIES

# a separate process: a peak never falls, and a forked child's includes its parent's memory
STAGE = """
import json, sys
import torch
from pathlib import Path
from emdiffuse.runtime.allocator import return_freed_memory
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.tiles import restore
from emdiffuse.restoration.stitch import pyramid, stitch
torch.set_num_threads(1)

def peak():
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024 / 1e6

imported = peak()
stage, plan = sys.argv[1], Path(sys.argv[2])
if stage == "plan":
    from emdiffuse.config import Restoration
    make_plan(Path(sys.argv[3]), Path(sys.argv[4]), Restoration.model_validate_json(sys.argv[5]), plan)
elif stage == "restore":
    restore(plan, 1, int(sys.argv[3]), "cpu")
elif stage == "fill":
    import numpy as np
    from emdiffuse.restoration.plan import read_plan
    from emdiffuse.stores.array import Array
    array = Array(read_plan(plan).tiles)
    for index in np.ndindex(*array.grid):
        array[array.box(index)] = np.full(array.chunk, sum(index) % 7 / 7, np.float32)
elif stage == "stitch":
    return_freed_memory()  # as the command does
    stitch(plan, 1, 1)
else:
    return_freed_memory()
    pyramid(plan)
print(json.dumps({"peak": peak(), "imported": imported}))
"""

SETTINGS = {
    "dataset": "a",
    "model": "m",
    "sampler": {"steps": 1},
    "tiling": {"tile": 128, "halo": 16, "blend": 16, "block": [1, 2, 2]},
}


def measure(*arguments: object) -> dict[str, float]:
    """Run a stage in a separate process; return its peak memory, and that of its imports, in MB."""
    done = subprocess.run(
        [sys.executable, "-c", STAGE, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def peaks(medulla, small_model, tmp_path_factory):
    """Peak memory of each stage for a volume and one eight times as large."""
    found = {}
    for size, (slices, side) in {"small": (13, 768), "large": (25, 1536)}.items():
        folder = tmp_path_factory.mktemp(size)
        values = np.tile(medulla[:slices], (1, 9, 9))[:, :side, :side]
        path = write_volume(folder / "a.ome.zarr", values, (60, 10, 10))
        plan = folder / "plan.json"
        found[size, "plan"] = measure("plan", plan, path, small_model, json.dumps(SETTINGS))
        # the same number of blocks in both volumes, so that only the volume differs
        found[size, "restore"] = measure("restore", plan, json.loads(plan.read_text())["blocks"] // 6)
        measure("fill", plan)
        found[size, "stitch"] = measure("stitch", plan)
        found[size, "pyramid"] = measure("pyramid", plan)
        found[size, "said"] = json.loads(plan.read_text())["memory_mb"]
    return found


@pytest.mark.parametrize("stage", ["plan", "restore", "stitch", "pyramid"])
def test_peak_memory_does_not_grow_with_the_volume(peaks, stage):
    """Eight times the volume; a fifth more is allowed, as the small one does not fill whole shards."""
    assert peaks["large", stage]["peak"] < 1.2 * peaks["small", stage]["peak"], peaks


@pytest.mark.parametrize("stage", ["restore", "stitch", "pyramid"])
def test_the_plan_says_how_much_memory_a_worker_needs(peaks, stage):
    """The memory of imports differs between machines and builds of torch, so only the rest is tested.

    `test_starting.py` tests how small stages start without torch; here all have loaded it.
    """
    for size in ("small", "large"):
        told, needed = peaks[size, "said"][stage], peaks[size, stage]
        assert needed["peak"] - needed["imported"] < told - LIBRARIES[stage], peaks
        if stage == "restore":
            assert needed["peak"] < told, peaks
