"""The shape of the project: imports run one way, and the conda environment is the package's."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "emdiffuse"
# imports only go down this list
ORDER = [
    "cli", "sharing", "viewing", "overview", "watch", "enhance", "tiff", "report", "evaluation",
    "trust", "baselines", "stitching", "restoration", "planning", "calibration", "comparison",
    "threads", "launch", "slurm", "training", "importing", "modelcard", "raft_training",
    "parallel", "checkpoints", "inference", "augmentation", "processes", "patches", "registration", "raft",
    "acquisition", "readers", "pairs", "resampling", "diffusion", "networks", "footprint", "metrics",
    "structures", "volume", "atomic", "noise", "geometry", "config", "settings", "sources", "tasks",
    "progress", "allocator", "devices", "interruption", "errors",
]  # fmt: skip


def imported(path):
    """Yield the modules of the package (without its name) that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("emdiffuse."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "emdiffuse":
            yield from (name.name for name in node.names if name.name in ORDER)
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("emdiffuse."))


def test_imports_only_go_down_the_module_map():
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert modules - {"__init__"} == set(ORDER)
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for other in imported(path):
            assert ORDER.index(other) >= ORDER.index(own), f"{own} must not import {other}"


def test_the_conda_environment_has_the_dependencies_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "workflow/envs/emdiffuse.yaml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert f"python{project['requires-python']}" in [re.sub(r"\s", "", entry) for entry in conda]
    assert sorted(pip) == sorted(project["dependencies"])


def test_no_source_file_is_much_longer_than_one_idea():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "workflow").rglob("*.smk")]:
        assert len(path.read_text().splitlines()) <= 450, f"{path} passes 450 lines"
