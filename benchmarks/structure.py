"""The package in numbers: names, imports between folders, lines, keys, and start-up cost.

    python benchmarks/structure.py [--start]

An arrow is a folder that imports from another, however often; folders on one floor import only from lower
floors. ``--start`` imports what each stage's command imports, in a separate process: CPU seconds and MiB
until the stage could start working, and the heavy libraries imported.
"""

import argparse
import ast
import graphlib
import subprocess
import sys
from pathlib import Path

from emdiffuse import config as configuration
from emdiffuse.config import json_schema

PACKAGE = Path(configuration.__file__).parents[1]
ROOT = PACKAGE.parent
LATER = {"train": ["emdiffuse.training.train"]}
"""Modules imported by a stage's work, not by its command."""
START = """
import resource, sys
import emdiffuse.cli, {modules}
from pathlib import Path
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
heavy = [name for name in "torch torchvision matplotlib skimage scipy cv2".split() if name in sys.modules]
print(used.ru_utime + used.ru_stime, int(peak.split()[1]) / 1024, *heavy)
"""


def arrows() -> dict[str, set[str]]:
    """Return, for each top-level name of the package, the names it imports from."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names = {name.split(".")[1] for name in modules if name.startswith("emdiffuse.")}
            found.setdefault(own, set()).update(names - {own})
    return found


def stages() -> dict[str, list[str]]:
    """Return the modules that each command of the pipeline imports."""
    found = {}
    for node in ast.parse((PACKAGE / "cli" / "stages.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            modules = {part.module for part in ast.walk(node) if isinstance(part, ast.ImportFrom)}
            own = sorted(module for module in modules if module and module.startswith("emdiffuse."))
            found[node.name.replace("_", "-")] = own + LATER.get(node.name, [])
    return found


def floors(graph: dict[str, set[str]]) -> int:
    """Return the number of floors of folders, each importing only from lower ones."""
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    count = 0
    while sorter.is_active():
        sorter.done(*sorter.get_ready())
        count += 1
    return count


def lines(folder: Path, ending: str = "py") -> int:
    """Return the number of lines of all files in a folder."""
    return sum(len(path.read_text().splitlines()) for path in folder.rglob(f"*.{ending}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", action="store_true", help="Measure the start-up cost of each stage.")
    wanted = parser.parse_args()
    graph, schema = arrows(), json_schema()
    keys = sum(len(section.get("properties", {})) for section in (schema, *schema["$defs"].values()))
    rules = ROOT / "workflow"
    for name, value in {
        "names at the top": len(graph) - ("__init__" in graph),
        "arrows between them": sum(map(len, graph.values())),
        "floors": floors(graph),
        "lines of the package": lines(PACKAGE),
        "lines of tests": lines(ROOT / "tests"),
        "lines of the workflow": lines(rules, "smk") + len((rules / "Snakefile").read_text().splitlines()),
        "keys of the configuration": keys,
    }.items():
        print(f"{value:6d}  {name}")
    for stage, modules in stages().items() if wanted.start else ():
        command = [sys.executable, "-c", START.format(modules=", ".join(modules))]
        seconds, peak, *heavy = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.split()
        print(f"{float(seconds):6.2f} s  {float(peak):5.0f} MiB  {stage:12} {' '.join(heavy)}")


if __name__ == "__main__":
    main()
