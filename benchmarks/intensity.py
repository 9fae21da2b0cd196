"""Cost of padding, uneven brightness, drift and spikes: one tissue restored undisturbed and disturbed.

    python benchmarks/intensity.py DENOISER GAPS [--volume resources/demo/medulla_far.tif]

DENOISER and GAPS are folders of models (emdiffuse-n, and vemdiffuse of factor 6) that were not trained on the
volume. PSNR in dB of 8 bits of the tissue alone, after the disturbance is undone; one evaluation (the mean).
For filled gaps also the PSNR as the network sees them: each slice scaled by the range recorded in the store,
not the true one, which is unknown for missing slices.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray

from emdiffuse.acquisition.acquire import acquire, keep_every
from emdiffuse.config import Restoration
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.stores.intensity import Intensity
from emdiffuse.stores.volume import open_volume

Images = NDArray[Any]
Disturbance = tuple[type, ArrayLike, ArrayLike, int | None]

FACTOR, MARGIN, ELECTRONS, GAUSSIAN = 6, 64, 20, 0.1


def disturbances(count: int) -> dict[str, Disturbance]:
    """Return, for each disturbance, the type, gain and offset of every slice, and the padding."""
    z = np.arange(count)
    jump = z < 14
    unlike = z % 3
    return {
        "none": (np.uint8, 1, 0, None),
        "padded with zeros": (np.uint8, 1, 0, 0),
        "padded with white": (np.uint8, 1, 0, 255),
        "16 bit, padded with zeros": (np.uint16, 30, 30000, 0),
        "unlike images": (np.uint16, np.array([4, 60, 12])[unlike], np.array([2e3, 3e4, 9e3])[unlike], None),
        "spikes": (np.float32, 1, 0, None),
        "steady drift": (np.uint16, np.linspace(40, 120, count), np.linspace(2000, 9000, count), None),
        "waves": (np.uint16, 60 + 24 * np.sin(z / 6), 3000 + 1500 * np.cos(z / 9), None),
        "a jump": (np.uint16, np.where(jump, 50, 110), np.where(jump, 1000, 6000), None),
    }


def disturbed(
    values: Images, dtype: type, gain: ArrayLike, offset: ArrayLike, surround: int | None
) -> tuple[Images, Callable[[Images], Images]]:
    """Return the disturbed volume, as a microscope would write it, and how to undo it."""
    slope, base = (np.broadcast_to(v, len(values)).astype(float)[:, None, None] for v in (gain, offset))
    made = values * slope + base
    if dtype != np.float32:
        made = np.clip(np.rint(made), 0, np.iinfo(dtype).max)
    made = made.astype(dtype)
    if dtype == np.float32:
        made[:, 50, 50], made[0, 9, 9:11] = np.finfo(dtype).max, -1e38
    inner = (slice(None),) * 3
    if surround is not None:
        made = np.pad(made, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), constant_values=surround)
        inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return made, lambda restored: (restored[inner] - base) / slope


def restored(folder: Path, values: Images, model: Path, images: bool) -> tuple[Images, Intensity]:
    """Run an array through the pipeline; return the result, and the ranges of its slices."""
    folder.mkdir()
    tifffile.imwrite(folder / "raw.tif", values, photometric="minisblack")
    store = folder / "a.ome.zarr"
    acquire(str(folder / "raw.tif"), (10, 10, 10), store, "a", images=images)
    if not images:
        keep_every(store, FACTOR, folder / "thin.ome.zarr", "a")
        store = folder / "thin.ome.zarr"
    plan = make_plan(store, model, Restoration(dataset="a", model="m"), folder / "plan.json")
    restore(folder / "plan.json", 1, 1)
    stitch(folder / "plan.json", 1, 1)
    pyramid(folder / "plan.json")
    result = open_volume(plan.restored / "restored")
    return result.array[:, :, :].astype(float), result.intensity


def rescaled(values: Images, ranges: Intensity, wanted: Intensity) -> Images:
    """Return slices rescaled to the ranges of other facts."""
    own, other = ranges.at(range(len(values))), wanted.at(range(len(values)))
    return (values - own.low) / own.span * other.span + other.low


def interpolated(values: Images) -> Images:
    """Fill the gaps linearly."""
    at = np.arange(len(values)) / FACTOR
    before = np.minimum(at.astype(int), (len(values) - 1) // FACTOR - 1)
    t = (at - before)[:, None, None]
    return (1 - t) * values[before * FACTOR] + t * values[(before + 1) * FACTOR]


def psnr(values: Images, truth: Images) -> float:
    return 10 * np.log10(255**2 / np.mean((values - truth) ** 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("denoiser", type=Path)
    parser.add_argument("gaps", type=Path)
    parser.add_argument("--volume", type=Path, default=Path("resources/demo/medulla_far.tif"))
    options = parser.parse_args()
    volume = tifffile.imread(options.volume)[:37].astype(float)
    generated = np.flatnonzero(np.arange(len(volume)) % FACTOR)
    low, high = np.percentile(volume, [0.5, 99.5])
    random, signal = np.random.default_rng(0), (volume[::FACTOR] - low) / (high - low)
    noisy = random.poisson(np.maximum(signal, 0) * ELECTRONS) / ELECTRONS
    noisy = (noisy + GAUSSIAN * random.standard_normal(noisy.shape)) * (high - low) + low
    noisy = np.clip(np.rint(noisy), 0, 255)
    print("| disturbance | denoised | noisy | gaps filled | linear | gaps, by the store's ranges |")
    print("| --- | --- | --- | --- | --- | --- |")
    clean: Intensity | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(disturbances(1)):
            images, undo = disturbed(noisy, *disturbances(len(noisy))[name])
            denoised = undo(restored(Path(folder) / f"n{number}", images, options.denoiser, True)[0])
            slices, undo_gaps = disturbed(volume, *disturbances(len(volume))[name])
            result, ranges = restored(Path(folder) / f"i{number}", slices, options.gaps, False)
            clean = clean or ranges
            inner = slice(margin := (slices.shape[1] - volume.shape[1]) // 2, slices.shape[1] - margin)
            seen = rescaled(result, ranges, clean)[:, inner, inner]
            filled = undo_gaps(result)
            plain = undo_gaps(interpolated(slices.astype(float)))
            pairs = [(denoised, volume[::FACTOR]), (noisy, volume[::FACTOR])]
            pairs += [(values[generated], volume[generated]) for values in (filled, plain, seen)]
            print(f"| {name} | {' | '.join(f'{psnr(*pair):.2f}' for pair in pairs)} |", flush=True)


if __name__ == "__main__":
    main()
