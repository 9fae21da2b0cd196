"""Changes are noticed whatever the modification time; unchanged outputs are not recomputed."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from helpers import ROOT
from small_project import copy_project

from emdiffuse.project.workflow import state_of
from emdiffuse.stores.array import Array
from emdiffuse.stores.volume import open_volume


def edited_with_its_time_restored(folder):
    times = (folder / "a.tif").stat()
    (folder / "a.tif").write_bytes(b"other")
    os.utime(folder / "a.tif", ns=(times.st_atime_ns, times.st_mtime_ns))


def swapped(folder):
    for old, new in (("a.tif", "c.tif"), ("b.tif", "a.tif"), ("c.tif", "b.tif")):
        (folder / old).rename(folder / new)


def chunk_rewritten(folder):
    zarr.open_array(folder / "raw.zarr")[3, 3] = 7


@pytest.mark.parametrize("change", [edited_with_its_time_restored, swapped, chunk_rewritten])
def test_raw_files_that_changed_are_noticed_without_reading_them(tmp_path, change):
    for name in ("a.tif", "b.tif"):  # of equal size and date
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, (1e9, 1e9))
    zarr.create_array(tmp_path / "raw.zarr", data=np.zeros((8, 8), np.uint8), chunks=(4, 4))
    paths = [tmp_path / name for name in ("a.tif", "b.tif", "raw.zarr")]
    before = state_of(paths)
    assert state_of(paths) == before
    change(tmp_path)
    assert state_of(paths) != before


def test_a_chunk_of_a_raw_store_that_was_rewritten_is_acquired_again(tmp_path, medulla, commands):
    array = zarr.create_array(tmp_path / "raw.zarr", data=medulla[:8, :48, :48], chunks=(4, 24, 24))
    dataset = {"source": "raw.zarr", "voxel_size": {"z": 60, "y": 10, "x": 10}}
    config = {"datasets": {"a": dataset}, "models": {"m": {"task": "vemdiffuse-i", "weights": "vemdiffuse"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    target = "results/acquired/a.ome.zarr/zarr.json"
    snakemake = ["snakemake", "--snakefile", ROOT / "workflow/Snakefile", "--configfile", "config.yaml"]

    def run(*options):
        command = [*snakemake, "--cores", "1", *options, target]
        done = subprocess.run(command, cwd=tmp_path, env=commands, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    run()
    assert "Nothing to be done" in run("--dry-run")
    array[5, 30, 7:9] = [3, 250]
    run()
    acquired = open_volume(tmp_path / "results/acquired/a.ome.zarr").array
    np.testing.assert_array_equal(acquired[:, :, :], array[...])
    assert "Nothing to be done" in run("--dry-run")


def test_a_run_after_each_change_gives_what_a_fresh_one_gives(project, tmp_path):
    """Raw data edited with their times restored; and results deleted by hand."""
    raw = project.own("test.tif")
    values, times = tifffile.imread(raw), raw.stat()
    values[4, 10:20] = 255 - values[4, 10:20]
    tifffile.imwrite(raw, values)
    os.utime(raw, ns=(times.st_atime_ns, times.st_mtime_ns))
    state = (project.folder / "experiments/gap v1.2/run/state.pt").stat().st_mtime_ns
    project.run()
    np.testing.assert_array_equal(
        open_volume(project.output / "restored.ome.zarr").array[:, :, :][::3], values[::3]
    )
    assert (project.folder / "experiments/gap v1.2/run/state.pt").stat().st_mtime_ns == state  # was not trained
    assert project.pending() == set()
    made = Array(project.output / "restored.ome.zarr/restored/0")[:, :, :]
    shutil.rmtree(project.folder / "results/restored")
    assert {"plan -5deg gap v1.2", "pyramid -5deg gap v1.2"} <= project.pending()
    project.run()
    np.testing.assert_array_equal(Array(project.output / "restored.ome.zarr/restored/0")[:, :, :], made)
    fresh = copy_project(project, tmp_path / "fresh")
    for name in ("results", "experiments", ".snakemake", "logs"):
        shutil.rmtree(fresh.folder / name)
    fresh.run()
    np.testing.assert_array_equal(Array(fresh.output / "restored.ome.zarr/restored/0")[:, :, :], made)
