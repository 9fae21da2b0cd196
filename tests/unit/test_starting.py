"""Imports of the stages: those without a network start without torch, and none imports unused packages.

Each stage runs as in the workflow, on a toy volume, in a separate process.
"""

import json
import subprocess
import sys
from typing import Any

import pytest
import tifffile

from emdiffuse.config import Config

RUN = """
import json, sys
from pathlib import Path
from emdiffuse.cli import app
app(sys.argv[2:], standalone_mode=False)
loaded = sorted({name.partition(".")[0] for name in sys.modules})
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
json.dump([loaded, int(peak.split()[1]) / 1024], open(sys.argv[1], "w"))
"""
HEAVY = {
    "cv2", "dask", "matplotlib", "ome_zarr", "pandas", "scipy", "skimage", "snakemake", "submitit",
    "tensorboard", "torch", "torchvision",
}  # fmt: skip
USED: dict[str, set[str]] = {
    "acquire": set(),
    "register": {"matplotlib", "scipy"},  # it draws every dataset's alignment
    "keep-every": set(),
    "patches": set(),
    "plan": set(),
    "restore": {"torch"},
    "stitch": set(),
    "pyramid": set(),
    "verify": set(),
    "progress": set(),
    "baselines": {"cv2", "scipy", "skimage"},
    "evaluate": {"cv2", "scipy", "skimage"},
    "report": {"cv2", "scipy", "skimage"},
}
LIGHT = [stage for stage, used in USED.items() if not used]


@pytest.fixture(scope="module")
def started(medulla, small_model, tmp_path_factory) -> dict[str, tuple[set[str], float]]:
    """The packages that each stage loaded, and its peak memory in MiB."""
    folder = tmp_path_factory.mktemp("chain")
    tifffile.imwrite(folder / "raw.tif", medulla[:25, :64, :64])
    size = {"z": 10, "y": 10, "x": 10}
    tiling = {"tile": 64, "halo": 8, "blend": 8}
    config: dict[str, Any] = {
        "datasets": {
            "whole": {"source": "raw.tif", "voxel_size": size},
            "thin": {"keep_every": {"dataset": "whole", "factor": 6}},
        },
        "models": {"small": {"task": "vemdiffuse-i", "weights": str(small_model)}},
        "restorations": [{"dataset": "thin", "model": "small", "sampler": {"steps": 1}, "tiling": tiling}],
    }
    dataset = json.dumps(config["datasets"]["whole"])
    learned = {"task": "vemdiffuse-i", "datasets": ["whole"], "factor": 3, "patches": {"size": 32}}
    acquired, registered = "results/acquired/{}.ome.zarr", "results/registered/{}.ome.zarr"
    whole, thin = registered.format("whole"), registered.format("thin")
    place = "results/restored/thin/small"
    restoration = Config.model_validate(config).restorations[0].canonical()
    found: dict[str, tuple[set[str], float]] = {}

    def run(stage: str, *arguments: str) -> None:
        command = [sys.executable, "-c", RUN, "loaded.json", "--threads", "1", stage, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loaded, peak = json.loads((folder / "loaded.json").read_text())
        found[stage] = (set(loaded), peak)

    def register(name: str) -> None:
        quality = (f"results/registered/{name}.quality.json", f"results/registered/{name}.quality.png")
        run("register", acquired.format(name), registered.format(name), *quality, "--settings", "{}")

    run("acquire", "whole", acquired.format("whole"), "--settings", dataset)
    run("keep-every", acquired.format("whole"), "6", "thin", acquired.format("thin"))
    register("whole")
    register("thin")
    run("patches", whole, "--out", "results/patches.zarr", "--settings", json.dumps(learned))
    run("plan", thin, str(small_model), f"{place}/plan.json", "--settings", restoration)
    run("restore", f"{place}/plan.json", "--device", "cpu")
    run("stitch", f"{place}/plan.json")
    run("pyramid", f"{place}/plan.json")
    run("verify", f"{place}/plan.json")
    run("progress", "results")
    run("baselines", thin, whole, "results/baselines.json", "--task", "vemdiffuse-i")
    run("evaluate", f"{place}/restored.ome.zarr", thin, whole, "results/evaluation/thin/small.json")
    run("report", "results", "experiments", "results/report.html", "--settings", json.dumps(config))
    return found


@pytest.mark.parametrize("stage", USED)
def test_a_stage_loads_what_it_uses(started, stage):
    assert started[stage][0] & HEAVY <= USED[stage]


@pytest.mark.parametrize("stage", LIGHT)
def test_a_stage_without_a_network_is_small(started, stage):
    assert started[stage][1] < 200


def test_the_workflow_is_read_without_a_numerical_library():
    """Every job of the workflow reads it, so its rules import only light parts of the package."""
    imports = (
        "from emdiffuse.acquisition.layouts import find_pairs",
        "from emdiffuse.config import validate",
        "from emdiffuse.config.sources import source_files",
        "from emdiffuse.runtime.errors import EmdiffuseError",
    )
    show = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", "\n".join([*imports, show])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"numpy", "tensorstore", "tifffile", "zarr"})
