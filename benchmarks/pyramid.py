"""Pyramids by the package and by dask: CPU seconds, wall seconds and peak memory of the same levels.

    python benchmarks/pyramid.py [--shape 256 1024 1024]

Each runs in a separate process on the same sharded volume, and the levels are compared voxel by voxel. dask
averages with `dask.array.coarsen`, in blocks that yield one shard of the next level each, or ("chunked") in
blocks of 64 x 128 x 128 voxels, which yield one chunk. The volume is even along every axis, as `coarsen` does
not pad odd ends. Needs `pip install dask`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from emdiffuse.stores.array import CHUNK, Array, create_image_array  # noqa: E402

VOXEL = (10.0, 10.0, 10.0)


class DaskSource(Array):
    """An array with the interface that dask expects."""

    ndim = 3


def by_package(image: Path) -> None:
    from emdiffuse.stores.pyramid import build_pyramid

    build_pyramid(image, VOXEL)


def by_dask(image: Path, chunked: bool, workers: int) -> None:
    import dask
    import dask.array as da

    dask.config.set(scheduler="threads", num_workers=workers)
    source: Array = DaskSource(image / "0")
    level = 1
    while max(source.shape[1:]) > 64:
        target = create_image_array(image / str(level), [n // 2 for n in source.shape], source.dtype)
        unit = [2 * n for n in (CHUNK if chunked else target.chunk)]
        fine = da.from_array(source, chunks=unit, asarray=False, name=False)
        coarse = da.coarsen(np.mean, fine.astype(np.float32), dict.fromkeys(range(3), 2))
        values = da.rint(coarse).astype(source.dtype).rechunk(target.chunk)  # one task writes one shard
        da.store(values, target, lock=False)  # type: ignore[arg-type]  # dask only needs item assignment
        source, level = DaskSource(target.path), level + 1


def measured(image: Path, way: str) -> dict[str, float]:
    """Run one implementation in a separate process."""
    command = [sys.executable, __file__, "--image", str(image), "--way", way]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 1024, 1024))
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        begin = time.perf_counter()
        if options.way == "package":
            by_package(options.image)
        else:
            by_dask(options.image, options.way.startswith("chunked"), int(options.way[-1]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures = {"wall": time.perf_counter() - begin, "cpu": used.ru_utime + used.ru_stime}
        print(json.dumps({**figures, "mib": used.ru_maxrss / 1024}))
        return
    with tempfile.TemporaryDirectory() as folder:
        first: dict[str, np.ndarray] = {}
        for way in ("package", "dask, shards, 1", "dask, shards, 2", "chunked dask, 2"):
            image = Path(folder) / "image"
            image.mkdir(exist_ok=True)
            if not (image / "0").exists():
                array = create_image_array(image / "0", options.shape, np.uint8)
                generator = np.random.default_rng(0)
                for box in array.boxes():
                    array[box] = generator.integers(
                        0, 256, [part.stop - part.start for part in box], np.uint8
                    )
            for built in image.glob("[1-9]"):
                shutil.rmtree(built)
            figures = measured(image, way)
            same = []
            for level in sorted(image.glob("[1-9]")):
                values = Array(level)[:, :, :]
                reference = first.setdefault(level.name, values)
                same.append(int(np.abs(values.astype(int) - reference.astype(int)).max()))
            print(
                f"{way:<16} {figures['wall']:6.1f} s  {figures['cpu']:6.1f} s CPU  {figures['mib']:6.0f} MiB"
                f"  largest difference {same}"
            )


if __name__ == "__main__":
    main()
