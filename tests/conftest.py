"""Fixtures shared by tests: small real volumes, and a small model with fixed random weights."""

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded
# a shell that starts the tests in the background ignores SIGINT, and so would all commands under test
signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import tifffile
import torch
from forking import forked_commands
from helpers import ROOT, raw_file, write_volume
from learning import model_settings
from restoring import run
from xdist.scheduler import LoadFileScheduling

from emdiffuse.models.description import Description
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.networks.weights import save_model
from emdiffuse.patches.cut import cut_patches


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make reports transferable between processes, as some contain file names that are not valid text."""
    report = yield
    sections = [[part.encode("utf-8", "backslashreplace").decode() for part in s] for s in report.sections]
    report.sections = [tuple(section) for section in sections]
    return report


SLOWEST = ("tests/workflow/test_every_key.py", "tests/workflow/", "tests/package/", "tests/robustness/")
"""Tests that start first, so that no process has minutes of work left when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the slowest tests first."""

    def rank(item: pytest.Item) -> int:
        places = (place for place, slow in enumerate(SLOWEST) if item.nodeid.startswith(slow))
        return next(places, len(SLOWEST))

    items.sort(key=rank)


class Scheduling(LoadFileScheduling):
    """Tests of one file share fixtures and one process; those of the workflow are long, and share little."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith("tests/workflow/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Share tests among the processes of pytest-xdist."""
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put the temporary files of killed programs into the tests' folders, which are removed."""
    folder = tmp_path_factory.getbasetemp() / "tmp"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(scope="session")
def commands(_temporary_folder: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `emdiffuse` and `snakemake` start instantly, as forks of one process."""
    with forked_commands(tmp_path_factory.mktemp("commands")) as environment:
        yield environment


@pytest.fixture(scope="session")
def medulla() -> np.ndarray:
    """The real test crop, (z, y, x) uint8, 10 nm."""
    return tifffile.imread(ROOT / "resources/demo/medulla_test.tif")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random, nonzero weights: it restores nothing useful, but exercises every path."""
    torch.manual_seed(0)
    settings = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "residual_scale": 0.2}
    network = NativeNetwork(**settings)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp("model") / "best"
    save_model(
        directory,
        network,
        Description.model_validate(
            {
                "name": "small",
                "task": "vemdiffuse-i",
                "factors": [6],
                "network": {"architecture": "native", **settings},
                "objective": {"prediction": "flow"},
                "sampler": {"name": "dpm++", "steps": 4},
                "sources": [],
            }
        ),
    )
    return directory


@pytest.fixture(scope="session")
def dataset(medulla, tmp_path_factory):
    """Five real slices of 100 x 84 pixels, 60 nm apart."""
    return write_volume(
        tmp_path_factory.mktemp("data") / "a.ome.zarr", medulla[:25:6, :100, :84], (60, 10, 10)
    )


@pytest.fixture(scope="session")
def reference(dataset, small_model, tmp_path_factory):
    """The plan of an undisturbed restoration of `dataset`; never written to."""
    torch.set_num_threads(1)
    return run(dataset, small_model, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def store(medulla, tmp_path_factory):
    """Training patches of gaps, cut from 48 real slices; never written to."""
    folder = tmp_path_factory.mktemp("patches")
    volume = write_volume(
        folder / "a.ome.zarr", medulla[:48, :64, :64], (10, 10, 10), sources=[raw_file("x")]
    )
    cut_patches([volume], model_settings(), folder / "p.zarr")
    return folder / "p.zarr"
