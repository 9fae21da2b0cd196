"""A finished run, and copies of it to change."""

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
from small_project import Project, copy_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, medulla: np.ndarray) -> Project:
    """A project with a finished run; tests work on copies of it.

    The processes of pytest-xdist share one: the first that needs it runs it, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    done = base / "run.done"
    with (base / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return Project.found(base / "run" / "project")
        project = Project(base / "run" / "project", medulla)
        project.run()
        done.touch()
    return project


@pytest.fixture
def project(finished: Project, commands: dict[str, str], tmp_path: Path) -> Project:
    """A copy of the finished project with forked commands; `finished` itself is run without them."""
    project = copy_project(finished, tmp_path / "project")
    project.commands = commands
    return project
