"""The benchmark of GPUs runs on a CPU at toy size, and with no more packages than a bare GPU machine has."""

import json
import subprocess
import sys

from helpers import ROOT

# what the package may use at that machine: its own packages, and the wheels that are brought along
ALLOWED = """
torch torchvision numpy scipy cv2 tifffile tensorstore safetensors typer h5py skimage tqdm tensorboard yaml
pydantic pydantic_core typing_inspection annotated_types zarr numcodecs donfig google_crc32c imagecodecs submitit
cloudpickle emdiffuse
"""
BARRIER = """
import importlib.metadata, sys
allowed = set(sys.argv.pop(1).split())
ours = {name for names in importlib.metadata.packages_distributions() for name in [names]}
absent = {"snakemake", "jinja2_absent", "dask", "ome_zarr", "mrcfile", "piq", "torchmetrics", "diffusers", "pygments"}
absent |= {"matplotlib", "hypothesis", "napari", "bm3d", "playwright"}
class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent - allowed:
            raise ModuleNotFoundError(f"{name} is not on that machine")
sys.meta_path.insert(0, Barrier())
import runpy
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_the_benchmark_of_gpus_holds_on_a_cpu_with_few_packages(tmp_path):
    script = ROOT / "benchmarks" / "gpu.py"
    command = [sys.executable, "-c", BARRIER, ALLOWED, str(script), "--toy", "--device", "cpu"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    timed = ("time that is not the network's", "hours for 1 TB", "fed by")
    wrong = [r for r in rows if r["holds"] is False and not any(word in r["name"] for word in timed)]
    assert not wrong, (wrong, done.stderr[-2000:])
    assert sum(row["holds"] is True for row in rows) >= 15
    assert "rows," in done.stdout.splitlines()[-1]
