"""Classical methods on the demo data: interpolation of slices, also along RAFT's flow, and denoising.

    python benchmarks/classical.py

Prints PSNR (dB, over 255), SSIM and CPU seconds of each method.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.evaluation import baselines
from emdiffuse.evaluation.methods import baselines_of
from emdiffuse.evaluation.metrics import psnr, ssim
from emdiffuse.registration.raft import Flow
from emdiffuse.restoration.slice_grid import SliceGrid
from emdiffuse.stores.resampling import enlarge

DEMO = Path(__file__).parents[1] / "resources/demo"
FACTOR = 6
FLOWS = {"flow": 0, "flow by RAFT": 1, "flow by RAFT, slices enlarged twice": 2}


def raft(network: Flow, scale: int) -> Callable[..., NDArray[np.float32]]:
    """Return the flow by RAFT, in place of `baselines.slice_flow`."""

    def flow(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
        large = enlarge(np.stack([first, second]), scale) if scale > 1 else np.stack([first, second])
        found = network(large[0], large[1])[::-1, ::scale, ::scale] / scale
        return np.ascontiguousarray(found.transpose(1, 2, 0), np.float32)

    return flow


def row(name: str, make: Callable[[], NDArray[Any]], truth: NDArray[Any], counted: list[int]) -> None:
    start = time.process_time()
    made = make()
    seconds = time.process_time() - start
    pairs = [(made[z], truth[z]) for z in counted]
    values = [np.mean([measure(a, b, 255) for a, b in pairs]) for measure in (psnr, ssim)]
    print(f"| {name} | {values[0]:.2f} | {values[1]:.3f} | {seconds:.1f} |", flush=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    volume = tifffile.imread(DEMO / "medulla_test.tif")
    kept, z = volume[::FACTOR], range(len(volume))
    grid, generated = SliceGrid(len(kept), Fraction(FACTOR)), [at for at in z if at % FACTOR]
    network, inverse_search = Flow(), baselines.slice_flow
    print("| method | PSNR (dB) | SSIM | CPU (s) |\n| --- | --- | --- | --- |")
    for name in ("nearest", "linear", "cubic", *FLOWS):
        kind = "flow" if name in FLOWS else name
        baselines.slice_flow = raft(network, FLOWS[name]) if FLOWS.get(name) else inverse_search
        row(name, partial(baselines.interpolate, kept, grid, z, kind), volume, generated)
    noisy, clean = (tifffile.imread(DEMO / f"brain_test_{name}.tif")[None] for name in ("noisy", "clean"))
    whole = tuple(slice(0, n) for n in noisy.shape)
    for kind in baselines_of("emdiffuse-n"):
        row(kind, partial(baselines.image_baseline, noisy, whole, kind, 1), clean, [0])


if __name__ == "__main__":
    main()
