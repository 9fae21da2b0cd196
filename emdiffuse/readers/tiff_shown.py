"""How the stored pixels of a TIFF become those that are shown, and back: white, orientation, palette.

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
"""Share of the indices of a palette that may stand for colours."""
ANNOTATED = 0.01
"""Share of the pixels that may have one of these."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True)
class Shown:
    """How stored pixels become those that are shown.

    Attributes
    ----------
    inverted : bool
        Whether 0 is white.
    bits : int
        Bits of a sample.
    orientation : int
        TIFF's code: 1 is upright, 4 has the first row at the bottom.
    palette : array or None
        Grey value of each index.
    """

    inverted: bool = False
    bits: int = 0
    orientation: int = 1
    palette: NDArray[Any] | None = None

    def apply(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Return a stored plane (y, x) as it is shown."""
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
        """Return a shown plane as it is stored; a palette is not undone: its greys are written themselves."""
        if self.orientation in (3, 4, 7, 8):
            plane = plane[::-1]
        if self.orientation in (2, 3, 6, 7):
            plane = plane[:, ::-1]
        if self.orientation >= 5:
            plane = plane.T
        bits = self.bits if self.palette is None else 0
        return np.ascontiguousarray(inverted(plane, bits) if self.inverted else plane)


def inverted(values: NDArray[Any], bits: int = 0) -> NDArray[Any]:
    """Return values with black and white changed: mirrored within their type's range, floats about zero."""
    if values.dtype.kind == "f":
        return -values
    if values.dtype.kind == "u" and 0 < bits < 8 * values.dtype.itemsize:
        return np.subtract(values.dtype.type(2**bits - 1), values)
    return ~values


def shown_as(file: Path, page: Any, stored: np.dtype[Any] | None) -> tuple[Shown, np.dtype[Any]]:
    """Return how the pixels of a page are shown, and the type of those."""
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

    Zeiss keeps some indices for colours, in which annotations are drawn over a grey image. Such a colour
    counts as its luminance, as long as next to no pixel has one.
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
            warn_once("%s: annotations in colour are drawn over %.2g %% of its pixels", file, 100 * share)
    if page.bitspersample > 8:
        return values.astype(np.uint16)
    # TIFF has 16 bits a colour; some programs write 8
    return (values if values.max() < 256 else np.round(values / 257)).astype(np.uint8)
