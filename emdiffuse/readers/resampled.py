"""Resampling of a source to square pixels.

Conventions
-----------
* Pixels are resampled to their shorter side, so that no detail is lost.
* Values between pixels are interpolated by cubic convolution over four pixels (Keys, IEEE Trans. ASSP 29,
  1981, doi 10.1109/TASSP.1981.1163711); beyond the borders the outermost pixels are repeated. Each value
  depends only on its position, so that any part equals the same part of the whole.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.readers.base import Source
from emdiffuse.stores.intensity import cast_to

TAPS = np.arange(-1, 3)


class SquarePixels(Source):
    """A source resampled to square pixels.

    Parameters
    ----------
    source : Source
        The source, with its crop.
    voxel_size : tuple of float
        Its voxel size (z, y, x) in nanometers.
    """

    def __init__(self, source: Source, voxel_size: tuple[float, float, float]) -> None:
        z, y, x = voxel_size
        self._axis = 1 if y > x else 2
        self._step = min(y, x) / max(y, x)  # output pixel, in pixels of the source
        shape, block = list(source.shape), list(source.block)
        shape[self._axis] = max(1, round(shape[self._axis] / self._step))
        block[self._axis] = ceil(block[self._axis] / self._step)
        side = min(y, x)
        super().__init__(
            source.name,
            shape,
            source.dtype,
            (block[0], block[1], block[2]),
            source.files,
            (z, side, side),
            source.missing,
        )
        self.stored = source.stored
        self.separate = source.separate
        self.bar = ceil(source.bar / self._step) if self._axis == 1 else source.bar
        self.masked = source.masked
        self.checksums = source.checksums
        self.metadata = source.metadata
        self._source = source

    def _where(self, z: int) -> str:
        return self._source.where(z)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        sides = [y, x]
        along = sides[self._axis - 1]
        places = (np.arange(along.start, along.stop) + 0.5) * self._step - 0.5
        last = self._source.shape[self._axis] - 1
        pixels = np.clip(np.floor(places).astype(int)[:, None] + TAPS, 0, last)
        first = int(pixels.min())
        sides[self._axis - 1] = slice(first, int(pixels.max()) + 1)
        values = np.moveaxis(self._source.read(z0, z1, *sides).astype(np.float64), self._axis, -1)
        weights = keys_weights(places - np.floor(places))
        mixed = np.einsum("...nt,nt->...n", values[..., pixels - first], weights)
        return np.ascontiguousarray(cast_to(np.moveaxis(mixed, -1, self._axis), self.dtype))


def keys_weights(fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights (..., 4) of the pixels at -1, 0, 1 and 2 for positions (...) between 0 and 1."""
    t = fraction[..., None]
    near = ((1.5 * t - 2.5) * t) * t + 1  # for a distance t below 1
    u = 1 - t
    far = ((1.5 * u - 2.5) * u) * u + 1
    before = ((-0.5 * (t + 1) + 2.5) * (t + 1) - 4) * (t + 1) + 2  # for a distance between 1 and 2
    behind = ((-0.5 * (u + 1) + 2.5) * (u + 1) - 4) * (u + 1) + 2
    return np.concatenate([before, near, far, behind], axis=-1)
