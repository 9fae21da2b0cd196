"""A small but real project for the whole workflow, and helpers to inspect its runs."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from helpers import ROOT

SMALL: dict[str, Any] = {
    "datasets": {
        "mon volume": {"source": "train.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        "test": {"source": "test.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        "-5deg": {"keep_every": {"dataset": "test", "factor": 3}},
    },
    "models": {
        "gap v1.2": {
            "task": "vemdiffuse-i",
            "datasets": ["mon volume"],
            "factor": 3,
            "patches": {"size": 32, "validation": 0.2},
            "network": {"channels": 16, "multipliers": [1, 2], "blocks": 1},
            "training": {"steps": 20, "batch": 4, "warmup": 2, "validate_every": 10},
        }
    },
    "restorations": [
        {
            "dataset": "-5deg",
            "model": "gap v1.2",
            "sampler": {"name": "dpm++", "steps": 2, "samples": 2},
            "tiling": {"tile": 64, "halo": 8, "blend": 8, "block": [1, 1, 1]},
        }
    ],
    "title": "A small run",
}


class Project:
    """A working folder with raw data and a configuration.

    With the environment of forked commands (`forking`), Snakemake and its jobs start instantly.
    """

    def __init__(self, folder: Path, medulla: np.ndarray, commands: dict[str, str] | None = None) -> None:
        self.folder, self.commands = folder, commands
        self.config = copy.deepcopy(SMALL)
        folder.mkdir(parents=True, exist_ok=True)
        # copies of a project share the raw files: a copied file would be another file, checked again
        raw = (folder.parent / "raw").absolute()
        raw.mkdir()
        # the halves of the test crop: training and test data are separate
        tifffile.imwrite(raw / "train.tif", medulla[:, :96, :96])
        tifffile.imwrite(raw / "test.tif", medulla[:31, 100:184, 100:184])
        for file in raw.iterdir():
            (folder / file.name).symlink_to(file)

    @classmethod
    def found(
        cls, folder: Path, config: dict[str, Any] = SMALL, commands: dict[str, str] | None = None
    ) -> "Project":
        """A project in an existing folder."""
        project = object.__new__(cls)
        project.folder, project.config, project.commands = folder, copy.deepcopy(config), commands
        return project

    def own(self, name: str) -> Path:
        """Give this project its own raw file, to change."""
        path = self.folder / name
        values = path.read_bytes()
        path.unlink()
        path.write_bytes(values)
        return path

    def write(self) -> None:
        (self.folder / "my.yaml").write_text(yaml.safe_dump(self.config))

    def command(self, *options: str, profile: str = "local") -> list[str]:
        self.write()
        return [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"),
            "--configfile", "my.yaml", "--profile", str(ROOT / "profiles" / profile), 
            "--directory", str(self.folder), *options,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The environment of the tests' own interpreter, so that `emdiffuse` is found."""
        return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(
        self, *options: str, check: bool = True, profile: str = "local"
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(*options, profile=profile)
        done = subprocess.run(
            ["snakemake", *command[3:]] if self.commands else command,
            cwd=self.folder,
            env=self.commands or self.environment(),
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            pytest.fail(f"snakemake failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    def pending(self) -> set[str]:
        """The jobs of a dry run, as "rule" or "rule dataset|model" strings."""
        done = self.run("--dry-run")
        jobs: set[str] = set()
        text = done.stdout + done.stderr
        for rule, body in re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)*)", text, re.MULTILINE):
            wildcards = re.search(r"wildcards: (.*)", body)
            names = dict(pair.split("=") for pair in wildcards[1].split(", ")) if wildcards else {}
            jobs.add(" ".join([rule, *(names[key] for key in ("dataset", "model") if key in names)]))
        return jobs - {"all"}

    @property
    def output(self) -> Path:
        return self.folder / "results/restored/-5deg/gap v1.2"


def copy_project(source: Project, folder: Path) -> Project:
    """A copy of a project with its results, preserving times."""
    shutil.copytree(source.folder, folder, symlinks=True)
    return Project.found(folder, source.config, source.commands)
