"""The tests of this folder run on a real SLURM cluster, started on this machine by cluster.sh."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE / "cluster.sh"
NOT_RUNNING = 3
HOW_TO_START = "no SLURM cluster: tests/cluster/cluster.sh start (needs slurm-wlm, munge and root)"


def status() -> int:
    return subprocess.run([SCRIPT, "status"], capture_output=True).returncode


def pytest_collection_modifyitems(items):
    here = [item for item in items if HERE in item.path.parents]
    # skipped by a mark, not in the fixture, so that pytest reports a file's tests in one line
    skip = bool(here) and status() == NOT_RUNNING
    for item in here:
        item.add_marker(pytest.mark.slurm)
        if skip and "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.skip(HOW_TO_START))


@pytest.fixture(scope="session")
def cluster() -> Path:
    """The running cluster, as the path of the script that controls it."""
    if status() != 0:  # a run that was cut short has left a lost node behind
        subprocess.run([SCRIPT, "start"], check=True)
    return SCRIPT
