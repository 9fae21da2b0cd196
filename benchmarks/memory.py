"""Peak memory of plan, restore, stitch and pyramid, for a volume and one of twice the size along each axis.

    python benchmarks/memory.py

The volumes are synthetic; each fills at least two shards, and the same number of blocks is restored of both.
Each stage runs in a separate process, whose peak the kernel reports (VmHWM), and is compared with the plan's
estimate.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {"once": (22, 512), "twice each side": (43, 1024)}
SETTINGS = {
    "dataset": "a",
    "model": "m",
    "sampler": {"steps": 2, "samples": 2},
    "tiling": {"tile": 256, "halo": 24, "blend": 16, "block": [2, 2, 2]},
}


def run_stage(stage: str, plan: Path, others: list[str]) -> None:
    """Run a stage as its command does; print the peak memory of this process in MiB."""
    from emdiffuse.runtime.allocator import return_freed_memory

    if stage == "plan":
        from emdiffuse.config import Restoration
        from emdiffuse.restoration.planning import make_plan

        volume, model, settings = others
        make_plan(Path(volume), Path(model), Restoration.model_validate_json(settings), plan)
    elif stage == "restore":
        import torch

        from emdiffuse.restoration.tiles import restore

        torch.set_num_threads(1)
        restore(plan, 1, int(others[0]), "cpu")
    else:
        from emdiffuse.restoration.stitch import pyramid, stitch

        return_freed_memory()
        if stage == "stitch":
            stitch(plan, 1, 1)
        else:
            pyramid(plan)
    status = Path("/proc/self/status").read_text().split()
    print(int(status[status.index("VmHWM:") + 1]) / 1024)


def peak(*arguments: object) -> float:
    """Run a stage in a separate process; return its peak memory in MiB."""
    command = [sys.executable, __file__, "--stage", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def make_model(folder: Path) -> Path:
    """Write a model of the default size with fresh weights."""
    import torch

    from emdiffuse.models.description import Description, NativeSpec, OwnSampler
    from emdiffuse.models.networks.build import build_network
    from emdiffuse.models.networks.weights import save_model

    torch.manual_seed(0)
    network = NativeSpec(channels=32, multipliers=(1, 2, 4), blocks=2, residual_scale=0.2)
    sampler = OwnSampler(name="unipc", steps=8)
    description = Description(task="vemdiffuse-i", factors=(6,), network=network, sampler=sampler)
    save_model(folder, build_network(network), description)
    return folder


def make_volume(path: Path, shape: tuple[int, int, int]) -> Path:
    """Write a volume of noise, a shard at a time."""
    import numpy as np

    from emdiffuse.stores.array import create_image_array
    from emdiffuse.stores.facts import VolumeFacts
    from emdiffuse.stores.provenance import made_by
    from emdiffuse.stores.volume import write_image

    array = create_image_array(path / "0", shape, np.uint8)
    generator = np.random.default_rng(0)
    for box in array.boxes():
        array[box] = generator.integers(0, 256, [part.stop - part.start for part in box], np.uint8)
    known = {"made": made_by("benchmark", "a", {}), "intensity": {"low": 10.0, "high": 240.0}}
    write_image(path, "a", (60, 10, 10), VolumeFacts.model_validate({"stage": "register", **known}))
    return path


def measure(folder: Path, slices: int, side: int, model: Path) -> dict[str, float]:
    """Return the peak of every stage, in MiB, for a volume of a given number of slices and pixels a side."""
    import numpy as np

    from emdiffuse.config import Restoration
    from emdiffuse.restoration.plan import read_plan
    from emdiffuse.stores.array import Array

    volume, path = make_volume(folder / "a.ome.zarr", (slices, side, side)), folder / "plan.json"
    settings = Restoration.model_validate(SETTINGS).model_dump_json()
    found = {"plan": peak("plan", path, volume, model, settings)}
    plan = read_plan(path)
    found["restore"] = peak("restore", path, len(plan.grid) // 3)
    tiles = Array(plan.tiles)
    generator = np.random.default_rng(0)
    for index in np.ndindex(*tiles.grid):  # the network's work is not measured here
        if not tiles.exists(index):
            tiles[tiles.box(index)] = generator.random(tiles.chunk, np.float32)
    found["stitch"] = peak("stitch", path)
    found["pyramid"] = peak("pyramid", path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage, plan, *others = options.stage
        run_stage(stage, Path(plan), others)
        return
    peaks = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = make_model(Path(temporary) / "model")
        for name, (slices, side) in SIZES.items():
            peaks[name] = measure(Path(temporary) / name, slices, side, model)
            said = json.loads((Path(temporary) / name / "plan.json").read_text())["memory_mb"]
    small, large = peaks.values()
    print(f"| stage | {' | '.join(f'{name} (MiB)' for name in SIZES)} | growth | plan's estimate (MB) |")
    print("| --- | --- | --- | --- | --- |")
    for stage in small:
        ratio = large[stage] / small[stage] - 1
        print(f"| {stage} | {small[stage]:.0f} | {large[stage]:.0f} | {ratio:+.1%} | {said.get(stage, '')} |")


if __name__ == "__main__":
    main()
