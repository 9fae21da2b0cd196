"""A watched folder: partially written files are awaited, failures set aside, nothing is done twice."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import torch
from restoring import image_model

from emdiffuse.config import Sampler
from emdiffuse.enhance.one_file import Enhancement, enhance
from emdiffuse.enhance.watch import watch
from emdiffuse.runtime.errors import ConfigError, StoreError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return image_model(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture
def folder(tmp_path, medulla):
    (tmp_path / "in").mkdir()
    for number in range(2):
        tifffile.imwrite(tmp_path / f"in/{number}.tif", medulla[number, :48, :48])
    return tmp_path / "in"


@pytest.fixture
def how(model):
    return Enhancement(model, Sampler(steps=1), device="cpu")


def run_once(folder, how, patience=0.0):
    watch(folder, folder.with_name("out"), how, once=True, settle=0.0, patience=patience, poll=0.05)


def times(folder):
    return {path.name: path.stat().st_ctime_ns for path in folder.glob("*.tif")}


def test_images_are_restored_once(folder, how):
    run_once(folder, how)
    out = folder.with_name("out")
    enhance(folder / "0.tif", out.with_name("alone.tif"), how)
    np.testing.assert_array_equal(tifffile.imread(out / "0.tif"), tifffile.imread(out.with_name("alone.tif")))
    before = times(out)
    run_once(folder, how)
    assert times(out) == before and set(before) == {"0.tif", "1.tif"}


def test_an_image_that_changed_is_restored_again(folder, how, medulla):
    run_once(folder, how)
    before = times(folder.with_name("out"))
    tifffile.imwrite(folder / "1.tif", medulla[9, :48, :48])
    os.utime(folder / "1.tif", (time.time() + 60,) * 2)
    run_once(folder, how)
    after = times(folder.with_name("out"))
    assert after["0.tif"] == before["0.tif"] and after["1.tif"] != before["1.tif"]


def test_a_failure_is_set_aside_with_its_reason_until_the_file_changes(folder, how, medulla):
    whole = (folder / "0.tif").read_bytes()
    (folder / "0.tif").write_bytes(whole[:900])
    colours = np.arange(48 * 48 * 3).reshape(48, 48, 3).astype(np.uint8)
    tifffile.imwrite(folder / "colour.tif", colours, photometric="rgb")
    run_once(folder, how)
    out = folder.with_name("out")
    assert {path.name for path in out.glob("*.tif")} == {"1.tif"}
    assert "0.tif" in (out / "failed/0.tif.txt").read_text()
    assert "colour image" in (out / "failed/colour.tif.txt").read_text()
    assert (folder / "0.tif").read_bytes() == whole[:900]
    (folder / "0.tif").write_bytes(whole)
    os.utime(folder / "0.tif", (time.time() + 60,) * 2)
    run_once(folder, how)
    assert (out / "0.tif").exists() and not (out / "failed/0.tif.txt").exists()


def test_a_half_written_file_is_waited_for(folder, how, model, tmp_path):
    whole = (folder / "0.tif").read_bytes()
    (folder / "0.tif").write_bytes(whole[:900])
    process = start(folder, model, "--settle", "0.2", "--patience", "600")
    wait_for(lambda: (tmp_path / "out/1.tif").exists(), process)
    time.sleep(0.5)
    assert not (tmp_path / "out/0.tif").exists() and not (tmp_path / "out/failed").exists()
    (folder / "0.tif").write_bytes(whole)
    wait_for(lambda: (tmp_path / "out/0.tif").exists(), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0 and "stopped" in said and "Traceback" not in said
    assert not list((tmp_path / "out").glob(".*partial*"))


def test_a_killed_watch_goes_on(folder, how, model, tmp_path):
    process = start(folder, model, "--settle", "0")
    wait_for(lambda: (tmp_path / "out/0.tif").exists() or (tmp_path / "out/1.tif").exists(), process)
    process.kill()
    process.communicate()
    (tmp_path / "out/.2.tif.partial-0123abcd").mkdir()  # as a kill leaves it
    first = times(tmp_path / "out")
    tifffile.imwrite(folder / "2.tif", tifffile.imread(folder / "0.tif"))
    run_once(folder, how)
    after = times(tmp_path / "out")
    assert set(after) == {"0.tif", "1.tif", "2.tif"} and after.items() >= first.items()
    assert not list((tmp_path / "out").glob(".*partial*"))


def start(folder, model, *options):
    command = [
        sys.executable, "-m", "emdiffuse.cli", "--threads", "1", "watch", folder, "--model", model, "--out",
        folder.with_name("out"), "--steps", "1", *options,
    ]  # fmt: skip
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_cannot_be_watched_is_refused(folder, how, model, tmp_path):
    with pytest.raises(ConfigError, match="no such folder to watch"):
        watch(tmp_path / "nowhere", tmp_path / "out", how)
    with pytest.raises(ConfigError, match="treated as inputs"):
        watch(folder, folder, how)
    run_once(folder, how)
    with pytest.raises(StoreError, match="another model or other settings"):
        run_once(folder, Enhancement(model, Sampler(steps=2), device="cpu"))
