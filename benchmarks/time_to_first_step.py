"""Time from `snakemake` to the first training step, on this machine, with the demo's data and model.

    python benchmarks/time_to_first_step.py [--config config/config.yaml] [--repeats 3]

Three starts, the median of each: from raw files (acquire, register, patches, train), with existing patches,
and `emdiffuse train` alone, without the workflow. The training has one step, which is done when its log, read
every 20 ms, says so.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from emdiffuse.config import Model

ROOT = Path(__file__).parents[1]
PLANNED = "Snakemake has planned"
MARKS = {
    PLANNED: "Select jobs to execute",
    "training process runs": " on node ",
    "data and network are ready": "INFO training ",
    "first step is done": "training: 1 of 1 steps",
}


def watch(command: list[str], folder: Path, log: Path) -> dict[str, float]:
    """Run a command; return the seconds until each mark first appears in its output or the log."""
    log.unlink(missing_ok=True)
    said = folder / "said.txt"
    seen: dict[str, float] = {}
    begin = time.perf_counter()
    with said.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            texts = {PLANNED: said.read_text()}
            now = time.perf_counter() - begin
            for name, words in MARKS.items():
                if words in texts.get(name, log.read_text() if log.exists() else ""):
                    seen.setdefault(name, now)
            time.sleep(0.02)
    if process.returncode:
        sys.exit(said.read_text()[-3000:])
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=ROOT / "config/config.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    config = yaml.safe_load(options.config.read_text())
    name = config["restorations"][0]["model"]
    model = config["models"][name]
    model["training"] = {**model.get("training", {}), "steps": 1}
    settings = Model.model_validate(model).canonical()
    for dataset in config["datasets"].values():
        if "source" in dataset:
            dataset["source"] = str((ROOT / dataset["source"]).resolve())

    starts: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "my.yaml").write_text(yaml.safe_dump(config))
        log, store = folder / f"logs/train/{name}.log", f"results/patches/{name}.zarr"
        snakemake = [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--profile",
            str(ROOT / "profiles/local"), "--configfile", "my.yaml", "--directory", str(folder),
            f"experiments/{name}/best/model.json",
        ]  # fmt: skip
        train = [
            sys.executable, "-m", "emdiffuse.cli", "--log", str(log), "train", store, name,
            f"experiments/{name}", "--settings", settings,
        ]  # fmt: skip
        for _ in range(options.repeats):
            for start, command, left in (
                ("snakemake, from raw files", snakemake, ("results", "experiments", ".snakemake")),
                ("snakemake, patches there", snakemake, ("experiments",)),
                ("emdiffuse train", train, ("experiments",)),
            ):
                for path in left:
                    shutil.rmtree(folder / path, ignore_errors=True)
                starts.setdefault(start, []).append(watch(command, folder, log))

    print("\nseconds, median of", options.repeats)
    print("| start |", " | ".join(MARKS), "|\n|", " --- |" * (len(MARKS) + 1))
    for start, times in starts.items():
        cells = [
            f"{statistics.median(t[mark] for t in times):.1f}" if all(mark in t for t in times) else ""
            for mark in MARKS
        ]
        print(f"| {start} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
