"""Structured artefacts of the microscope: stripes, line noise, brightness bands, and line jitter.

Conventions
-----------
* *Vertical stripes* are an offset of columns (curtaining of the ion beam), *horizontal stripes* one of lines
  (line noise), *brightness bands* one of several lines together; all narrower than `WIDEST` pixels. *Line
  jitter* is a displacement of lines along x. Amounts are standard deviations: grey levels of the stored
  values, or pixels.
* An artefact is told from tissue by being the same all along a line: an image is cut into `BANDS` bands
  across the lines, each line's profile is taken in every band, and what the profiles of two bands have in
  common (their covariance) is the artefact. Tissue and noise of two bands have nothing in common, and add
  nothing to it.
* They are measured on `LOOKED_AT` slices at most, and named where the mean over these is `CLEAR` standard
  errors above 0, and not below `LEAST` of the range of intensities (jitter: `LEAST_JITTER` pixels).
* Stripes are removed by the combined wavelet and Fourier filter of Münch et al. 2009 (doi
  10.1364/OE.17.008567), based on PyWavelets, which is maintained, fast, and needs no fitting. The
  variational filter (pyvsnr) takes minutes per slice without a GPU; pystripe has the same filter for
  light-sheet files, but is no longer maintained. Only directions with stripes are filtered: other data stay
  unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emdiffuse.readers.base import EVERYTHING, Source
from emdiffuse.stores.facts import Artefact
from emdiffuse.stores.fill import fill
from emdiffuse.stores.intensity import cast_to

BANDS = 4
"""Number of bands whose profiles are compared."""
WIDEST = 32
"""Maximum width of a stripe, in pixels; wider structures are brightness drift."""
NARROW, BANDED = 3.0, 0.3
"""Width of a Gaussian, in lines, and the fraction of the variance of line offsets below which it removes so
little that they are bands: 0.4 for stripes 5 lines wide, 0.2 for 10 lines."""
LOOKED_AT = 8
SIDE = 768
"""Maximum side of the central part of a slice that is measured, in pixels."""
CLEAR = 3.0
LEAST = 0.005
LEAST_JITTER = 0.1
BEYOND = 1.0
"""Distance outside the intensity range, in widths of the range, beyond which a value is a spike."""
SMALLEST = 64
"""Minimum side of an image that is measured, in pixels."""
WAVELET = "db6"
DAMPED = 1.0
"""Width of the Gaussian that the Fourier filter removes, in periods along the image. Of 0.5 to 3, this gave
the highest PSNR for stripes of 12 grey levels on medulla, brain, liver and C. elegans."""

Kind = Literal["vertical stripes", "horizontal stripes", "brightness bands", "line jitter"]
Image = NDArray[Any]
logger = logging.getLogger(__name__)


def find_artefacts(source: Source) -> tuple[Artefact, ...]:
    """Measure the structured artefacts of a source, and log those that are present.

    Parameters
    ----------
    source : Source
        Volume or separate images; a few slices are read.
    """
    rows, columns = source.valid
    sides = [_middle(side.stop, SIDE) for side in (rows, columns)]
    if min(side.stop - side.start for side in sides) < SMALLEST:
        return ()
    there = [z for z in range(source.shape[0]) if z not in source.missing]
    chosen = [there[int(i)] for i in np.unique(np.linspace(0, len(there) - 1, LOOKED_AT).round())]

    def read(z: int) -> Image:
        return _framed(np.nan_to_num(source.read(z, z + 1, *sides)[0].astype(np.float32)))

    # one slice in memory at a time; a sixteenth of the pixels suffices for the range
    seen = {z: image[::4, ::4].ravel() for z in chosen if min((image := read(z)).shape) >= SMALLEST}
    if not seen:
        return ()
    low, high = _bounds(np.concatenate(list(seen.values())))
    images = (np.clip(read(z), low, high) for z in seen)
    found = artefacts(images, (high - low) / (1 + 2 * BEYOND))
    for artefact in found:
        logger.warning("%s: %s (standard deviation)", source.name, artefact.told)
    return found


def _framed(image: Image) -> Image:
    """Return an image without lines and columns that are mostly fill, whose edges are not stripes."""
    filled = fill(image)
    return image[filled.mean(1) < 0.5][:, filled.mean(0) < 0.5]


def _bounds(values: NDArray[Any]) -> tuple[float, float]:
    """Return the range of values of an image without spikes, which would dominate any filter."""
    low, high = np.percentile(values, [0.5, 99.5]).astype(float)
    return float(low - BEYOND * (high - low)), float(high + BEYOND * (high - low))


def _middle(length: int, most: int) -> slice:
    start = max((length - most) // 2, 0)
    return slice(start, min(start + most, length))


def artefacts(images: Iterable[Image], span: float) -> tuple[Artefact, ...]:
    """Return the artefacts of images (y, x) with the intensity range `span`; see the module."""
    found = []
    kinds: list[tuple[Kind, float]] = [
        ("vertical stripes", LEAST * span),
        ("horizontal stripes", LEAST * span),
        ("line jitter", LEAST_JITTER),
    ]
    measured = np.array(
        [(stripes(image), stripes(image.T), jitter(image), stripes(image.T, NARROW)) for image in images]
    )
    *of_kinds, narrow = measured.swapaxes(0, 1)  # image by pair of bands
    for (kind, least), pairs in zip(kinds, of_kinds, strict=True):
        mean = float(pairs.mean())
        banded = kind == "horizontal stripes" and narrow.mean() < BANDED * mean
        own = pairs.mean(1) if len(pairs) > 2 else pairs.ravel()
        error = float(own.std(ddof=1)) / sqrt(len(own))
        # slices show the same tissue, so the scatter over pairs of bands within an image counts too
        error = max(error, float(pairs.mean(0).std(ddof=1)) / sqrt(pairs.shape[1]))
        if mean > CLEAR * error and sqrt(mean) >= least:
            unit = "pixels" if kind == "line jitter" else "grey levels"
            named: Kind = "brightness bands" if banded else kind
            found.append(Artefact(kind=named, amount=float(f"{sqrt(mean):.3g}"), unit=unit))
    return tuple(found)


def stripes(image: Image, sigma: float = WIDEST / 2) -> NDArray[np.float64]:
    """Return the covariances of the column profiles of bands, one for each pair of bands.

    Parameters
    ----------
    image : ndarray
        (y, x).
    sigma : float
        Width of the Gaussian whose smooth profile is subtracted, in columns.
    """
    profiles = np.stack([np.median(band, 0) for band in np.array_split(image, BANDS)]).astype(np.float64)
    return _covariances(profiles - _smooth(profiles, sigma))


def jitter(image: Image) -> NDArray[np.float64]:
    """Return the covariances of the displacements of lines in bands of columns, in pixels squared.

    The displacement of a line against the mean of its neighbours follows from its gradient by least squares
    (Lucas and Kanade 1981); lines that move independently differ from that mean by 3/2 of their variance.
    """
    smooth = _smooth(image, 1)
    smooth -= smooth.mean(1, keepdims=True)
    moved = []
    for lines in np.array_split(smooth, BANDS, axis=1):
        around = (lines[:-2] + lines[2:]) / 2
        slope = np.gradient(around, axis=1)
        moved.append(((around - lines[1:-1]) * slope).sum(1) / np.maximum((slope**2).sum(1), 1e-12))
    return _covariances(np.stack(moved).astype(np.float64)) / 1.5


def _smooth(lines: Image, sigma: float) -> Image:
    """Filter along x with a Gaussian, mirrored at the edges, without the cost of importing SciPy."""
    reach = round(4 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(lines.dtype)
    wide = np.pad(lines, ((0, 0), (reach, reach)), mode="symmetric")
    smooth = np.zeros_like(lines)
    for i, weight in enumerate(weights / weights.sum()):
        smooth += weight * wide[:, i : i + lines.shape[1]]
    return smooth


def _covariances(profiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of each pair of profiles, clipped against outlier lines."""
    profiles = profiles - np.median(profiles, 1, keepdims=True)
    width = 1.4826 * np.median(np.abs(profiles), 1, keepdims=True)
    profiles = np.clip(profiles, -4 * width, 4 * width)
    matrix = profiles @ profiles.T / profiles.shape[1]
    covariances: NDArray[np.float64] = matrix[np.triu_indices(len(profiles), 1)]
    return covariances


def destripe(image: NDArray[Any], found: Sequence[Artefact]) -> NDArray[Any]:
    """Remove stripes from an image in the directions in which they were found.

    Parameters
    ----------
    image : ndarray
        (y, x), of any type.
    found : sequence of Artefact
        Artefacts of the source.

    Returns
    -------
    ndarray
        Of the same shape and type; the same object if there are no stripes.
    """
    kinds = {artefact.kind for artefact in found} - {"line jitter"}
    if not kinds:
        return image
    kept = fill(image) | ~np.isfinite(image)  # padding has no stripes
    if kept.all():
        return image
    low, high = _bounds(image[~kept])
    kept |= (image < low) | (image > high)
    values = np.where(np.isfinite(image), image, np.median(image[~kept])).astype(np.float64)
    values = np.clip(values, low, high)
    if "vertical stripes" in kinds:
        values = _without_columns(values)
    if kinds & {"horizontal stripes", "brightness bands"}:
        values = _without_columns(values.T).T
    return np.where(kept, image, cast_to(values, image.dtype))


def _without_columns(image: Image) -> Image:
    """Damp low frequencies along y in the detail coefficients along x of every scale."""
    import pywt

    rows, columns = image.shape
    margin = [min(WIDEST, n - 1) for n in image.shape]
    wide = np.pad(image, [(m, m) for m in margin], mode="reflect")
    levels = min(int(np.log2(WIDEST)), pywt.dwt_max_level(min(wide.shape), WAVELET))
    base, *details = pywt.wavedec2(wide, WAVELET, mode="symmetric", level=levels)
    filtered = []
    for across, along, diagonal in details:
        spectrum = np.fft.rfft(along, axis=0)
        frequency = np.arange(len(spectrum))[:, None]
        spectrum *= 1 - np.exp(-(frequency**2) / (2 * DAMPED**2))
        filtered.append((across, np.fft.irfft(spectrum, len(along), axis=0), diagonal))
    out: Image = pywt.waverec2([base, *filtered], WAVELET, mode="symmetric")
    return out[margin[0] : margin[0] + rows, margin[1] : margin[1] + columns]


class Destriped(Source):
    """A source without stripes; slices are always read whole.

    Parameters
    ----------
    source : Source
        Source to read.
    found : sequence of Artefact
        Artefacts of the source.
    """

    def __init__(self, source: Source, found: Sequence[Artefact]) -> None:
        self.__dict__.update(source.__dict__)
        self.source, self.found = source, found
        self.block = (1, *source.shape[1:])

    def read(self, z0: int, z1: int, y: slice = EVERYTHING, x: slice = EVERYTHING) -> NDArray[Any]:
        """Return slices without stripes; the data bar is unchanged."""
        values = self.source.read(z0, z1).copy()
        valid = self.source.valid
        for plane in values:
            plane[valid] = destripe(plane[valid], self.found)
        return values[:, y, x]

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        return self.read(z0, z1, y, x)

    def where(self, z: int) -> str:
        """Return the name of a slice, for errors."""
        return self.source.where(z)
