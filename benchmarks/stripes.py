"""Synthetic stripes on real data: detection, and PSNR before and after removal.

    python benchmarks/stripes.py resources/demo/medulla_test.tif resources/demo/brain_test_clean.tif

Columns get offsets with a standard deviation of some grey levels, correlated over about two pixels and
varying by 30 % along them, like ion-beam curtaining. "Clean" is the filter forced on data without stripes,
which `repair: stripes` never does; detections there are listed too. PSNR is over 255 grey levels, in dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from emdiffuse.acquisition.stripes import artefacts, destripe
from emdiffuse.evaluation.metrics import psnr
from emdiffuse.stores.facts import Artefact

Images = NDArray[Any]
"""Separate images, (N, Y, X)."""
VERTICAL = [Artefact(kind="vertical stripes", amount=1, unit="grey levels")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--amounts", type=float, nargs="+", default=[4, 12, 25])
    options = parser.parse_args()
    print(
        "| data | stripes | found | before | after | clean, forced |\n| --- | --- | --- | --- | --- | --- |"
    )
    for file in options.files:
        images = np.atleast_3d(tifffile.imread(file))
        images = images.transpose(2, 0, 1) if images.shape[2] == 1 else images
        images = images[np.unique(np.linspace(0, len(images) - 1, 8).astype(int))]
        forced = score(mended(images), images)
        print(f"| {file.stem} | none | {found(images)} | | | {forced:.2f} |")
        for amount in options.amounts:
            spoilt = striped(images, amount)
            before, after = score(spoilt, images), score(mended(spoilt), images)
            print(f"| {file.stem} | {amount:g} | {found(spoilt)} | {before:.2f} | {after:.2f} | |")


def striped(images: Images, amount: float) -> Images:
    rng = np.random.default_rng(1)
    offsets = gaussian_filter1d(rng.normal(0, 1, images.shape[2]), 1.0)
    along = 1 + 0.3 * np.sin(np.arange(images.shape[1]) / 150)
    pattern = np.outer(along, offsets * (amount / offsets.std()))
    return np.clip(np.rint(images + pattern), 0, 255).astype(np.uint8)


def mended(images: Images) -> Images:
    return np.stack([destripe(image, VERTICAL) for image in images])


def found(images: Images) -> str:
    low, high = np.percentile(images, [0.5, 99.5])
    named = artefacts([image.astype(float) for image in images], float(high - low))
    return "; ".join(artefact.told for artefact in named) or "nothing"


def score(images: Images, truth: Images) -> float:
    pairs = zip(images, truth, strict=True)
    return float(np.mean([psnr(a.astype(np.float32), b.astype(np.float32), 255.0) for a, b in pairs]))


if __name__ == "__main__":
    main()
