"""The structure of the project: imports in one direction only, and a matching conda environment."""

import ast
import graphlib
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "emdiffuse"


def imported(path):
    """Yield the folders (or modules) at the top of the package that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emdiffuse."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "emdiffuse":
            yield from (name.name for name in node.names if (PACKAGE / name.name).exists())
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("emdiffuse."))


def arrows():
    """Return which folders each folder of the package imports from."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(own, set()).update(set(imported(path)) - {own})
    return found


def test_imports_between_folders_run_one_way():
    found = arrows()
    # a sorter raises CycleError, which lists the folders of the cycle
    graphlib.TopologicalSorter(found).prepare()
    assert not {"cli", "napari"} & set().union(*found.values()), "nothing imports what a person sees"
    foundations = {"config", "stores", "runtime"}
    below = set().union(*(found[name] for name in foundations))
    assert below - {"__init__"} <= foundations, "the foundations import nothing above them"


def test_the_conda_environment_has_the_dependencies_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "workflow/envs/emdiffuse.yaml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert f"python{project['requires-python']}" in [re.sub(r"\s", "", entry) for entry in conda]
    extras = project["optional-dependencies"]
    chain = [*project["dependencies"], *extras["workflow"], *extras["cluster"]]
    assert sorted(pip) == sorted(set(chain) - {"emdiffuse[workflow]"})


def test_every_dependency_is_imported_by_the_package():
    """An extra may only serve Snakemake, like pygments."""
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            used |= {module.split(".")[0] for module in modules}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w.-]+", entry)[0] for entry in project["dependencies"]}
    owned = {module: {name.lower() for name in owners} for module, owners in packages_distributions().items()}
    assert needed == {name for name in needed if any(name in owned.get(module, ()) for module in used)}


def test_no_source_file_is_much_longer_than_one_idea():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "workflow").rglob("*.smk")]:
        assert len(path.read_text().splitlines()) <= 400, f"{path} passes 400 lines"
