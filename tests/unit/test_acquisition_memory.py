"""Bounded memory of acquisition, independent of the size of the volume."""

import json
import os
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
import tifffile

# a separate process: a peak never falls, and a forked child's includes its parent's memory
ACQUIRE = """
import json, sys
from pathlib import Path
from emdiffuse.stores import array
from emdiffuse.acquisition import streaming
from emdiffuse.acquisition.acquire import acquire
streaming.SLAB_MEMORY = 2**20
array.shard_shape.__defaults__ = (array.CHUNK, (32, 128, 128))  # small shards, and small volumes of many
acquire(sys.argv[1], (40, 4, 4), Path(sys.argv[2]), "a", workers=1)
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
    """Eight times the volume, 56 MiB more (112 for MRC, which has no bytes)."""
    peaks = []
    for name, shape in (("small", (32, 512, 512)), ("large", (64, 1024, 1024))):
        (tmp_path / name).mkdir()
        values = np.random.default_rng(0).integers(0, 4, shape, np.uint8)
        source = written(tmp_path / name, form, values)
        done = subprocess.run(
            [sys.executable, "-c", ACQUIRE, str(source), str(tmp_path / name / "a.ome.zarr")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"},  # what is freed is given back at once
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1])["peak"])
    assert peaks[1] - peaks[0] < 16, peaks
