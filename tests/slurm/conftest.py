"""The tests of this folder run on a real SLURM cluster: the one that cluster.sh starts on this machine."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE / "cluster.sh"
NOT_RUNNING = 3


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Path:
    """The running cluster, as the path of the script that controls it; without one, the test is skipped."""
    state = subprocess.run([SCRIPT, "status"], capture_output=True).returncode
    if state == NOT_RUNNING:
        pytest.skip("no SLURM cluster: tests/slurm/cluster.sh start (needs slurm-wlm, munge and root)")
    if state:  # a run that was cut short has left a lost node behind
        subprocess.run([SCRIPT, "start"], check=True)
    return SCRIPT
