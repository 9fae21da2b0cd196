"""Time and memory of the stages, as measured by Snakemake (its ``benchmark`` files).

Conventions
-----------
* ``results/benchmarks/{stage}/{what}.tsv`` is one job: its wall time in seconds (``s``) and its peak memory
  (``max_rss``, MiB). The time of an interrupted and resumed job counts from its last start.
* Workers are ``...-1-of-4.tsv``; files of an earlier run with another number of workers are ignored.
* The time that a training recorded itself, summed over its starts and without queueing, replaces the job's.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emdiffuse.runtime.progress import clock

STAGES = (
    "acquire",
    "register",
    "patches",
    "train",
    "plan",
    "restore",
    "stitch",
    "pyramid",
    "baselines",
    "evaluate",
)
"""Stages in the order of the pipeline; unknown stages come last."""


@dataclass(frozen=True)
class TimedJob:
    """A measured job: wall time in seconds, and peak memory in MiB (NaN if unknown)."""

    seconds: float
    memory: float


def stage_times(results: Path, names: set[str], training: dict[str, float]) -> list[dict[str, Any]]:
    """Sum up the jobs of every stage.

    Parameters
    ----------
    results : Path
        Folder of the results.
    names : set of str
        Subjects of the run: datasets, models, and ``dataset-model``; other files are ignored.
    training : dict
        Seconds that the training of each model recorded itself.

    Returns
    -------
    list of dict
        stage, jobs, seconds (the sum over jobs), longest (seconds), memory (MiB, of the largest job), and the
        durations as text; only stages that were measured.
    """
    found = []
    folders = [path for path in (results / "benchmarks").glob("*") if path.is_dir()]
    places = {name: place for place, name in enumerate(STAGES)}
    for folder in sorted(folders, key=lambda path: (places.get(path.name, len(places)), path.name)):
        jobs = [
            TimedJob(training.get(name, job.seconds), job.memory) if folder.name == "train" else job
            for name, job in _jobs(folder, names)
        ]
        if jobs:
            seconds, longest = sum(job.seconds for job in jobs), max(job.seconds for job in jobs)
            found.append(
                {
                    "stage": folder.name,
                    "jobs": len(jobs),
                    "seconds": seconds,
                    "longest": longest,
                    "memory": max((job.memory for job in jobs if job.memory == job.memory), default=None),
                    "texts": [clock(seconds), clock(longest)],
                }
            )
    return found


def _jobs(folder: Path, names: set[str]) -> list[tuple[str, TimedJob]]:
    """Return the jobs of a stage with their subjects; for workers only those of the newest run."""
    files: dict[tuple[str, int], list[Path]] = {}
    for path in sorted(folder.glob("*.tsv")):
        worker = re.fullmatch(r"(.+?)(?:-(\d+)-of-(\d+))?", path.stem)
        assert worker is not None
        if worker[1] in names:
            files.setdefault((worker[1], int(worker[3] or 1)), []).append(path)
    newest: dict[str, list[Path]] = {}
    for name, workers in sorted(files, key=lambda key: max(path.stat().st_mtime for path in files[key])):
        newest[name] = files[name, workers]
    return [(name, job) for name, paths in newest.items() for path in paths for job in _read_jobs(path)]


def _read_jobs(path: Path) -> list[TimedJob]:
    with path.open() as file:
        return [
            TimedJob(float(row["s"]), _number(row.get("max_rss")))
            for row in csv.DictReader(file, delimiter="\t")
        ]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:  # Snakemake writes NA or - for jobs too short to be sampled
        return float("nan")
