"""Cost of an evaluation: CPU and wall time per generated voxel, and peak memory.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py VOLUME.tif --slices 61 --factor 6

Voxels are 10 nm. Every n-th slice of the volume is kept; linear interpolation with a little noise stands in
for the restoration, because the cost does not depend on the voxels' origin.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volume", type=Path)
    parser.add_argument("--slices", type=int, default=61)
    parser.add_argument("--side", type=int, default=None, help="Repeat the volume laterally up to this side.")
    parser.add_argument("--factor", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    import numpy as np
    import tifffile

    from emdiffuse.evaluation.baselines import interpolate
    from emdiffuse.evaluation.evaluate import evaluate, measure_baselines
    from emdiffuse.restoration.slice_grid import SliceGrid
    from emdiffuse.stores.array import create_image_array
    from emdiffuse.stores.facts import RestoredFacts, VolumeFacts
    from emdiffuse.stores.provenance import made_by
    from emdiffuse.stores.volume import write_image

    truth = tifffile.imread(options.volume)[: options.slices]
    if options.side:
        truth = np.pad(truth, [(0, 0), *((0, options.side - n) for n in truth.shape[1:])], mode="reflect")
    factor = options.factor
    thin = truth[::factor]
    grid = SliceGrid(len(thin), factor)
    linear = interpolate(thin, grid, range(grid.length), "linear")
    noise = np.random.default_rng(0).normal(0, 3, linear.shape)
    restored = np.clip(np.rint(linear + noise), 0, 255).astype(np.uint8)
    paths: dict[str, Path] = {}
    for name, values, depth in (
        ("restored", restored, 10),
        ("thin", thin, 10 * factor),
        ("truth", truth, 10),
    ):
        path = folder / f"{name}.ome.zarr"
        array = create_image_array(path / "0", values.shape, values.dtype)
        array[:, :, :] = values
        sources = [{"path": f"{name}.tif", "sha256": name.encode().hex().zfill(64)}]
        told = {"made": made_by("benchmark", name, {}), "sources": sources}
        told["intensity"] = {"low": 0.0, "high": 255.0}
        facts = (
            RestoredFacts.model_validate({**told, "dataset": "thin", "model": "m"})
            if name == "restored"
            else VolumeFacts.model_validate({"stage": "register", **told})
        )
        write_image(path, name, (depth, 10, 10), facts)
        paths[name] = path
    restored_at, thin_at, truth_at = (paths[name] for name in ("restored", "thin", "truth"))
    voxels = sum(len(grid.generated(gap)) for gap in range(grid.gaps)) * truth[0].size
    known = folder / "baselines.json"
    runs: dict[str, Callable[[], object]] = {
        "baselines and a restoration": partial(evaluate, restored_at, thin_at, truth_at, folder / "out.json"),
        "baselines": partial(measure_baselines, thin_at, truth_at, "vemdiffuse-i", known),
        "a restoration beside known baselines": partial(
            evaluate, restored_at, thin_at, truth_at, folder / "beside.json", known
        ),
    }
    for name, function in runs.items():
        started, wall = time.process_time(), time.perf_counter()
        function()
        cpu, wall = time.process_time() - started, time.perf_counter() - wall
        print(f"{name}: {1e6 * cpu / voxels:.2f} us of CPU, {1e6 * wall / voxels:.2f} us wall per voxel")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{voxels:,} generated voxels, {peak:.0f} MiB at most")


if __name__ == "__main__":
    main()
