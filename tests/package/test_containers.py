"""The containers: linted, consistent with each other, and named by the workflow.

They are not built here, which takes Docker, gigabytes and minutes.
"""

import os
import re
import shutil
import subprocess

import pytest
from helpers import ROOT

DOCKER = (ROOT / "Dockerfile").read_text()
APPTAINER = (ROOT / "apptainer.def").read_text()
COPIED = re.findall(r"^COPY (.+) \S+$", DOCKER, re.MULTILINE)


def test_the_dockerfile_passes_the_linter():
    done = subprocess.run(
        ["hadolint", "--failure-threshold", "info", "Dockerfile"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_copy_the_same_files_and_these_exist():
    docker = {name for line in COPIED for name in line.split()}
    apptainer = set(re.findall(r"^    (\S+) /opt/emdiffuse/\S+$", APPTAINER, re.MULTILINE))
    assert docker == apptainer and "requirements.lock" in docker
    assert all((ROOT / name).exists() for name in docker)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and {f"!{name}" for name in docker} <= set(ignored)


def test_both_install_by_the_lock_file_alone():
    for text in (DOCKER, APPTAINER):
        installs = re.findall(r"pip install (.+)", text)
        assert len(installs) == 2 and all("--constraint requirements.lock" in line for line in installs)


def test_what_is_copied_is_enough_to_build(tmp_path):
    """The package builds from these files without git, as in an image."""
    for line in COPIED:
        for name in line.split():
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tmp_path / name, **({"symlinks": True} if source.is_dir() else {}))
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", "out", "."]
    environment = {"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_EMDIFFUSE": "1.2.3"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["emdiffuse-1.2.3-py3-none-any.whl"]


@pytest.mark.parametrize("section", ["%files", "%post", "%runscript", "%test", "%help"])
def test_the_definition_has_its_sections(section):
    assert APPTAINER.count(f"\n{section}\n") == 1


def test_the_workflow_names_the_image_of_the_definition():
    image = re.search(r'EMDIFFUSE_IMAGE", "(\S+)"\)', (ROOT / "workflow/Snakefile").read_text())
    assert image is not None and f"apptainer build {image[1]} apptainer.def" in APPTAINER
