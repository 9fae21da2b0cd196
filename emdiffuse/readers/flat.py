"""Files of contiguous uncompressed pixels: MRC, raw, FIB-SEM, Amira, NRRD, NumPy, old TIFF.

Conventions
-----------
* See `base`. Files are read through memory maps that are reopened for each part, so that parts already read
  do not stay in memory.
* A compressed file (``.gz``, ``.bz2``) is decompressed once, into an unnamed scratch file that disappears
  with the process.
"""

from __future__ import annotations

import bz2
import gzip
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Raw, Reading
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Source, named
from emdiffuse.readers.reasons import warn_once
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

KEPT_BYTES = 2**22
"""Approximate number of bytes of the file that are mapped at a time."""
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}


class FlatFile(Source):
    """A file of uncompressed pixels.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    file : Path
        The file.
    layout : Layout
        Position of the stack in the stored array.
    stored : numpy.dtype
        Type as stored, with its byte order.
    offset : int
        First byte of the pixels.
    voxel_size : tuple of float, optional
        Voxel size (z, y, x) in nanometers.
    unpacked : file, optional
        Decompressed bytes of a compressed file.
    """

    def __init__(
        self,
        name: str,
        file: Path,
        layout: Layout,
        stored: np.dtype[Any],
        offset: int,
        voxel_size: Size | None,
        unpacked: IO[bytes] | None = None,
    ) -> None:
        super().__init__(name, layout.shape, stored, (1, 1, 1), [file], voxel_size)
        self._layout = layout
        self._as_stored = stored
        self._offset = offset
        self._unpacked = unpacked

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        layout, (_, height, width) = self._layout, self.shape
        rows, columns = len(range(*y.indices(10**9))), len(range(*x.indices(10**9)))
        values = np.empty((z1 - z0, rows, columns), self.stored)
        step = max(1, KEPT_BYTES // (height * width * layout.samples * self.stored.itemsize))
        for z in range(z0, z1, step):
            end = min(z + step, z1)
            part = self._mapped()[layout.region(z, end, y, x)]
            values[z - z0 : end - z0] = layout.arranged(self.where(z), part)
        return values

    def _mapped(self) -> NDArray[Any]:
        source: Any = self._unpacked or self.files[0]
        return np.memmap(source, self._as_stored, "r", self._offset, self._layout.lengths)


def opened(file: Path) -> tuple[IO[bytes] | None, int]:
    """Return the decompressed bytes of a file (None if not compressed), and their number."""
    reader = PACKED.get(file.suffix.lower())
    if reader is None:
        return None, file.stat().st_size
    with named(str(file), "packed file"):
        scratch = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the source)
        with reader(file, "rb") as packed:
            shutil.copyfileobj(packed, scratch, 2**20)
        return scratch, scratch.tell()


def head(file: Path, unpacked: IO[bytes] | None, count: int) -> bytes:
    """Return the first bytes of a file, decompressed if it was compressed."""
    if unpacked is None:
        with file.open("rb") as source:
            return source.read(count)
    unpacked.seek(0)
    return unpacked.read(count)


def of_what_is_there(
    name: str, found: int, offset: int, layout: Layout, stored: np.dtype[Any], reading: Reading
) -> Layout:
    """Return the layout of a file with `found` bytes; a truncated file is reduced to its complete slices.

    An interrupted recording has complete slices, which a crop can select.

    Raises
    ------
    DataError
        If the file ends before the requested pixels; states what is missing, and what is left.
    """
    slab = int(np.prod(layout.lengths[1:])) * stored.itemsize
    needed = offset + layout.lengths[0] * slab
    if found >= needed:
        return layout
    whole = max(found - offset, 0) // slab if layout.letters[0] == "z" else 0
    wanted = None if reading.crop is None else reading.crop.z
    if wanted is not None and wanted[1] <= whole:
        warn_once("%s: the file is truncated after %d of %d slices", name, whole, layout.lengths[0])
        return replace(layout, lengths=(whole, *layout.lengths[1:]))
    left = f", or keep the {whole} slices that are there by `crop: {{z: [0, {whole}]}}`" if whole else ""
    raise DataError(
        f"{name}: the file is truncated: its header states "
        f"{' x '.join(map(str, layout.lengths))} pixels of {stored.name}, which are {needed} bytes, but "
        f"there are {found}; copy or export it again{left}"
    )


def open_raw(file: Path, reading: Reading) -> FlatFile:
    """Open a headerless file, whose shape and type the user states.

    Raises
    ------
    DataError
        If they are not stated, or do not match the size of the file.
    """
    raw: Raw | None = reading.raw
    if raw is None:
        raise DataError(
            f"{file}: a headerless file does not state its shape; give `raw: "
            f"{{shape: [z, y, x], dtype: uint8}}`"
        )
    stored = np.dtype(raw.dtype).newbyteorder("<" if raw.byte_order == "little" else ">")
    layout = lay_out(str(file), raw.shape, None, reading)
    unpacked, size = opened(file)
    needed = raw.offset + int(np.prod(raw.shape)) * stored.itemsize
    if size != needed:
        raise DataError(
            f"{file}: `raw` states {' x '.join(map(str, raw.shape))} pixels of {raw.dtype} after "
            f"{raw.offset} "
            f"bytes, which makes {needed} bytes, but the file has {size}; correct `raw`"
        )
    return FlatFile(str(file), file, layout, stored, raw.offset, None, unpacked)
