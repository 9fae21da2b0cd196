"""A finished run, rerun after changing each key, equals a fresh run, byte for byte.

All with the real workflow, at toy size: jobs are forks of one process (`forking`).
"""

import hashlib
import json
import re
import subprocess

import pytest
import yaml
from every_key import (
    DATASETS,
    KEYS,
    MODELS,
    RESTORATIONS,
    WHOLE,
    learning,
    reporting,
    restoring,
    targets,
    write_raw,
)
from helpers import ROOT

from emdiffuse.restoration.empty import LAYER

from emdiffuse.stores.provenance import read_link

TIMES = {"seconds", "times"}


def test_every_key_has_another_value():
    tables = {"datasets": DATASETS, "models": MODELS, "restorations": RESTORATIONS}
    known = {f"{section}.{key}" for section, table in tables.items() for key in table} | WHOLE.keys()
    assert known == set(KEYS), "give each key a use and another value in `every_key`"


@pytest.fixture(scope="module")
def raw(tmp_path_factory, medulla):
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder, medulla)
    return folder


def started(folder, raw):
    """Make a folder for running the workflow; all share the raw files, since a copy is another file."""
    folder.mkdir()
    for path in raw.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def run(folder, config, commands, *wanted):
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"),
            "--configfile", "my.yaml", "--cores", "4", "--set-scatter", "restore=1", "stitch=1",
            "--set-threads", "train=1", "--nolock", "--keep-going", *wanted,
        ],
        cwd=folder, env=commands, capture_output=True, text=True,
    )  # fmt: skip
    mistakes = re.findall(r"^(?:error: |Traceback).*(?:\n.*){0,3}", done.stderr, re.MULTILINE)
    assert done.returncode == 0, "\n".join(mistakes) or done.stderr[-6000:]


def outputs(folder):
    """Return every output with its content, without times."""
    found = {}
    for path in sorted(path for name in ("results", "experiments") for path in (folder / name).rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[1] != "benchmarks" and "run" not in parts:
            found["/".join(parts)] = hashlib.sha256(plain(path)).hexdigest()
    return found


def plain(path):
    """Return the content of a file without durations."""
    if path.name in ("metrics.json", "report.json"):
        return json.dumps(without_times(json.loads(path.read_text()))).encode()
    if path.name == "README.md":
        return re.sub(rb"\d+:\d\d", b"", path.read_bytes())
    if path.name == "report.html":
        return re.sub(rb"<td>(?:\d+(?::\d\d)+|[\d.]+ [MG]iB)</td>", b"", path.read_bytes())
    return path.read_bytes()


def without_times(values):
    if isinstance(values, dict):
        return {key: without_times(value) for key, value in values.items() if key not in TIMES}
    return [without_times(value) for value in values] if isinstance(values, list) else values


def works(folder):
    """Return the hash of every store and model, and the files with computed results."""
    found = {}
    stores = [*folder.glob("results/*/*.zarr"), *folder.glob("results/restored/*/*/restored.ome.zarr")]
    for place in [*stores, *(run.parent for run in folder.glob("experiments/*/run"))]:
        files = [path for path in place.rglob("*") if "c" in path.parts or path.name == "best.pt"]
        files = [path for path in files if LAYER not in path.parts]  # small; written with the metadata
        facts = sorted((str(f), f.stat().st_ino, f.stat().st_mtime_ns) for f in files if f.is_file())
        found[place] = read_link(place).hash, facts
    return found


@pytest.mark.parametrize("of", [learning, restoring, reporting])
def test_after_a_change_of_each_key_all_is_as_of_a_fresh_run(of, tmp_path, raw, commands):
    own, fresh = (started(tmp_path / name, raw) for name in ("own", "fresh"))
    before, after = of(after=False), of(after=True)
    wanted = [[] if of is reporting else targets(config) for config in (before, after)]
    run(own, before, commands, *wanted[0])
    made = works(own)
    run(own, after, commands, *wanted[1])
    again = works(own)
    run(fresh, after, commands, *wanted[1])
    expected, found = outputs(fresh), outputs(own)
    stale = [path for path, content in expected.items() if found.get(path) != content]
    assert not stale, "what was kept is not what a fresh run makes"
    same = [place for place, (link, _) in again.items() if place in made and made[place][0] == link]
    assert same
    needless = [place for place in same if made[place] != again[place]]
    assert not needless, "what has the same hash was made again"
