"""A finished run is changed by each key and run again: it is then what a fresh run gives, byte for byte.

All by the real workflow, at toy size: jobs are forks of one process (`forking`).
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from every_key import DATASETS, KEYS, LEARNED, MODELS, RESTORATIONS, learning, restoring, write_raw
from forking import forked_commands
from helpers import ROOT

BY_THEMSELVES = {"sheet", "evaluation.lpips", "report.title", "report.percentiles", "report.width"}
TIMES = {"seconds"}


def test_every_key_has_another_value():
    tables = {"datasets": DATASETS, "models": MODELS, "restorations": RESTORATIONS}
    known = {f"{section}.{key}" for section, table in tables.items() for key in table}
    assert known | BY_THEMSELVES == set(KEYS), "give each key a use and another value in `every_key`"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The environment of quick commands."""
    with forked_commands(tmp_path_factory.mktemp("commands")) as environment:
        yield environment


@pytest.fixture(scope="module")
def raw(tmp_path_factory, medulla):
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder, medulla)
    return folder


def started(folder, raw):
    """Make a folder to run the workflow in; all share the raw files, since a copy is another file."""
    folder.mkdir()
    for path in raw.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def run(folder, config, commands, *options):
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"),
            "--configfile", "my.yaml", "--cores", "4", "--set-scatter", "restore=1", "stitch=1",
            "--set-threads", "train=1", "--nolock", "--keep-going", *options,
        ],
        cwd=folder, env=commands, capture_output=True, text=True,
    )  # fmt: skip
    mistakes = re.findall(r"^(?:error: |Traceback).*(?:\n.*){0,3}", done.stderr, re.MULTILINE)
    assert done.returncode == 0, "\n".join(mistakes) or done.stderr[-6000:]
    return done


def outputs(folder):
    """Return every output with its content, times aside."""
    found = {}
    for path in sorted(path for name in ("results", "experiments") for path in (folder / name).rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[1] != "benchmarks" and "run" not in parts:
            found["/".join(parts)] = hashlib.sha256(plain(path)).hexdigest()
    return found


def plain(path):
    """Return what is in a file, without how long it took."""
    if path.name == "metrics.json":
        content = json.loads(path.read_text())
        history = [{k: v for k, v in entry.items() if k not in TIMES} for entry in content["history"]]
        return json.dumps({**content, "seconds": 0, "history": history}).encode()
    if path.name == "README.md":
        return re.sub(rb"\d+:\d\d", b"", path.read_bytes())
    return path.read_bytes()


@pytest.mark.parametrize("of", [learning, restoring])
def test_after_a_change_of_each_key_all_is_as_of_a_fresh_run(of, tmp_path, raw, commands):
    own, fresh = (started(tmp_path / name, raw) for name in ("own", "fresh"))
    options = () if of is learning else ("--omit-from", "report")
    run(own, of(after=False), commands, *options)
    before = outputs(own)
    run(own, of(after=True), commands, *options)
    run(fresh, of(after=True), commands, *options)
    expected, found = outputs(fresh), outputs(own)
    stale = [path for path, content in expected.items() if found.get(path) != content]
    assert not stale
