"""Progress lines: work done, total, and remaining time."""

import logging

import pytest

from emdiffuse.runtime import progress as progress_module
from emdiffuse.runtime.progress import clock, fail, logger, progress, setup


@pytest.fixture
def clock_of_steps(monkeypatch):
    """A clock that advances 5 seconds at each reading."""
    ticks = iter(range(0, 10**6, 5))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(ticks)))


def lines(path):
    return [line.split(" INFO ")[1] for line in path.read_text().splitlines() if " INFO " in line]


@pytest.fixture
def log(tmp_path):
    setup(tmp_path / "a.log")
    yield tmp_path / "a.log"
    for handler in logger.handlers:
        handler.close()
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def test_lines_in_a_log(log, clock_of_steps):
    assert list(progress("abcd", 6, "restoring", "block", done=2)) == list("abcd")
    first, *rest = lines(log)
    assert "on node" in first
    assert rest == [
        "restoring: 4 of 6 blocks, 0.2 per second, 0:10 left",
        "restoring: 6 of 6 blocks, 0.2 per second, 0:00 left",
    ]


def test_voxels_a_second_are_told_too(log, clock_of_steps):
    list(progress("abcd", 4, "restoring", "block", voxels=ord))
    assert lines(log)[-1] == "restoring: 4 of 4 blocks, 0.2 per second (19.7 voxels), 0:00 left"


def test_the_time_left_is_never_longer_than_the_limit(log, clock_of_steps):
    work = progress(range(10**6), 10**6, "training", "step", seconds=60)
    for _ in range(3):
        next(work)
    assert lines(log)[-1] == "training: 2 of 1000000 steps, 0.2 per second, 0:50 left"


def test_clock():
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_a_mistake_is_said_once_and_kept(log, capsys):
    fail(ValueError("a.tif: torn"))
    assert capsys.readouterr().err.splitlines()[-1] == "error: a.tif: torn"
    assert log.read_text().endswith("ERROR a.tif: torn\n")
