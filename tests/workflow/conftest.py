"""A finished run, and copies of it to change."""

from pathlib import Path

import numpy as np
import pytest
from small_project import Project, copy_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, medulla: np.ndarray) -> Project:
    """A project whose run is finished; tests work on copies of it."""
    project = Project(tmp_path_factory.mktemp("run") / "project", medulla)
    project.run()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return copy_project(finished, tmp_path / "project")
