"""Locks if the file system supports them, else a warning; and nothing is left after termination."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile

from emdiffuse.runtime import atomic, locks


@pytest.mark.parametrize("number", locks.UNSUPPORTED)
def test_without_locks_work_goes_on_with_a_warning(tmp_path, monkeypatch, caplog, number):
    def no_locks(held, operation):
        raise OSError(number, "No locks available")

    with atomic.scratch(tmp_path / "a") as left:  # that of a process that lives
        monkeypatch.setattr(fcntl, "flock", no_locks)
        monkeypatch.setattr(locks, "_warned", set())
        for text in ("one", "two"):
            with atomic.scratch(tmp_path / "a") as work:
                (work / "b").write_text(text)
            atomic.write_atomically(tmp_path / "b.txt", text)
        assert left.exists(), "it cannot be told whether it is in use"
    assert (tmp_path / "b.txt").read_text() == "two"
    assert caplog.text.count("this file system has no locks (No locks available)") == 1


def test_other_troubles_of_locks_are_not_hidden(tmp_path, monkeypatch):
    def broken(held, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), (tmp_path / "a").open("w") as held:
        locks.lock(held, "testing")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_request_to_end_while_a_folder_is_removed_leaves_nothing(tmp_path, monkeypatch, error):
    unlink, requests = os.unlink, iter([error()])

    def interrupted(*arguments, **keywords):
        unlink(*arguments, **keywords)
        if request := next(requests, None):
            raise request

    with pytest.raises(error), atomic.scratch(tmp_path / "a") as work:
        for number in range(3):
            (work / str(number)).write_text("")
        monkeypatch.setattr(os, "unlink", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_request_to_end_leaves_nothing(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    plane = np.random.default_rng(0).integers(0, 255, (512, 512)).astype(np.uint8)
    for z in range(300):
        tifffile.imwrite(raw / f"{z}.tif", np.roll(plane, z), compression="zlib")
    out = tmp_path / "out"
    out.mkdir()
    settings = {"source": str(raw), "voxel_size": {"z": 50, "y": 8, "x": 8}}
    command = [sys.executable, "-m", "emdiffuse.cli", "acquire", "a", str(out / "a.ome.zarr")]
    process = subprocess.Popen(
        [*command, "--settings", json.dumps(settings)], stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if any(out.iterdir()) or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in said
    assert list(out.iterdir()) == []
