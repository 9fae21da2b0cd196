"""Quality of one gap model: trained on one isotropic volume, measured on another place of the same tissue.

    python benchmarks/gap_quality.py TRAIN.tif TEST.tif --minutes 30 --threads 2

Voxels are 10 nm; every 6th slice of the test volume is kept. One model gives the one-call posterior mean, one
sample, and the mean of 8; nearest, linear and cubic interpolation stand beside them on the same voxels.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

FACTOR = 6
VOXEL = (10.0, 10.0, 10.0)
ESTIMATORS = {
    "one-call mean": {"steps": 1},
    "one sample, 4 calls": {"steps": 4, "samples": 1},
    "one sample, 8 calls": {"steps": 8, "samples": 1},
    "mean of 8 samples": {"steps": 4, "samples": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="{}", help="Further settings of the model, as JSON.")
    parser.add_argument(
        "--folder", type=Path, help="Where to work; a model that is there is not trained again."
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary))


def run(options: argparse.Namespace, folder: Path) -> None:
    from emdiffuse.acquisition import acquire, keep_every
    from emdiffuse.config import Model, Restoration
    from emdiffuse.evaluation import evaluate
    from emdiffuse.patches import cut_patches
    from emdiffuse.progress import setup
    from emdiffuse.restoration import make_plan, restore
    from emdiffuse.settings import parse
    from emdiffuse.stitching import pyramid, stitch
    from emdiffuse.training import train

    setup()
    further = json.loads(options.model)
    limits = {"steps": 10**6, "minutes": options.minutes, "warmup": 50, "validate_every": 500, "ema": 0.995}
    training = limits | further.pop("training", {})
    settings = {
        "task": "vemdiffuse-i",
        "datasets": ["train"],
        "factor": FACTOR,
        "training": training,
        **further,
    }
    model = parse(Model, settings, "model")
    volumes = {name: folder / f"{name}.ome.zarr" for name in ("train", "test", "thin")}
    if not (folder / "model" / "best" / "model.json").exists():
        acquire(str(options.train), VOXEL, volumes["train"], "train")
        acquire(str(options.test), VOXEL, volumes["test"], "test")
        keep_every(volumes["test"], FACTOR, volumes["thin"], "thin")
        cut_patches([volumes["train"]], model, folder / "patches.zarr")
        train(folder / "patches.zarr", model, "gap", folder / "model")
    rows = {}
    for name, sampler in ESTIMATORS.items():
        values = {"dataset": "thin", "model": "gap", "sampler": sampler}
        out = folder / "restored" / name.replace(" ", "-")
        plan = make_plan(
            volumes["thin"], folder / "model" / "best", parse(Restoration, values), out / "plan.json"
        )
        restore(out / "plan.json", 1, 1)
        stitch(out / "plan.json", 1, 1)
        pyramid(out / "plan.json")
        found = evaluate(plan.restored, volumes["thin"], volumes["test"], out / "evaluation.json")
        rows |= {method: found["methods"][method] for method in ("nearest", "linear", "cubic")}
        rows[name] = found["methods"]["restored"]
    print_table(rows)


def print_table(rows: dict[str, dict]) -> None:
    columns = [
        ("xy", "psnr"),
        ("xy", "ssim"),
        ("xy", "fsim"),
        ("xz", "psnr"),
        ("xz", "ssim"),
        ("xy", "high_frequency_ratio"),
    ]
    print("| method | " + " | ".join(f"{plane} {measure}" for plane, measure in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, row in rows.items():
        cells = [
            f"{row[plane][measure]['mean']:.{2 if measure == 'psnr' else 3}f}" for plane, measure in columns
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
