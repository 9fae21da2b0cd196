"""Draw the figures of the documentation, from the demo's data by the shipped models.

    python docs/figures/draw.py image volume uncertainty

Each is written beside this file, and the numbers in its caption are printed. `napari.png` is a screenshot
taken by `tests/package/napari_session.py`. On 2 cores `image` takes seconds, `volume` about a minute, and
`uncertainty`, with 64 evaluations, a few minutes.
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import matplotlib as mpl
import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from emdiffuse.config import Sampler
from emdiffuse.config.shipped import model_folder
from emdiffuse.enhance.one_file import Enhancement, enhance

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "resources/demo"
BRAIN_PIXEL, MEDULLA_PIXEL = 3.3, 10.0
"""Nanometers."""
BAR = 500
"""Nanometers of a scale bar."""
CROP = (slice(0, 256), slice(0, 256))
FACTOR = 6
NEARBY = 8
"""Standard deviation, in pixels, of the neighbourhood that uncertainty and error are averaged over."""
Image = NDArray[np.floating]


def restored(source: Path, model: str, samples: int = 1) -> tuple[Image, Image | None]:
    """Restore an image or volume with a shipped model; return it and, with samples, its uncertainty."""
    with tempfile.TemporaryDirectory() as work:
        out, spread = Path(work) / "out.tif", Path(work) / "spread.tif"
        factor = Fraction(FACTOR) if model == "vemdiffuse" else None
        how = Enhancement(model_folder(model), Sampler(samples=samples), factor, device="cpu")
        enhance(source, out, how, spread if samples > 1 else None)
        values = tifffile.imread(out).astype(float)
        return values, tifffile.imread(spread).astype(float) if samples > 1 else None


def panels(
    name: str, images: dict[str, Image], pixel: float, columns: int, maps: tuple[str, ...] = ()
) -> None:
    """Draw images side by side, each with a scale bar; those in `maps` in colour."""
    rows = -(-len(images) // columns)
    height, width = next(iter(images.values())).shape
    panel = 10 / columns
    size = (10, rows * (panel * height / width + 0.25))
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=100, squeeze=False, layout="constrained")
    for axis, (title, image) in zip(axes.ravel(), images.items(), strict=True):
        low, high = np.percentile(image, (0.5, 99.5))
        axis.imshow(image, cmap="magma" if title in maps else "gray", vmin=low, vmax=high)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
        length = BAR / pixel
        axis.plot([width * 0.04, width * 0.04 + length], [height * 0.95] * 2, color="white", linewidth=3)
    figure.savefig(HERE / f"{name}.png")


def quality(name: str, image: Image, truth: Image) -> None:
    """Print the PSNR and SSIM of an image against the truth."""
    psnr = peak_signal_noise_ratio(truth, image, data_range=255)
    ssim = structural_similarity(
        truth, image, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    print(f"{name}: {psnr:.2f} dB, SSIM {ssim:.3f}")


def draw_image() -> None:
    """Draw a fast scan, its restoration, and the slow scan."""
    fast, slow = (tifffile.imread(DEMO / f"brain_test_{n}.tif").astype(float) for n in ("noisy", "clean"))
    clean, _ = restored(DEMO / "brain_test_noisy.tif", "emdiffuse-n")
    smooth = [gaussian_filter(fast, sigma / 10) for sigma in range(6, 16)]
    best = max(smooth, key=lambda image: peak_signal_noise_ratio(slow, image, data_range=255))
    for name, image in {"fast scan": fast, "best Gaussian": best, "restored": clean}.items():
        quality(name, image, slow)
    shown = {"fast scan": fast, "restored": clean, "slow scan": slow}
    panels("image", {title: image[CROP] for title, image in shown.items()}, BRAIN_PIXEL, 3)


def draw_volume() -> None:
    """Draw a yz section of a held-out volume of which every sixth slice was kept."""
    truth = tifffile.imread(DEMO / "medulla_far.tif").astype(float)
    kept = truth[::FACTOR]
    truth = truth[: FACTOR * (len(kept) - 1) + 1]
    with tempfile.TemporaryDirectory() as work:
        tifffile.imwrite(Path(work) / "thick.tif", kept.astype(np.uint8), photometric="minisblack")
        filled, _ = restored(Path(work) / "thick.tif", "vemdiffuse")
    linear = zoom(kept, (len(truth) / len(kept), 1, 1), order=1, grid_mode=False)
    made = np.arange(len(truth)) % FACTOR != 0
    for name, volume in {"linear": linear, "restored": filled}.items():
        error = np.square(volume[made] - truth[made]).mean()
        print(f"{name}: {10 * np.log10(255**2 / error):.2f} dB over the generated slices")
    x = truth.shape[2] // 2
    shown = {
        f"Input: every {FACTOR}th slice": np.repeat(kept, FACTOR, axis=0)[: len(truth)],
        "Linear interpolation": linear,
        "Restored": filled,
        "Truth": truth,
    }
    panels("volume", {title: volume[:, :, x] for title, volume in shown.items()}, MEDULLA_PIXEL, 2)


def draw_uncertainty() -> None:
    """Draw a restored crop, its uncertainty, and uncertainty and error averaged over neighbourhoods."""
    slow = tifffile.imread(DEMO / "brain_test_clean.tif").astype(float)
    mean, spread = restored(DEMO / "brain_test_noisy.tif", "emdiffuse-n", samples=8)
    assert spread is not None
    error = mean - slow
    near = {name: gaussian_filter(np.square(map_), NEARBY) for name, map_ in (("u", spread), ("e", error))}
    for what, values in {"uncertainty": spread, "error": error}.items():
        print(f"{what}: {np.sqrt(np.square(values).mean()):.1f} grey values")
    pairs = {"pixel": (np.square(spread), np.square(error)), "neighbourhood": (near["u"], near["e"])}
    for what, (one, other) in pairs.items():
        print(f"correlation by {what}: {np.corrcoef(one.ravel(), other.ravel())[0, 1]:.2f}")
    shown = {
        "restored": mean,
        "uncertainty": spread,
        "uncertainty, nearby": np.sqrt(near["u"]),
        "error, nearby": np.sqrt(near["e"]),
    }
    maps = ("uncertainty", "uncertainty, nearby", "error, nearby")
    panels("uncertainty", {title: image[CROP] for title, image in shown.items()}, BRAIN_PIXEL, 4, maps)


if __name__ == "__main__":
    figures = {"image": draw_image, "volume": draw_volume, "uncertainty": draw_uncertainty}
    if not sys.argv[1:] or set(sys.argv[1:]) - set(figures):
        sys.exit(__doc__)
    for name in sys.argv[1:]:
        figures[name]()
