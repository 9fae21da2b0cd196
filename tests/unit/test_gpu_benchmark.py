"""The GPU benchmark runs on a CPU at toy size, with only the packages of a bare GPU machine."""

import json
import re
import subprocess
import sys
import tomllib

from helpers import ROOT

# packages of that machine, and those added by benchmarks/gpu_pack.sh
ALLOWED = [
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "tifffile",
    "tensorstore",
    "safetensors",
    "typer",
    "h5py",
    "scikit-image",
    "tqdm",
    "tensorboard",
    "pyyaml",
    "pydantic",
    "zarr",
    "imagecodecs",
    "submitit",
]
BARRIER = """
import importlib.metadata, re, runpy, sys

absent, packages = set(sys.argv.pop(1).split()), importlib.metadata.packages_distributions()


class Barrier:
    def find_spec(self, name, path=None, target=None):
        if {re.sub("[-_.]+", "-", owner).lower() for owner in packages.get(name, ())} & absent:
            raise ModuleNotFoundError(f"{name} is not on that machine", name=name)


sys.meta_path.insert(0, Barrier())
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def absent():
    """Return the dependencies, also optional ones, that are missing there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [names for extra, names in project["optional-dependencies"].items() if extra != "test"]
    needed = [*project["dependencies"], *(name for names in extras for name in names)]
    found = {re.sub("[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower() for text in needed}
    return found - {*ALLOWED, "emdiffuse"}


def test_the_benchmark_of_gpus_holds_on_a_cpu_with_few_packages(tmp_path):
    assert {"matplotlib", "jinja2", "snakemake"} <= absent()
    script = ROOT / "benchmarks" / "gpu.py"
    command = [sys.executable, "-c", BARRIER, " ".join(absent()), str(script), "--toy", "--device", "cpu"]
    command += ["--out", str(tmp_path), "--minutes", "60"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert sum(row["holds"] is True for row in rows) >= 15
    assert not [row for row in rows if row["bound"] == "no time left"]
