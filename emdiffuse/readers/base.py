"""What every format has in common: a stack of slices that is read lazily, box by box.

Conventions
-----------
* Axes are (z, y, x); slices are counted from 0.
* Values are returned as stored, in native byte order; nothing is scaled, inverted or converted.
* Opening checks the metadata of everything; pixels are read later, and by several threads at a time.
* Whatever is wrong raises `DataError`: one sentence that names the file and says what to do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.runtime.errors import DataError

DTYPES = ("uint8", "uint16", "int16", "float32")
Shape = tuple[int, int, int]
EVERYTHING = slice(None)


class Source(ABC):
    """A stack of slices on disk or on the web.

    Attributes
    ----------
    name : str
        What the user calls it.
    shape : tuple of int
        Shape (z, y, x).
    dtype : numpy.dtype
        One of `DTYPES`, in native byte order.
    block : tuple of int
        What is decoded at once, (z, y, x): reading less costs as much.
    files : list of Path
        The files that hold it; none of an address. A folder stands for all that is in it.
    voxel_size : tuple of float or None
        Voxel size (z, y, x) in nanometers, where the format says so.
    missing : tuple of int
        Slices that are not there, in whose place a neighbour is read.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        dtype: np.dtype[Any],
        block: Shape,
        files: Sequence[Path],
        voxel_size: Sequence[float] | None = None,
        missing: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self.block = block
        self.files = list(files)
        self.voxel_size = None if voxel_size is None else tuple(float(size) for size in voxel_size)
        self.missing = tuple(missing)
        self.metadata = b""
        """What the metadata of an address are, to tell whether it changed."""
        if self.dtype.name not in DTYPES:
            raise DataError(
                f"{name}: pixels of type {self.dtype.name} are not supported; convert them to "
                f"{', '.join(DTYPES)}"
            )
        if 0 in shape:
            raise DataError(f"{name}: there are no pixels in {' x '.join(map(str, shape))}; export it again")

    def read(self, z0: int, z1: int, y: slice = EVERYTHING, x: slice = EVERYTHING) -> NDArray[Any]:
        """Return the slices z0 to z1 - 1, or a part of them, as an array (z, y, x) of the stack's type.

        Raises
        ------
        DataError
            If a slice cannot be decoded, or holds NaN or infinite values; it is named.
        """
        if not 0 <= z0 < z1 <= self.shape[0]:
            raise IndexError(f"slices {z0} to {z1} of {self.shape[0]}")
        values = self._read(z0, z1, y, x)
        if self.dtype.kind == "f":
            for z, plane in enumerate(values, z0):
                if not np.isfinite(plane).all():
                    raise DataError(
                        f"{self.where(z)}: there are NaN or infinite values; replace them by numbers"
                    )
        return values

    def where(self, z: int) -> str:
        """Return the name of a slice for a person."""
        return f"{self.name}: slice {z} (counted from 0)"

    @abstractmethod
    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        """Return a part that is known to exist, as a new array in native byte order."""


@contextmanager
def named(where: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises about a file into one sentence."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"{where}: not a readable {what} ({reason}); it may be truncated: copy or export it again"
        ) from None


def volume_shape(where: str, shape: Sequence[int]) -> tuple[Shape, tuple[int, ...]]:
    """Return the shape (z, y, x), and the index that takes off the leading axes of length 1.

    Raises
    ------
    DataError
        If there are fewer than three axes, or more that are longer than 1.
    """
    extra = len(shape) - 3
    if extra < 0 or any(n != 1 for n in shape[:extra]):
        raise DataError(
            f"{where}: an array of three axes (z, y, x) is expected, but its shape is "
            f"{' x '.join(map(str, shape)) or 'empty'}; export one volume, of one channel"
        )
    return (shape[extra], shape[extra + 1], shape[extra + 2]), (0,) * extra
