"""Lay out the public data that the shipped models learn from, and set apart the held-out data.

    python config/pretrained/prepare.py DATA [raw]

DATA is a folder with the files listed in `config/pretrained/README.md`. Stacks of pairs become folders of
pairs. A part of the small volumes and of the pairs, which no model sees, is written to ``raw/held_out``.

The two scans of a pair are up to 5 pixels apart, and drift. In training pairs, the clean image is registered
to the noisy one, so that noise is never interpolated; held-out pairs stay unchanged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.registration.pair import register_pair
from emdiffuse.registration.raft import Flow

MARGIN = 8
"""Pixels cut from the edges of a registered pair, where only one image has data."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="The folder of public files.")
    parser.add_argument("raw", type=Path, nargs="?", default=Path("raw"), help="Where to write.")
    options = parser.parse_args()
    lay_out(options.data, options.raw)


def lay_out(data: Path, raw: Path) -> None:
    """Write all files below `raw`."""
    more = data / "more"
    for name in ("medulla_training1_250", "medulla_training2_250"):
        write(raw / f"{name}.tif", tifffile.imread(data / f"{name}.tif"))
    for name in ("mouse_liver_2x256", "neubias_fibsem_slice_517x360", "axon_sem_rat7_1024"):
        write(raw / f"{name}.tif", tifffile.imread(more / f"{name}.tif"))
    write(raw / "held_out" / "medulla_far.tif", tifffile.imread(more / "medulla_validation_far_250.tif"))

    split(more / "hemibrain_8nm_92x128x128.tif", raw, "hemibrain", 1, 96)
    split(more / "gala_flyem_50x100x200.tif", raw, "gala", 2, 150)
    split(more / "celegans_21x256x188.tif", raw, "celegans", 1, 192)

    flow = Flow()
    noisy, clean = (tifffile.imread(data / f"brain22_level07_{role}.tif") for role in ("input", "gt"))
    pair(raw / "brain", "0", *registered(noisy[:512], clean[:512], flow))
    pair(raw / "held_out" / "brain", "0", noisy[528:], clean[528:])
    for series, trained in (("dwell", 9), ("line", 4)):
        stacks = [tifffile.imread(more / f"kriss_sem_{series}_{role}.tif") for role in ("noisy", "clean")]
        for number, (noisy, clean) in enumerate(zip(*stacks, strict=True)):
            if number < trained:
                pair(raw / "spheres", f"{series}{number}", *registered(noisy, clean, flow))
            else:
                pair(raw / "held_out" / "spheres", f"{series}{number}", noisy, clean)


def split(source: Path, raw: Path, name: str, axis: int, begin: int) -> None:
    """Write a volume up to `begin` along an axis for training, and the rest as held out."""
    trained, held_out = np.split(tifffile.imread(source), [begin], axis)
    write(raw / f"{name}.tif", trained)
    write(raw / "held_out" / f"{name}.tif", held_out)


def registered(
    noisy: NDArray[np.generic], clean: NDArray[np.generic], flow: Flow
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Return a cropped pair with the clean image registered to the noisy one."""
    inner = (slice(MARGIN, -MARGIN),) * 2
    return noisy[inner], register_pair(noisy, clean, flow).moving[inner]


def pair(folder: Path, field: str, noisy: NDArray[np.generic], clean: NDArray[np.generic]) -> None:
    """Write the two images of a field."""
    write(folder / f"noisy_{field}.tif", noisy)
    write(folder / f"clean_{field}.tif", clean)


def write(path: Path, values: NDArray[np.generic]) -> None:
    """Write an image or a volume."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.ascontiguousarray(values), photometric="minisblack")


if __name__ == "__main__":
    main()
