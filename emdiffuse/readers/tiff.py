"""TIFF: a file of many pages (BigTIFF, OME-TIFF, ImageJ's), or a folder of numbered slices.

Conventions
-----------
* See `base`. Slices come in the order of pages, or of the numbers in file names.
* A numbered slice is read once, for its pixels and for its checksum.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.config.sources import tiff_files
from emdiffuse.readers.base import DTYPES, Shape, Source, named
from emdiffuse.runtime.errors import DataError

_DIGITS = re.compile(r"(\d+)")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of a damaged file, our errors say


class TiffPages(Source):
    """A file that holds all slices.

    Parameters
    ----------
    file : Path
        The file.
    shape : tuple of int
        Shape (z, y, x).
    stored : numpy.dtype
        Type as stored, with its byte order.
    offset : int, optional
        First byte of the pixels, in a file that holds all slices uncompressed behind one another.
    """

    def __init__(self, file: Path, shape: Shape, stored: np.dtype[Any], offset: int | None = None) -> None:
        super().__init__(str(file), shape, stored, (1, *shape[1:]), [file])
        self._stored = stored
        self._offset = offset
        self._lock = threading.RLock()

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        planes = []
        for z in range(z0, z1):
            with _readable(self.where(z)):
                planes.append(self._decode(z)[y, x].astype(self.dtype))
        return np.stack(planes)

    def _decode(self, z: int) -> NDArray[Any]:
        if self._offset is None:
            with self._lock:
                page = self._file.pages[z]
            return page.asarray(lock=self._lock, maxworkers=1)
        count = self.shape[1] * self.shape[2]
        offset = self._offset + z * count * self.dtype.itemsize
        return np.fromfile(self.files[0], self._stored, count, offset=offset).reshape(self.shape[1:])

    @cached_property
    def _file(self) -> tifffile.TiffFile:
        """The one file, kept open: finding a page means walking through all pages before it."""
        return tifffile.TiffFile(self.files[0])


class NumberedTiffs(Source):
    """A file a slice.

    Parameters
    ----------
    name : str
        What the user calls them.
    slices : sequence of Path or None
        The file of each slice, None where there is none.
    shape : tuple of int
        Shape (y, x) of a slice.
    stored : numpy.dtype
        Type as stored.
    """

    def __init__(
        self, name: str, slices: Sequence[Path | None], shape: tuple[int, int], stored: np.dtype[Any]
    ) -> None:
        there = [z for z, file in enumerate(slices) if file is not None]
        super().__init__(
            name,
            (len(slices), *shape),
            stored,
            (1, *shape),
            [file for file in slices if file is not None],
            missing=[z for z, file in enumerate(slices) if file is None],
        )
        self._order = [there.index(min(there, key=lambda other: abs(other - z))) for z in range(len(slices))]
        self.checksums: dict[Path, tuple[int, str]] = {}
        """Size and SHA-256 of each file that was read."""

    def where(self, z: int) -> str:
        """Return the file of a slice."""
        return str(self.files[self._order[z]])

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        planes = []
        for z in range(z0, z1):
            file = self.files[self._order[z]]
            with _readable(str(file)):
                content = file.read_bytes()
                self.checksums[file] = (len(content), hashlib.sha256(content).hexdigest())
                values = tifffile.imread(io.BytesIO(content), key=0, maxworkers=1)
                if values.shape != self.shape[1:]:
                    raise ValueError("it changed since it was opened")
                planes.append(values[y, x].astype(self.dtype))
        return np.stack(planes)


def open_tiff(source: str, repair: bool = False) -> Source:
    """Open a TIFF file, a folder of numbered slices, or a glob of them; see `readers.open_source`."""
    files = tiff_files(source)
    return _open_file(files[0]) if len(files) == 1 else _open_numbered(source, files, repair)


def _open_file(file: Path) -> Source:
    """Open a file that holds all slices."""
    with _opened(file) as tif:
        (height, width), dtype, pages = _check_pages(file, tif)
        series = tif.series[0]
        if series.is_multifile:
            raise DataError(f"{file}: this OME-TIFF is one of several files; give their folder as the source")
        if any(page is None for page in series.pages):
            raise DataError(f"{file}: the OME metadata name slices that are not in the file; export it again")
        loops = {a: n for a, n in zip(series.axes, series.shape, strict=True) if a not in "YX" and n > 1}
        if len(loops) > 1:
            axes = " and ".join(f"{n} along {axis}" for axis, n in loops.items())
            raise DataError(
                f"{file}: a stack along z alone is expected, but there are {axes}; split the file"
            )
        if "C" in loops:
            logging.getLogger(__name__).warning(
                "%s: the pages are labelled as channels; taken as slices", file
            )
        depth = series.size // (height * width)
        if pages == 1 and depth > 1:
            return TiffPages(file, (depth, height, width), dtype, _contiguous(file, series))
        return TiffPages(file, (pages, height, width), dtype)


def _contiguous(file: Path, series: tifffile.TiffPageSeries) -> int:
    """Return where the pixels of a stack with one directory begin: ImageJ writes more than 4 GB so."""
    if series.dataoffset is None or series.dataoffset + series.nbytes > file.stat().st_size:
        raise DataError(f"{file}: the file is truncated; copy or export it again")
    return series.dataoffset


def _open_numbered(source: str, files: list[Path], repair: bool) -> Source:
    """Open a folder of numbered slices."""
    slices = _in_order(source, files, repair)
    files = [file for file in slices if file is not None]
    first: tuple[tuple[int, int], np.dtype[Any]] | None = None
    for file in files:
        with _opened(file) as tif:
            shape, dtype, pages = _check_pages(file, tif)
            pages = max(pages, (tif.imagej_metadata or {}).get("images", 1))
        if pages > 1:
            raise DataError(f"{file}: there are {pages} pages; a numbered stack has one slice a file")
        first = first or (shape, dtype)
        _check_alike(str(file), (shape, dtype), str(files[0]), first)
    assert first is not None
    return NumberedTiffs(source, slices, *first)


def _in_order(source: str, files: list[Path], repair: bool) -> list[Path | None]:
    """Sort files by the last number that differs between their names; None for one that is not there.

    Raises
    ------
    DataError
        If names differ in more than numbers, a number is missing, or two files have the same.
    """
    names = {file: _DIGITS.split(file.stem) for file in files}
    first, *others = names
    for file in others:
        if names[file][::2] != names[first][::2]:
            raise DataError(
                f"{source}: '{first.name}' and '{file.name}' are not numbered alike; keep one stack in a "
                "folder, or select it by a pattern such as 'slice_*.tif'"
            )
    varying = [
        i for i in range(1, len(names[first]), 2) if len({int(parts[i]) for parts in names.values()}) > 1
    ]
    position = varying[-1] if varying else len(names[first]) - 2
    numbered: dict[int, list[Path]] = defaultdict(list)
    for file, parts in names.items():
        numbered[int(parts[position]) if position > 0 else 0].append(file)
    for number, same in numbered.items():
        if len(same) > 1:
            raise DataError(
                f"{source}: '{same[0].name}' and '{same[1].name}' have the same number {number}; keep one"
            )
    numbers = range(min(numbered), max(numbered) + 1)
    missing = [n for n in numbers if n not in numbered]
    if missing and (not repair or len(missing) > len(numbered)):
        shown = ", ".join(str(n) for n in missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise DataError(
            f"{source}: slices are missing between '{numbered[min(numbered)][0].name}' and "
            f"'{numbered[max(numbered)][0].name}': number {shown}; add them, renumber the files"
            + (": these are more than there are" if repair else ", or say `repair: true`")
        )
    return [numbered[n][0] if n in numbered else None for n in numbers]


def _check_pages(file: Path, tif: tifffile.TiffFile) -> tuple[tuple[int, int], np.dtype[Any], int]:
    """Check all pages of a file, without decoding one.

    Returns
    -------
    shape : tuple of int
        Height and width of every page.
    dtype : numpy.dtype
        Type as stored, with its byte order.
    pages : int
        Number of pages.
    """
    size = file.stat().st_size
    first: tuple[tuple[int, int], np.dtype[Any]] | None = None
    pages = len(tif.pages)
    for index in range(pages):
        page = tif.pages[index].aspage()
        where = f"{file}: page {index} (counted from 0)" if pages > 1 else str(file)
        if page.samplesperpixel != 1 or page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise DataError(f"{where}: this is a colour image; convert it to one grayscale channel")
        if page.dtype is None or page.dtype.name not in DTYPES:
            kind = f"{page.bitspersample}-bit" if page.dtype is None else page.dtype.name
            raise DataError(
                f"{where}: pixels of type {kind} are not supported; convert them to {', '.join(DTYPES)}"
            )
        if page.imagedepth != 1 or page.imagelength * page.imagewidth == 0:
            raise DataError(
                f"{where}: the image has no height or width, or has a depth; export it as plain slices"
            )
        ends = [
            o + n if o and n else size + 1 for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
        if not ends or max(ends) > size:
            raise DataError(
                f"{where}: pixels are missing at its end: the file is truncated; copy or export it again"
            )
        shape = (page.imagelength, page.imagewidth)
        first = first or (shape, page.dtype.newbyteorder(tif.byteorder))
        _check_alike(where, (shape, page.dtype.newbyteorder(tif.byteorder)), f"{file}: page 0", first)
    if first is None or not _chain_ends(tif):
        raise DataError(
            f"{file}: the list of pages breaks off: the file is truncated; copy or export it again"
        )
    return (*first, pages)


def _chain_ends(tif: tifffile.TiffFile) -> bool:
    """Tell whether the last page says that it is the last: the offset of a next page is zero."""
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    offset = tif.filehandle.read(tif.tiff.offsetsize)
    return len(offset) == tif.tiff.offsetsize and not any(offset)


def _check_alike(
    where: str,
    found: tuple[tuple[int, int], np.dtype[Any]],
    first: str,
    expected: tuple[tuple[int, int], np.dtype[Any]],
) -> None:
    """Raise `DataError` if a slice has another shape or type than the first."""
    if found == expected:
        return
    this, other = (
        f"{height} x {width} pixels of {dtype.name}" for (height, width), dtype in (found, expected)
    )
    raise DataError(
        f"{where}: {this}, unlike {first} with {other}; all slices must have the same shape and type"
    )


@contextmanager
def _opened(file: Path) -> Iterator[tifffile.TiffFile]:
    with _readable(str(file)):
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty; copy or export it again")
        with tifffile.TiffFile(file) as tif:
            yield tif


@contextmanager
def _readable(where: str) -> Iterator[None]:
    with named(where, "TIFF"):
        yield
