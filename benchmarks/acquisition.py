"""Speed and peak memory of acquisition, for a volume and for one of twice the size along each axis.

    python benchmarks/acquisition.py [--folder /fast/disk] [--workers 1 2]

The demo's training volume is repeated until it is large enough, as a multi-page TIFF (decoded by slices) and
as Zarr with chunks of 64 x 64 x 64 (read by boxes). Each conversion is a separate process; the time excludes
start-up and loading libraries, the peak memory includes libraries. The files were just written, so they are
read from memory, not from disk.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = {"once": (128, 512, 512), "twice": (256, 1024, 1024)}


def convert(source: str, out: Path, workers: int) -> None:
    """Convert a file; print the seconds and the peak of this process as JSON."""
    from emdiffuse.acquisition.acquire import acquire

    begin = time.perf_counter()
    acquire(source, (10, 10, 10), out, "a", workers=workers)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text().split()
    print(json.dumps({"seconds": seconds, "peak": int(status[status.index("VmHWM:") + 1]) / 1024}))


def write(folder: Path, form: str, shape: tuple[int, ...]) -> Path:
    """Write a volume of a given shape, tiled from the demo's."""
    import numpy as np
    import tifffile
    import zarr

    demo = tifffile.imread(ROOT / "resources/demo/medulla_train.tif")
    repeats = [-(-n // m) for n, m in zip(shape, demo.shape, strict=True)]
    values = np.tile(demo, repeats)[tuple(slice(n) for n in shape)]
    if form == "TIFF":
        tifffile.imwrite(folder / "raw.tif", values, photometric="minisblack")
        return folder / "raw.tif"
    zarr.create_array(folder / "raw.zarr", data=values, chunks=(64, 64, 64))
    return folder / "raw.zarr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--convert", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        convert(options.convert[0], Path(options.convert[1]), options.workers[0])
        return
    print("| format | voxels (uint8) | threads | MB/s | peak memory, MiB |\n| --- | --- | --- | --- | --- |")
    for form in ("TIFF", "Zarr"):
        for shape in SIZES.values():
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                folder = Path(name)
                source = write(folder, form, shape)
                for workers in options.workers:
                    command = [sys.executable, __file__, f"--workers={workers}", "--convert", str(source)]
                    command.append(str(folder / f"{workers}.ome.zarr"))
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    rate = math.prod(shape) / 1e6 / found["seconds"]
                    size = " x ".join(map(str, shape))
                    print(f"| {form} | {size} | {workers} | {rate:.0f} | {found['peak']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
