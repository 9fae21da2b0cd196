"""MRC files (also .rec, .st and .map of tomography), read through a memory map.

Conventions
-----------
* See `base`. The voxel size is that of the header; none of 0, and not the 1 angstrom that writers put there
  when they know of none.
* Bytes are signed in MRC 2014; those of a file whose IMOD stamp says that they are not, are read unsigned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.readers.base import Shape, Source, named, volume_shape
from emdiffuse.runtime.errors import DataError

IMOD_STAMP = 1146047817
UNKNOWN = (0.0, 1.0)
"""Sizes in angstrom that mean that nobody knows."""
KEPT_BYTES = 2**22
"""Bytes of the file that stay mapped at a time, about."""


class MrcFile(Source):
    """An MRC file.

    Parameters
    ----------
    file : Path
        The file.
    shape : tuple of int
        Shape (z, y, x).
    stored : numpy.dtype
        Type as stored, with its byte order.
    offset : int
        First byte of the pixels.
    voxel_size : tuple of float, optional
        Voxel size (z, y, x) in nanometers.
    """

    def __init__(
        self,
        file: Path,
        shape: Shape,
        stored: np.dtype[Any],
        offset: int,
        voxel_size: tuple[float, ...] | None,
    ) -> None:
        super().__init__(str(file), shape, stored, (1, 1, 1), [file], voxel_size)
        self._stored = stored
        self._offset = offset

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        values = np.empty((z1 - z0, len(range(self.shape[1])[y]), len(range(self.shape[2])[x])), self.dtype)
        step = max(1, KEPT_BYTES // (self.shape[1] * self.shape[2] * self.dtype.itemsize))
        for z in range(z0, z1, step):  # each mapped anew, so that what was read does not stay in memory
            mapped = np.memmap(self.files[0], self._stored, "r", self._offset, self.shape)
            values[z - z0 : z - z0 + step] = mapped[z : min(z + step, z1), y, x]
        return values


def open_mrc(file: Path) -> MrcFile:
    """Open an MRC file; its size must be that of its header.

    Raises
    ------
    DataError
        If the library is missing, or the file is not one volume of a supported type.
    """
    try:
        import mrcfile
    except ImportError:
        raise DataError(f"{file}: to read MRC, install `pip install 'emdiffuse[formats]'`") from None
    with named(str(file), "MRC file"), mrcfile.mmap(file, mode="r") as opened:
        stored, shape = opened.data.dtype, opened.data.shape
        if stored == np.int8 and _bytes_are_unsigned(opened.header):
            stored = np.dtype(np.uint8)
        if stored.kind not in "iuf":
            raise DataError(
                f"{file}: pixels of type {stored} are not supported; convert them to real numbers"
            )
        whole, _ = volume_shape(str(file), shape)
        angstrom = [float(opened.voxel_size[axis]) for axis in "zyx"]
        known = None if all(size in UNKNOWN for size in angstrom) else tuple(size / 10 for size in angstrom)
        return MrcFile(file, whole, stored, 1024 + int(opened.header.nsymbt), known)


def _bytes_are_unsigned(header: Any) -> bool:
    """Tell whether IMOD wrote the file, and did not say that its bytes are signed."""
    stamp, flags = np.frombuffer(header.extra2.tobytes(), header.nx.dtype)[10:12]
    return int(stamp) == IMOD_STAMP and not int(flags) & 1
