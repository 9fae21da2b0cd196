"""Bounded memory of acquisition: what it needs does not follow from the size of the volume."""

import json
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
import tifffile

# a process of its own: a peak never falls, and that of a child counts what its parent held when it was forked
ACQUIRE = """
import json, sys
from pathlib import Path
from emdiffuse.acquisition import acquire, streaming
streaming.SLAB_MEMORY = 2**20
acquire(sys.argv[1], (40, 4, 4), Path(sys.argv[2]), "a", workers=2)
status = Path("/proc/self/status").read_text().split()
print(json.dumps({"peak": int(status[status.index("VmHWM:") + 1]) / 1024}))
"""


def written(folder, form, values):
    if form == "mrc":
        mrcfile.write(folder / "a.mrc", values.astype(np.int16))
        return folder / "a.mrc"
    tifffile.imwrite(folder / "a.tif", values, photometric="minisblack")
    return folder / "a.tif"


@pytest.mark.parametrize("form", ["tiff", "mrc"])
def test_peak_memory_does_not_grow_with_the_volume(tmp_path, form):
    """Eight times the volume; a tenth more is allowed for what a library keeps of each shard."""
    peaks = []
    noise = np.random.default_rng(0).integers(0, 255, (64, 1024, 1024)).astype(np.uint8)
    for name, values in (
        ("small", noise),
        ("large", np.tile(noise, (2, 2, 2)) + np.arange(128, dtype=np.uint8)[:, None, None]),
    ):
        (tmp_path / name).mkdir()
        source = written(tmp_path / name, form, values)
        done = subprocess.run(
            [sys.executable, "-c", ACQUIRE, str(source), str(tmp_path / name / "a.ome.zarr")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1])["peak"])
    assert peaks[1] < 1.1 * peaks[0], peaks
