"""Phase correlation of neighbouring slices, patch by patch.

Source: Kuglin & Hines 1975; here band-limited, and halfway between phase and plain correlation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

PATCH = 64


REACH = 8
"""Largest jitter, and largest additional movement of a patch, that is searched, in pixels."""


FINE, COARSE = 1.5, 12.0
"""Standard deviations of the Gaussians that limit the band of the correlation, in pixels."""


def spectra(field: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return the spectra (patches, height, width) of the patches of a slice, without mean, Hann-windowed.

    Patches overlap by half or more, or are apart if more than 16 would fit along an axis.
    """
    size = [min(PATCH, n) for n in field.shape]
    counts = [min(max(-(-2 * (n - p) // p) + 1, 1), 16) for n, p in zip(field.shape, size, strict=True)]
    ys, xs = (
        np.linspace(0, n - p, count).astype(int)
        for n, p, count in zip(field.shape, size, counts, strict=True)
    )
    patches = np.stack([field[y : y + size[0], x : x + size[1]] for y in ys for x in xs])
    window = np.outer(*(np.hanning(p + 2)[1:-1] for p in size)).astype(np.float32)
    return scipy.fft.fft2((patches - patches.mean((1, 2), keepdims=True)) * window)


def correlate(before: NDArray[np.complex64], after: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the correlation of each patch with its neighbour for all shifts in the search range.

    Returns
    -------
    ndarray
        float32 (patches, 2 R + 1, 2 R + 1), at most 1, shift (0, 0) in the centre; R is twice the reach.
    """
    frequencies = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(n) for n in before.shape[1:]), indexing="ij")
    squared = frequencies[0] ** 2 + frequencies[1] ** 2
    band = (np.exp(-squared * FINE**2 / 2) - np.exp(-squared * COARSE**2 / 2)).astype(np.float32)
    cross = before.conj() * after
    correlation = scipy.fft.ifft2(cross / np.sqrt(np.abs(cross) + 1e-12) * band).real
    power = [(np.abs(spectra) * band).mean((1, 2)) for spectra in (before, after)]
    radius = 2 * min(REACH, min(before.shape[1:]) // 4)
    shifts = np.arange(-radius, radius + 1)
    correlation = correlation[:, shifts[:, None], shifts]
    return (correlation / (np.sqrt(power[0] * power[1]) + 1e-12)[:, None, None]).astype(np.float32)


def peak(surface: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the maximum of a surface relative to its centre, refined by a parabola along each axis."""
    top = np.unravel_index(int(surface.argmax()), surface.shape)
    place = np.array(top, np.float64) - np.array(surface.shape) // 2
    for axis, index in enumerate(top):
        if 0 < index < surface.shape[axis] - 1:
            below, here, above = np.take(surface, [index - 1, index, index + 1], axis).take(
                top[1 - axis], 1 - axis
            )
            bend = below - 2 * here + above
            place[axis] += 0.5 * (below - above) / bend if bend < 0 else 0
    return place
