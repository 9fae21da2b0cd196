"""Gain from adapting a model to a volume, by minutes: over the model itself, and over linear interpolation.

    python benchmarks/adapting.py raw/held_out --volumes medulla-20nm gala hemibrain --minutes 2 5 10

The folder is written by `config/pretrained/prepare.py`. Every R-th slice of a volume is kept; the model is
adapted to these alone, and measured on the dropped slices, xy planes. Minutes are CPU time on one thread, so
that other load on the machine makes no difference.

PSNR is over a range of 255 (8-bit data), in dB; means over planes, ends included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Images = NDArray[Any]


class Kind(NamedTuple):
    """A held-out volume: its file, the kept slices, and how it is modified first."""

    file: str
    factor: int
    turned: bool = False
    binned: bool = False
    noise: float = 0.0


KINDS = {
    "medulla": Kind("medulla_far", 6),
    "medulla-20nm": Kind("medulla_far", 4, binned=True),
    "medulla-noisy": Kind("medulla_far", 6, noise=20.0),
    "hemibrain": Kind("hemibrain", 6, turned=True),
    "gala": Kind("gala", 6),
    "celegans": Kind("celegans", 4, turned=True),
}
"""`turned`: y and x are swapped, so that the longer one is y, of which a part is held back. `binned`: 2 x 2
x 2 voxels are averaged; the shipped model has never seen such voxels. `noise`: grey levels of white noise,
added to what is kept and not to the truth."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--volumes", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument("--model", default="vemdiffuse")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    times = " | ".join(f"{minutes:g} min" for minutes in options.minutes)
    print(f"| volume | linear | {options.model} | {times} |\n|{' --- |' * (3 + len(options.minutes))}")
    for name in options.volumes:
        with tempfile.TemporaryDirectory() as folder:
            row(name, KINDS[name], options, Path(folder))


def truth_of(kind: Kind, folder: Path) -> Images:
    import tifffile

    truth = tifffile.imread(folder / f"{kind.file}.tif")
    if kind.turned:
        truth = truth.transpose(0, 2, 1)
    if kind.binned:
        z, y, x = (n // 2 for n in truth.shape)
        truth = truth[: 2 * z, : 2 * y, : 2 * x].reshape(z, 2, y, 2, x, 2).mean((1, 3, 5))
        return np.rint(truth).astype(np.uint8)
    return truth[:97, :160, :160]


def row(name: str, kind: Kind, options: argparse.Namespace, folder: Path) -> None:
    """Print a row of the table, cell by cell, as each takes minutes."""
    import tifffile

    from emdiffuse.config.shipped import model_folder
    from emdiffuse.enhance import adapt
    from emdiffuse.evaluation.baselines import interpolate
    from emdiffuse.restoration.geometry import SliceGrid
    from emdiffuse.training import train

    train.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    truth = truth_of(kind, options.held_out)
    noise = np.random.default_rng(0).normal(0, kind.noise or 1e-9, truth.shape)
    kept = np.clip(np.rint(truth + noise), 0, 255).astype(np.uint8)[:: kind.factor]
    tifffile.imwrite(folder / "kept.tif", kept, photometric="minisblack")
    grid = SliceGrid(len(kept), Fraction(kind.factor))
    made = [z for gap in range(grid.gaps) for z in grid.generated(gap)]
    start = model_folder(options.model)
    plain = interpolate(kept, grid, range(grid.length), "linear")
    print(f"| {name}, z{kind.factor} | {score(plain, truth, made)}", end=" ", flush=True)
    print(f"| {score(restored(start, kind, folder), truth, made)}", end=" ", flush=True)
    for minutes in options.minutes:
        out = folder / f"after-{minutes:g}"
        adapt.adapt(folder / "kept.tif", out, how(start, kind), minutes)
        training = json.loads((out / "metrics.json").read_text())
        gain, step = training["outlook"]["gain"], training["outlook"]["kept_step"]
        found = score(restored(out, kind, folder), truth, made)
        print(f"| {found} (held out {gain:+.2f}, step {step} of {training['steps']})", end=" ", flush=True)
    print("|", flush=True)


def how(model: Path, kind: Kind) -> Any:
    from emdiffuse.enhance.one_file import Enhancement

    return Enhancement(model, factor=Fraction(kind.factor), device="cpu")


def restored(model: Path, kind: Kind, folder: Path) -> Images:
    import tifffile

    from emdiffuse.enhance.one_file import enhance

    enhance(folder / "kept.tif", folder / "out.tif", how(model, kind))
    return tifffile.imread(folder / "out.tif")


def score(images: Images, truth: Images, made: list[int]) -> str:
    """Return the mean PSNR of planes."""
    from emdiffuse.evaluation.metrics import psnr

    pairs = [(np.clip(images[z], 0, 255).astype(np.float32), truth[z].astype(np.float32)) for z in made]
    return f"{np.mean([psnr(a, b, 255) for a, b in pairs]):.2f}"


if __name__ == "__main__":
    main()
