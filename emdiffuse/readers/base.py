"""Base class of all formats: a stack of slices that is read lazily, box by box.

Conventions
-----------
* Axes are (z, y, x); slices are counted from 0.
* Values are those that a viewer shows: as stored, in native byte order, but inverted if the file states that
  0 is white, and upright if its first row is at the bottom. Other types than `DTYPES` are converted as stated
  in `CONVERSIONS`, without changing values.
* Opening checks all metadata; pixels are read later, by several threads at a time.
* All errors are `DataError`: one sentence that names the file and what to do.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Crop
from emdiffuse.readers.reasons import named
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

__all__ = ["CONVERSIONS", "DTYPES", "EVERYTHING", "Box", "Shape", "Source", "named"]

DTYPES = ("uint8", "uint16", "int16", "float32")
CONVERSIONS = {
    "bool": "uint8",
    "int8": "int16",
    "float16": "float32",
    "int32": "float32",
    "uint32": "float32",
    "int64": "float32",
    "uint64": "float32",
    "float64": "float32",
}
"""Conversions of unsupported types; exact, except for float64, which is rounded."""
EXACT = 2**24
"""Largest integer up to which all are exact in float32."""
Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]
EVERYTHING = slice(None)
logger = logging.getLogger(__name__)


LARGEST_SLICE = 2**35
"""Maximum bytes of a slice, or of a block decoded at once: 32 GiB, more than any microscope writes."""


def _within(box: Box, sides: Sequence[tuple[int, int]]) -> Box | None:
    """Return the part of a box inside a crop, relative to the crop, or None if empty."""
    z, y, x = (
        slice(max(side.start, first) - first, min(side.stop, last) - first)
        for side, (first, last) in zip(box, sides, strict=True)
    )
    return (z, y, x) if all(side.start < side.stop for side in (z, y, x)) else None


class Source(ABC):
    """A stack of slices on disk or on the web.

    Attributes
    ----------
    name : str
        Name of the data, for messages.
    shape : tuple of int
        Shape (z, y, x).
    dtype : numpy.dtype
        One of `DTYPES`, in native byte order.
    block : tuple of int
        Shape (z, y, x) that is decoded at once; reading less costs as much.
    files : list of Path
        Files of the source; empty for a URL. A folder stands for all its content.
    voxel_size : tuple of float or None
        Voxel size (z, y, x) in nanometers as stated by the file; None where unknown.
    missing : tuple of int
        Missing slices, for which a neighbour is read.
    separate : bool
        Whether each slice is a separate file.
    bar : int
        Rows of the microscope's data bar at the bottom.
    absent : tuple of boxes
        Boxes of missing chunks: damage, unless `missing_chunks` is ``fill``.
    chunks : int
        Number of chunks of a complete store.
    masked : bool
        Whether NaN marks voxels without data, and is kept.
    checksums : dict
        Size and SHA-256 of each file that was read completely.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        block: Shape,
        files: Sequence[Path],
        voxel_size: Sequence[float | None] | None = None,
        missing: Sequence[int] = (),
    ) -> None:
        self.name = name
        z, y, x = shape
        self.shape: Shape = (int(z), int(y), int(x))
        self.block = block
        self.files = list(files)
        self.voxel_size: Size | None = None
        if voxel_size is not None:
            z_size, y_size, x_size = voxel_size
            self.voxel_size = (z_size, y_size, x_size)
        self.missing = tuple(missing)
        self.separate = False
        self.bar = 0
        self.absent: tuple[Box, ...] = ()
        self.chunks = 1
        self.masked = False
        self.checksums: dict[Path, tuple[int, str]] = {}
        self.metadata = b""
        """Metadata of a URL, to detect changes."""
        self.stored = dtype.newbyteorder("=")
        self.dtype = np.dtype(CONVERSIONS.get(self.stored.name, self.stored))
        self._origin = (0, 0, 0)
        if self.dtype.name not in DTYPES:
            raise DataError(
                f"{name}: pixels of type {self.dtype.name} are not supported; convert them to "
                f"{', '.join(DTYPES)}"
            )
        if self.shape[1] * self.shape[2] * self.stored.itemsize > LARGEST_SLICE:
            raise DataError(
                f"{name}: a slice of {' x '.join(map(str, shape[1:]))} pixels is too large for "
                "memory; the header may be damaged, otherwise divide it into smaller ones"
            )
        if prod(block) * self.stored.itemsize > LARGEST_SLICE:
            raise DataError(
                f"{name}: the chunks are too large to be read one by one; store the data in smaller ones"
            )
        if 0 in shape:
            raise DataError(f"{name}: there are no pixels in {' x '.join(map(str, shape))}; export it again")

    @property
    def valid(self) -> tuple[slice, slice]:
        """Rows and columns of the image, without the data bar."""
        return slice(0, self.shape[1] - self.bar), slice(0, self.shape[2])

    def look_for_data_bar(self) -> None:
        """Look for a data bar, if not in the metadata, in the pixels of the first and last slice."""
        from emdiffuse.readers.data_bar import bar_by_look

        if self.bar or self.block[1:] != self.shape[1:]:  # microscopes write bars only below whole images
            return
        ends = {0, self.shape[0] - 1} - set(self.missing)
        found = {bar_by_look(self.read(z, z + 1)[0]) for z in ends}
        if len(found) == 1 and (rows := found.pop()):
            self.bar = rows
            logger.info("%s: the lowest %d rows are treated as the microscope's data bar", self.name, rows)

    def crop(self, box: Crop) -> None:
        """Restrict the source to a part; slices and rows are then counted within it.

        Raises
        ------
        DataError
            If the part extends beyond the source.
        """
        sides = []
        for axis, length in zip("zyx", self.shape, strict=True):
            first, last = getattr(box, axis) or (0, length)
            if last > length:
                raise DataError(
                    f"{self.name}: `crop` asks for {axis} from {first} to {last}, but there are {length}"
                )
            sides.append((first, last))
        (z0, z1), (y0, y1), (x0, x1) = sides
        z, y, x = self._origin
        self._origin = (z + z0, y + y0, x + x0)
        self.bar = max(0, self.bar - (self.shape[1] - y1))
        self.shape = (z1 - z0, y1 - y0, x1 - x0)
        self.missing = tuple(number - z0 for number in self.missing if z0 <= number < z1)
        self.absent = tuple(part for found in self.absent if (part := _within(found, sides)) is not None)
        if self.bar >= self.shape[1]:
            raise DataError(f"{self.name}: `crop` contains only the data bar; choose other rows")

    def read(self, z0: int, z1: int, y: slice = EVERYTHING, x: slice = EVERYTHING) -> NDArray[Any]:
        """Return the slices z0 to z1 - 1, or a part of them, as an array (z, y, x) of the stack's type.

        Raises
        ------
        DataError
            If a slice cannot be decoded, or has NaN or infinite values; names it.
        """
        if not 0 <= z0 < z1 <= self.shape[0]:
            raise IndexError(f"slices {z0} to {z1} of {self.shape[0]}")
        z, *corner = self._origin
        rows, columns = (
            slice(side.indices(length)[0] + first, side.indices(length)[1] + first)
            for side, length, first in zip((y, x), self.shape[1:], corner, strict=True)
        )
        values = self._read(z0 + z, z1 + z, rows, columns)
        if values.dtype != self.dtype:
            values = self._converted(values, z0)
        if self.dtype.kind == "f":
            self._check_finite(values, z0)
        return values

    def _converted(self, values: NDArray[Any], z0: int) -> NDArray[Any]:
        if self.dtype.kind == "f" and values.dtype.kind in "iu" and values.size:
            worst = max(abs(int(values.min())), abs(int(values.max())))
            if worst > EXACT:
                raise DataError(
                    f"{self.where(z0)}: there are values of {worst}, which no supported type represents "
                    "exactly; "
                    "scale them to 16 bits"
                )
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused
            return values.astype(self.dtype)

    def _check_finite(self, values: NDArray[Any], z0: int) -> None:
        for z, plane in enumerate(values, z0):
            if (np.isinf(plane) if self.masked else ~np.isfinite(plane)).any():
                what = "infinite values" if self.masked else "NaN or infinite values"
                remedy = "" if self.masked else ", or set `nan: mask` if NaN marks voxels without data"
                raise DataError(f"{self.where(z)}: there are {what}; replace them by numbers{remedy}")

    def where(self, z: int) -> str:
        """Return the name of a slice, for messages."""
        return self._where(z + self._origin[0])

    def _where(self, z: int) -> str:
        return f"{self.name}: slice {z} (counted from 0)"

    @abstractmethod
    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        """Return an existing part as a new array, in native byte order and the stored type."""
