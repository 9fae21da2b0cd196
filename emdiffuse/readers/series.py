"""A folder or pattern of files with one slice each, in any format.

Conventions
-----------
* See `base` and `names`. All slices have the same shape, type and pixel size.
* TIFF and image files are read once, both for their pixels and for their checksum.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.config.sources import kind_of
from emdiffuse.readers.base import Source, named
from emdiffuse.readers.names import in_order
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

PIXEL_TOLERANCE = 0.01
"""Relative tolerance of the pixel sizes of slices."""
logger = logging.getLogger(__name__)


class NumberedSlices(Source):
    """A stack with one file per slice.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    slices : sequence of Path or None
        File of each slice; None if missing.
    first : Source
        The first slice, opened.
    reading : Reading
        Which part of each file to read.
    """

    def __init__(self, name: str, slices: Sequence[Path | None], first: Source, reading: Reading) -> None:
        there = [z for z, file in enumerate(slices) if file is not None]
        super().__init__(
            name,
            (len(slices), *first.shape[1:]),
            first.stored,
            (1, *first.shape[1:]),
            [file for file in slices if file is not None],
            first.voxel_size,
            missing=[z for z, file in enumerate(slices) if file is None],
        )
        self.separate = True
        self.bar = first.bar
        self._reading = reading
        self._order = [there.index(min(there, key=lambda other: abs(other - z))) for z in range(len(slices))]

    def _where(self, z: int) -> str:
        return str(self.files[self._order[z]])

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        planes = []
        for z in range(z0, z1):
            file = self.files[self._order[z]]
            with named(str(file), "image"):
                content = None
                if kind_of(file.name) == "image":
                    content = file.read_bytes()
                    self.checksums[file] = (len(content), hashlib.sha256(content).hexdigest())
                one = open_file(file, self._reading, content)
                if one.shape[1:] != self._whole or one.stored != self.stored:
                    raise DataError(f"{file}: changed while being read; start again")
                one.masked = self.masked
                planes.append(one._read(0, 1, y, x)[0])
        return np.stack(planes)

    @property
    def _whole(self) -> tuple[int, int]:
        """Rows and columns of a whole file, before cropping."""
        return self.block[1], self.block[2]


def open_file(file: Path, reading: Reading, content: bytes | None = None) -> Source:
    """Open one file by its extension, or an image by its first bytes.

    Parameters
    ----------
    file : Path
        The file.
    reading : Reading
        Which part to read.
    content : bytes, optional
        Bytes of an image, if already read.
    """
    kind = kind_of(file.name)
    if kind == "mrc":
        from emdiffuse.readers.mrc import open_mrc

        return open_mrc(file, reading)
    if kind == "dm":
        from emdiffuse.readers.dm import open_dm

        return open_dm(file, reading)
    if kind == "czi":
        from emdiffuse.readers.czi import open_czi

        return open_czi(file, reading)
    if kind == "amira":
        from emdiffuse.readers.amira import open_amira

        return open_amira(file, reading)
    if kind == "fibsem":
        from emdiffuse.readers.fibsem import open_fibsem

        return open_fibsem(file, reading)
    if kind == "nrrd":
        from emdiffuse.readers.nrrd import open_nrrd

        return open_nrrd(file, reading)
    if kind == "npy":
        from emdiffuse.readers.npy import open_npy

        return open_npy(file, reading)
    if kind == "hdf5":
        from emdiffuse.readers.hdf5 import open_hdf5

        return open_hdf5(file, "", reading)
    if kind == "raw" or reading.raw is not None:
        from emdiffuse.readers.flat import open_raw

        return open_raw(file, reading)
    from emdiffuse.readers.pictures import is_picture, open_picture

    if is_picture(file, content):
        return open_picture(file, reading, content)
    from emdiffuse.readers.tiff import open_tiff

    return open_tiff(file, reading, content)


def open_series(
    source: str, files: Sequence[Path], reading: Reading, repair: bool = False, images: bool = False
) -> Source:
    """Open a folder or pattern of files with one slice each.

    Raises
    ------
    DataError
        If a slice is missing, has several planes, or is unlike the others; names it.
    """
    first: Source | None = open_file(files[0], reading)
    assert first is not None
    if len(first.files) > 1:  # an OME-TIFF that lists all files and their order
        return _of_one_image(source, files, first)
    slices = in_order(source, files, repair, reading.step, images)
    first = None
    for file in slices:
        if file is None:
            continue
        one = open_file(file, reading)
        if one.shape[0] > 1:
            raise DataError(
                f"{file}: there are {one.shape[0]} pages, but a numbered stack has one slice per file"
            )
        first = first or one
        _check_alike(str(file), one, str(files[0]), first)
    if first is None:
        raise DataError(f"{source}: there is no slice; check the path")
    return NumberedSlices(source, slices, first, reading)


def _of_one_image(source: str, files: Sequence[Path], one: Source) -> Source:
    """Open a folder that is one OME image in several files, in the order of its metadata."""
    if {path.resolve() for path in one.files} != {path.resolve() for path in files}:
        raise DataError(
            f"{source}: the OME metadata of '{files[0].name}' list {len(one.files)} files, but "
            "the folder has "
            f"{len(files)}; keep only those of one image in it"
        )
    return one


def _check_alike(where: str, found: Source, first_name: str, first: Source) -> None:
    """Raise `DataError` if a slice has another shape, type or pixel size than the first."""
    if (found.shape[1:], found.stored) != (first.shape[1:], first.stored):
        this, other = (
            f"{one.shape[1]} x {one.shape[2]} pixels of {one.stored.name}" for one in (found, first)
        )
        raise DataError(
            f"{where}: {this}, unlike {first_name} with {other}; all slices must have the same shape and type"
        )
    for own, usual in zip(_pixel(found.voxel_size), _pixel(first.voxel_size), strict=True):
        if own is not None and usual is not None and abs(own - usual) > PIXEL_TOLERANCE * usual:
            raise DataError(
                f"{where}: pixels are {own:.4g} nm, unlike {first_name} with {usual:.4g} nm; all "
                "slices must "
                "have the same magnification"
            )


def _pixel(size: Size | None) -> tuple[float | None, float | None]:
    return (None, None) if size is None else (size[1], size[2])
