"""Resources and parameters of the rules, whatever the working directory."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile
import yaml
from helpers import ROOT

from emdiffuse.config.shipped import SHIPPED_FOLDER

LATER = ("restore", "stitch", "pyramid")


def fake(folder: Path, name: str, lines: str) -> dict[str, str]:
    """An environment with a command replaced by a shell script."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
    (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("rule", LATER)
def test_memory_is_that_of_the_plan_and_as_much_again_at_a_second_attempt(project, tmp_path, rule):
    planned = json.loads((project.output / "plan.json").read_text())["memory_mb"]
    options = ("--forcerun", rule, "--until", rule, "--retries", "1", "--jobs", "1")
    done = subprocess.run(
        project.command(*options), cwd=project.folder, env=fake(tmp_path / "bin", "emdiffuse", "exit 1"),
        capture_output=True, text=True,
    )  # fmt: skip
    jobs = re.findall(rf"^(?:local)?rule {rule}:\n((?: {{4}}.*\n)*)", done.stdout + done.stderr, re.MULTILINE)
    asked = [int(re.search(r"mem_mb=(\d+)", job)[1]) for job in jobs]
    assert done.returncode != 0 and set(asked) == {planned[rule], 2 * planned[rule]}


def test_every_rule_declares_its_threads_and_tells_them():
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    rules = re.findall(r"^rule (\w+):\n((?:(?: .*)?\n)+)", text, re.MULTILINE)
    assert len(rules) >= 13
    for name, body in rules:
        assert re.search(r"^    threads: \d+", body, re.MULTILINE), name
        assert "emdiffuse --log {log:q} --threads {threads} " in body, name


def test_the_workflow_runs_in_any_folder(tmp_path):
    """Like the workflow's test case, and without the package installed beside Snakemake."""
    for name in ("config", "raw"):
        (tmp_path / name).symlink_to(ROOT / ".test" / name)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow/Snakefile", "--dry-run"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--directory", tmp_path], cwd="/", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "rule evaluate:" in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize("installed", [False, True])
def test_the_environment_of_conda_gets_the_package_from_where_the_workflow_lies(tmp_path, installed):
    environment = fake(tmp_path / "bin", "python", 'echo "$@"')
    source = tmp_path if installed else ROOT
    environment |= {"EMDIFFUSE_SOURCE": str(source), "EMDIFFUSE_VERSION": "1.2.3"}
    script = ROOT / "workflow/envs/emdiffuse.post-deploy.sh"
    done = subprocess.run(
        ["sh", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    what = "emdiffuse==1.2.3" if installed else f"--editable {ROOT}"
    assert done.stdout == f"-m pip install --no-deps {what}\n"


def test_the_profiles_change_no_memory_that_a_plan_states():
    for path in sorted((ROOT / "profiles").glob("*/profile.yaml")):
        asked = yaml.safe_load(path.read_text()).get("set-resources", {})
        assert not any("mem_mb" in asked.get(rule, {}) for rule in LATER), path


def test_names_with_braces_spaces_lines_and_accents_run_through_snakemake(tmp_path, medulla, commands):
    """Snakemake takes braces for wildcards, in the paths of inputs and in parameters."""
    folder = tmp_path / "run {x} é"
    (folder / "raw {1}\n2").mkdir(parents=True)
    for i in range(3):
        tifffile.imwrite(folder / f"raw {{1}}\n2/-5deg {{z}} {i}.tif", medulla[6 * i, :40, :40])
    shutil.copytree(SHIPPED_FOLDER / "vemdiffuse", folder / "denoise v1.2 {m}")
    size = {"z": 60, "y": 10, "x": 10}
    config = {
        "datasets": {"-5deg modèle.v1": {"source": "raw {1}\n2", "voxel_size": size}},
        "models": {"denoise v1.2 é": {"task": "vemdiffuse-i", "weights": "denoise v1.2 {m}"}},
        "restorations": [{"dataset": "-5deg modèle.v1", "model": "denoise v1.2 é"}],
        "title": "{a} title",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    command = ["snakemake", "--snakefile", ROOT / "workflow/Snakefile", "--cores", "1"]
    done = subprocess.run(
        [*command, "--configfile", "config.yaml", "--until", "plan"],
        cwd=folder, env=commands, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "results/restored/-5deg modèle.v1/denoise v1.2 é/plan.json").is_file()


CONDA = """
case "$*" in
  --version) echo "conda 25.9.1" ;;
  "clean "*) ;;
  "info --json") echo '{"conda_prefix": "PREFIX", "platform": "linux-64"}' ;;
  "config --get channel_priority --json") echo '{"get": {"channel_priority": "strict"}}' ;;
  "env create "*)
    while [ "$1" != --prefix ]; do [ "$1" = --file ] && cp "$2" PREFIX/asked.yaml; shift; done
    mkdir -p "$2/bin"
    { echo '#!/bin/sh'; echo 'echo "$0 $@" >> PREFIX/ran'; } > "$2/bin/python"
    chmod +x "$2/bin/python" ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""
"""A stand-in for conda, which needs a channel: it creates environments whose python records its calls."""


def test_snakemake_sets_up_the_environment_of_conda_in_any_folder(tmp_path):
    """Snakemake creates the environment from our file, and our script then installs the package there."""
    prefix, run = tmp_path / "conda", tmp_path / "run"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/activate").write_text('export PATH="$1/bin:$PATH"\n')
    run.mkdir()
    for name in ("config", "raw"):
        (run / name).symlink_to(ROOT / ".test" / name)
    environment = fake(tmp_path / "bin", "conda", CONDA.replace("PREFIX", str(prefix)))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow/Snakefile", "--cores", "1"]
    options = ["--directory", run, "--sdm", "conda", "--conda-create-envs-only"]
    done = subprocess.run([*command, *options], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (prefix / "asked.yaml").read_text() == (ROOT / "workflow/envs/emdiffuse.yaml").read_text()
    python, *arguments = (prefix / "ran").read_text().split()
    assert Path(python).is_relative_to(run / ".snakemake/conda")
    assert arguments == ["-m", "pip", "install", "--no-deps", "--editable", str(ROOT)]
