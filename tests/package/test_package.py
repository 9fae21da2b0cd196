"""The installed package: the wheel, outside the checkout; the lock file; the project's metadata files."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import tifffile
import yaml
from helpers import ROOT
from locking import PROJECT, closure, locked
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Wheel and source distribution."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="session")
def emdiffuse(built, tmp_path_factory):
    """A function that runs the wheel's command in a separate environment, outside the checkout.

    Its dependencies are those of the tests' environment: installing torch again would take minutes.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "venv", with_pip=False)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    (wheel,) = built.glob("*.whl")
    install = ["--python", str(folder / "venv/bin/python"), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, env=environment)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # behind what is installed here

    environment["PATH"] = f"{folder / 'venv/bin'}{os.pathsep}{environment['PATH']}"

    def run(
        *arguments: object, cwd: Path = folder, module: str = "emdiffuse.cli"
    ) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "venv/bin/python"), "-m", module, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)

    return run


def test_the_wheel_runs_outside_of_the_checkout(built, emdiffuse):
    (wheel,) = built.glob("*.whl")
    done = emdiffuse("--version")
    assert done.stdout.split() == ["emdiffuse", wheel.name.split("-")[1]], done.stderr
    assert str(ROOT) not in emdiffuse("restore", "nowhere.json").stderr


@pytest.mark.parametrize("learning", [[], ["--train"]], ids=["shipped", "trained"])
def test_a_workflow_of_the_wheel_is_ready_at_once(emdiffuse, medulla, tmp_path, learning):
    tifffile.imwrite(tmp_path / "thick.tif", medulla[:25:6, :100, :100])
    options = ["--raw", "thick.tif", "--voxel-size", "60,10,10", "--yes", *learning]
    done = emdiffuse("init", "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = emdiffuse("--profile", "profiles/local", "-n", cwd=tmp_path / "run", module="snakemake")
    assert done.returncode == 0, done.stdout + done.stderr
    rules = set(re.findall(r"rule (\w+):", done.stdout + done.stderr))
    assert {"acquire", "restore", "report"} <= rules
    assert ("train" in rules) == bool(learning)


def test_snakedeploy_deploys_the_workflow(tmp_path):
    """From a copy of the repository, without network; its output for GitHub differs in one line."""
    source = tmp_path / "emdiffuse"
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, source / name)
    shutil.copy(ROOT / "LICENSE", source)
    command = ["snakedeploy", "deploy-workflow", str(source), str(tmp_path / "run"), "--tag", "v0.1.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    deployed = tmp_path / "run/workflow/Snakefile"
    text = deployed.read_text()
    assert text.count('"workflow/Snakefile"') == 1
    deployed.write_text(text.replace('"workflow/Snakefile"', f'"{ROOT / "workflow/Snakefile"}"'))
    (tmp_path / "run/resources").symlink_to(
        ROOT / "resources"
    )  # the data of the configuration that comes along
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "-n"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rule report:" in done.stdout + done.stderr


def test_the_wheel_carries_the_workflow_and_the_weights(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "workflow", "profiles"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert tracked and {f"emdiffuse/{name}" for name in tracked} <= names
    assert any(name.endswith(".safetensors") for name in names)
    assert "emdiffuse/napari/napari.yaml" in names
    points = next(name for name in names if name.endswith("entry_points.txt"))
    assert (
        "[napari.manifest]\nemdiffuse = emdiffuse.napari:napari.yaml"
        in zipfile.ZipFile(wheel).read(points).decode()
    )


def test_a_laptop_installs_no_workflow_engine():
    engine = {"snakemake", "snakemake-executor-plugin-slurm", "submitit", "tensorboard", "napari"}
    plain = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert not plain & engine
    reached = set(closure(extras=frozenset({"cluster"})))
    assert engine - {"napari"} <= reached and "napari" not in reached


def test_the_lock_file_is_what_is_installed():
    entries, installed = locked((ROOT / "requirements.lock").read_text()), closure()
    different = {
        name: (version, entries.get(name))
        for name, version in installed.items()
        if entries.get(name) != version
    }
    assert not different, "run `make lock` where the tests pass, or `pip install -c requirements.lock`"


def test_the_lock_file_is_within_the_ranges_of_the_project():
    entries = locked((ROOT / "requirements.lock").read_text())
    asked = [
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    ]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name not in ("emdiffuse", "bm3d"):  # whose licence forbids to ask for it
            assert requirement.specifier.contains(entries[name]), requirement


def test_the_extras_that_messages_name_exist():
    named = set()
    for path in [*(ROOT / "emdiffuse").rglob("*.py"), *ROOT.glob("*.md")]:
        for extras in re.findall(r"emdiffuse\[([a-z0-9,]+)\]", path.read_text()):
            named |= set(extras.split(","))
    assert named and named <= set(PROJECT["optional-dependencies"])


def test_the_citation_is_whole():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["doi"] in (ROOT / "README.md").read_text()


def test_the_catalog_finds_the_workflow():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert (ROOT / usage["mandatory-flags"]["flags"].split()[-1] / "profile.yaml").exists()
    assert (ROOT / "workflow/Snakefile").exists() and (ROOT / "config/README.md").exists()
