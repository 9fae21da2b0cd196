"""Quality of one gap model: trained on one isotropic volume, measured on another place of the same tissue.

    python benchmarks/gap_quality.py TRAIN.tif TEST.tif --minutes 30 --threads 2
    python benchmarks/gap_quality.py TRAIN.tif TEST.tif --model '{"factor": [4, 6, 8]}' \\
        --factors 4 5 6 8 --mean-only

Voxels are 10 nm; every 6th slice of the test volume is kept, or others (`--factors`). One model gives the
posterior mean in one evaluation and one sample, compared with nearest, linear and cubic interpolation on the
same voxels.
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
    "one sample, 4 calls": {"steps": 4, "texture": 1},
    "one sample, 8 calls": {"steps": 8, "texture": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--factors", type=int, nargs="+", default=[FACTOR], help="Factors of the test.")
    parser.add_argument("--mean-only", action="store_true", help="Measure only the mean in one evaluation.")
    parser.add_argument("--model", default="{}", help="Further settings of the model, as JSON.")
    parser.add_argument("--folder", type=Path, help="Working folder; an existing model is not trained again.")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary))


def run(options: argparse.Namespace, folder: Path) -> None:
    from emdiffuse.acquisition.acquire import acquire, keep_every
    from emdiffuse.config import Model, Restoration
    from emdiffuse.config.settings import parse
    from emdiffuse.evaluation.evaluate import evaluate
    from emdiffuse.patches.cut import cut_patches
    from emdiffuse.restoration.planning import make_plan
    from emdiffuse.restoration.stitch import pyramid, stitch
    from emdiffuse.restoration.tiles import restore
    from emdiffuse.runtime.progress import setup
    from emdiffuse.training.train import train

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
    train_volume, test = folder / "train.ome.zarr", folder / "test.ome.zarr"
    if not (folder / "model" / "best" / "model.json").exists():
        acquire(str(options.train), VOXEL, train_volume, "train")
        acquire(str(options.test), VOXEL, test, "test")
        cut_patches([train_volume], model, folder / "patches.zarr")
        train(folder / "patches.zarr", model, "gap", folder / "model")
    for factor in options.factors:
        thin = folder / f"thin{factor}.ome.zarr"
        rows: dict[str, dict] = {}
        keep_every(test, factor, thin, "thin")
        for name, sampler in list(ESTIMATORS.items())[: 1 if options.mean_only else None]:
            values = {"dataset": "thin", "model": "gap", "sampler": sampler}
            out = folder / f"restored{factor}" / name.replace(" ", "-")
            plan = make_plan(thin, folder / "model" / "best", parse(Restoration, values), out / "plan.json")
            restore(out / "plan.json", 1, 1)
            stitch(out / "plan.json", 1, 1)
            pyramid(out / "plan.json")
            found = evaluate(plan.restored, thin, test, out / "evaluation.json")
            rows |= {method: found["methods"][method] for method in ("nearest", "linear", "cubic")}
            rows[name] = found["methods"]["restored"]
        print(f"\nfactor {factor}\n")
        print_table(rows)


def print_table(rows: dict[str, dict]) -> None:
    columns = [
        ("xy", "psnr"),
        ("xy", "ssim"),
        ("xy", "fsim"),
        ("xz", "psnr"),
        ("xz", "ssim"),
        ("xy", "high_frequency_ratio"),
        ("xy", "step_ratio"),
        ("xy", "real_step_ratio"),
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
