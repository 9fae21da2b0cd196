"""Conversion between stored and shown pixels of a TIFF: photometric, orientation, palette.

Conventions
-----------
* See `tiff`. A page is a plane (y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.readers.base import CONVERSIONS, DTYPES
from emdiffuse.readers.reasons import warn_once
from emdiffuse.runtime.errors import DataError

MOST_COLOURS = 0.25
"""Maximum fraction of palette indices that may be colours."""
ANNOTATED = 0.01
"""Maximum fraction of pixels with such a colour."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Luminance weights of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True)
class Shown:
    """How stored pixels are converted to shown ones.

    Attributes
    ----------
    inverted : bool
        Whether 0 means white.
    bits : int
        Bits per sample.
    orientation : int
        TIFF code: 1 is upright, 4 has the first row at the bottom.
    palette : array or None
        Grey value of each index.
    """

    inverted: bool = False
    bits: int = 0
    orientation: int = 1
    palette: NDArray[Any] | None = None

    def apply(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Convert a stored plane (y, x) to the shown one."""
        if self.palette is not None:
            plane = self.palette[plane]
        if self.inverted:
            plane = inverted(plane, self.bits)
        if self.orientation >= 5:
            plane = plane.T
        if self.orientation in (2, 3, 6, 7):
            plane = plane[:, ::-1]
        if self.orientation in (3, 4, 7, 8):
            plane = plane[::-1]
        return plane

    def undo(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Convert a shown plane to the stored one; palettes are not restored: greys are written directly."""
        if self.orientation in (3, 4, 7, 8):
            plane = plane[::-1]
        if self.orientation in (2, 3, 6, 7):
            plane = plane[:, ::-1]
        if self.orientation >= 5:
            plane = plane.T
        bits = self.bits if self.palette is None else 0
        return np.ascontiguousarray(inverted(plane, bits) if self.inverted else plane)


def inverted(values: NDArray[Any], bits: int = 0) -> NDArray[Any]:
    """Exchange black and white: mirror values within the range of their type, floats about zero."""
    if values.dtype.kind == "f":
        return -values
    if values.dtype.kind == "u" and 0 < bits < 8 * values.dtype.itemsize:
        return np.subtract(values.dtype.type(2**bits - 1), values)
    return ~values


def shown_as(file: Path, page: Any, stored: np.dtype[Any] | None) -> tuple[Shown, np.dtype[Any]]:
    """Return how the pixels of a page are shown, and their data type."""
    if stored is None or (stored.name not in DTYPES and stored.name not in CONVERSIONS):
        kind = f"{page.bitspersample}-bit numbers" if stored is None else stored.name
        raise DataError(
            f"{file}: pixels of type {kind} are not supported; convert them to {', '.join(DTYPES)}"
        )
    orientation = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
    orientation = orientation if 1 <= orientation <= 8 else 1
    palette = None
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        palette = _grey_palette(file, page)
        stored = palette.dtype
    if (
        page.photometric in (tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.RGB)
        and page.samplesperpixel < 3
    ):
        raise DataError(
            f"{file}: this is a colour image of an unusual kind; convert it to one grayscale channel"
        )
    white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 0
    return Shown(white, bits, orientation, palette), stored.newbyteorder("=")


def _grey_palette(file: Path, page: Any) -> NDArray[Any]:
    """Return the grey value of each index of a palette.

    Zeiss reserves some indices for colours, used for annotations drawn over a grey image. A colour is
    replaced by its luminance if almost no pixel has one.
    """
    colours = np.asarray(page.colormap)
    values = colours[0].astype(np.uint32)
    coloured = (colours != colours[0]).any(axis=0)
    if coloured.any():
        share = 1.0 if coloured.mean() > MOST_COLOURS else float(coloured[page.asarray()].mean())
        if share > ANNOTATED:
            raise DataError(f"{file}: this is a colour image (indexed); convert it to one grayscale channel")
        values[coloured] = np.round(np.array(LUMINANCE) @ colours[:, coloured]).astype(np.uint32)
        if share:
            warn_once("%s: coloured annotations are drawn over %.2g %% of its pixels", file, 100 * share)
    if page.bitspersample > 8:
        return values.astype(np.uint16)
    # TIFF has 16 bits per colour; some programs write 8
    return (values if values.max() < 256 else np.round(values / 257)).astype(np.uint8)
