"""The plugin in a real napari, on a virtual screen (Xvfb)."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import ROOT, write_volume
from npe2 import PluginManifest

from emdiffuse.napari.work import work_folder

SCRIPT = Path(__file__).with_name("napari_session.py")
NUMBER = 77 + os.getpid() % 1000


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """The variables of a screen; napari draws by OpenGL, which Qt's own offscreen platform lacks."""
    assert shutil.which("Xvfb"), "the tests of napari need Xvfb: apt-get install xvfb (see .ci/run)"
    server = subprocess.Popen(
        ["Xvfb", f":{NUMBER}", "-screen", "0", "1600x1000x24"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield {
        "DISPLAY": f":{NUMBER}",
        "QT_QPA_PLATFORM": "xcb",
        "NAPARI_CONFIG": str(tmp_path_factory.mktemp("n") / "s.yaml"),
    }
    server.terminate()
    server.wait()


def test_the_manifest_is_whole():
    manifest = PluginManifest.from_file(ROOT / "emdiffuse/napari/napari.yaml")
    manifest.validate_imports()
    assert [widget.display_name for widget in manifest.contributions.widgets] == ["Restore"]


def test_a_layer_is_restored_in_a_real_viewer(screen, small_model, medulla, tmp_path):
    """Open a volume with the reader, restore it with progress, cancel a second run, and report a mistake."""
    write_volume(tmp_path / "thick.ome.zarr", medulla[:25:6, :100, :84], (60, 10, 10))
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(small_model)]
    (tmp_path / "t").mkdir()
    environment = {**os.environ, **screen, "TMPDIR": str(tmp_path / "t")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    restored, uncertainty = (
        tifffile.imread(tmp_path / f"{name}.tif") for name in ("restored", "uncertainty")
    )
    assert restored.shape == uncertainty.shape == (25, 100, 84)
    np.testing.assert_array_equal(restored[::6], medulla[:25:6, :100, :84])
    assert uncertainty[1].std() > 0 and (uncertainty[::6] == 0).all()
    picture = tifffile.imread(tmp_path / "screenshot.tif")
    assert picture.shape[0] > 500 and picture[..., :3].std() > 20, "something is drawn"
    assert not list((tmp_path / "t").glob("emdiffuse-*"))


BEGUN = """
import os, signal, sys
from emdiffuse.napari.work import work_folder

under_way = work_folder()
print(under_way.__enter__(), flush=True)
if sys.argv[1:]:
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
"""
"""A viewer that closes while the widget is working."""


def test_no_folder_of_the_widget_outlives_its_viewer_for_long(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def ended(*how):
        done = subprocess.run([sys.executable, "-c", BEGUN, *how], capture_output=True, text=True)
        assert (done.returncode != 0) == bool(how) and done.stdout, done.stderr
        return Path(done.stdout.strip())

    with work_folder() as own:
        assert not ended().exists(), "closed: removed as Python exits"
        killed = ended("SIGTERM")
        assert killed.exists()
        assert ended("SIGKILL").exists() and not killed.exists(), "removed by the next"
        assert own.exists(), "which leaves alone what is in use"
    with work_folder() as own:
        assert [path for path in tmp_path.iterdir() if path.name.startswith("emdiffuse")] == [own]
