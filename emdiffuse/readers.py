"""The raw files of a microscope, read as lazy stacks of slices.

Conventions
-----------
* Axes are (z, y, x); slices are counted from 0, in the order of pages or of the numbers in file names.
* Values are returned as stored, in native byte order; nothing is scaled, inverted or converted.
* The metadata of every file is checked when a source is opened; pixels are read slab by slab, later.
* Whatever is wrong with the files raises `DataError`: one sentence that names the file and says what to do.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.errors import DataError

DTYPES = ("uint8", "uint16", "int16", "float32")
SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
_DIGITS = re.compile(r"(\d+)")


class Slices:
    """A stack of slices on disk.

    Parameters
    ----------
    files : list of Path
        One file that holds all slices, or one file a slice, in order.
    shape : tuple of int
        Shape (z, y, x).
    dtype : numpy.dtype
        One of `DTYPES`, in native byte order.
    offset : int, optional
        First byte of the pixels, in a file that holds all slices uncompressed behind one another.
    """

    def __init__(
        self,
        files: Sequence[Path],
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        offset: int | None = None,
    ) -> None:
        self.files = list(files)
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self._stored = dtype
        self._offset = offset

    def read(self, z0: int, z1: int) -> NDArray[Any]:
        """Return the slices z0 to z1 - 1 as an array (z, y, x) of the stack's type.

        Raises
        ------
        DataError
            If a slice cannot be decoded, or holds NaN or infinite values; it is named.
        """
        if not 0 <= z0 < z1 <= self.shape[0]:
            raise IndexError(f"slices {z0} to {z1} of {self.shape[0]}")
        slab = np.empty((z1 - z0, *self.shape[1:]), self.dtype)
        for z in range(z0, z1):
            with _named(self.where(z)):
                slab[z - z0] = self._decode(z)
            if self.dtype.kind == "f" and not np.isfinite(slab[z - z0]).all():
                raise DataError(f"{self.where(z)}: there are NaN or infinite values; replace them by numbers")
        return slab

    def where(self, z: int) -> str:
        """Return the name of a slice for a person: its file, and its number in a file of many."""
        return str(self.files[z]) if len(self.files) > 1 else f"{self.files[0]}: slice {z} (counted from 0)"

    def _decode(self, z: int) -> NDArray[Any]:
        if len(self.files) > 1:
            return tifffile.imread(self.files[z], key=0)
        if self._offset is None:
            return self._file.pages[z].asarray()
        count = self.shape[1] * self.shape[2]
        offset = self._offset + z * count * self.dtype.itemsize
        return np.fromfile(self.files[0], self._stored, count, offset=offset).reshape(self.shape[1:])

    @cached_property
    def _file(self) -> tifffile.TiffFile:
        """The one file, kept open: finding a page means walking through all pages before it."""
        return tifffile.TiffFile(self.files[0])


def open_source(source: str) -> Slices:
    """Open raw data, and check the metadata of all its files.

    Parameters
    ----------
    source : str
        A multi-page TIFF, BigTIFF or OME-TIFF; a folder of numbered TIFF slices, zero-padded or not; or a
        glob of them.

    Returns
    -------
    Slices
        The stack, of which no pixel was read yet.

    Raises
    ------
    DataError
        If there is no such file, a slice is missing, repeated, unreadable or unlike the others, or the
        type of the pixels is not supported.
    """
    files = source_files(source)
    return _open_file(files[0]) if len(files) == 1 else _open_numbered(source, files)


def source_files(source: str) -> list[Path]:
    """Return the TIFF files that a source names, sorted by name: not yet in the order of their numbers.

    Raises
    ------
    DataError
        If there is none.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = list(path.iterdir())
    else:
        found = (
            list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if re.search(r"[*?\[]", source)
            else []
        )
    files = sorted(f for f in found if f.suffix.lower() in SUFFIXES and f.name[0] != "." and f.is_file())
    if not files:
        what = "this folder holds" if path.is_dir() else "there is"
        raise DataError(f"{source}: {what} no TIFF file ({', '.join(SUFFIXES)}); check the path")
    return files


def _open_file(file: Path) -> Slices:
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
            return Slices([file], (depth, height, width), dtype, _contiguous(file, series))
        return Slices([file], (pages, height, width), dtype)


def _contiguous(file: Path, series: tifffile.TiffPageSeries) -> int:
    """Return where the pixels of a stack with one directory begin: ImageJ writes more than 4 GB so."""
    if series.dataoffset is None or series.dataoffset + series.nbytes > file.stat().st_size:
        raise DataError(f"{file}: the file is truncated; copy or export it again")
    return series.dataoffset


def _open_numbered(source: str, files: list[Path]) -> Slices:
    """Open a folder of numbered slices."""
    files = _in_order(source, files)
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
    return Slices(files, (len(files), *first[0]), first[1])


def _in_order(source: str, files: list[Path]) -> list[Path]:
    """Sort files by the last number that differs between their names.

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
    missing = [n for n in range(min(numbered), max(numbered)) if n not in numbered]
    if missing:
        shown = ", ".join(str(n) for n in missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise DataError(
            f"{source}: slices are missing between '{numbered[min(numbered)][0].name}' and "
            f"'{numbered[max(numbered)][0].name}': number {shown}; add them, or renumber the files"
        )
    return [numbered[n][0] for n in sorted(numbered)]


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
    with _named(str(file)):
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty; copy or export it again")
        with tifffile.TiffFile(file) as tif:
            yield tif


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence; what it logs says no more, and is left out."""
    logger = logging.getLogger("tifffile")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{where}: not a readable TIFF ({reason}); it may be truncated: copy or export it again"
        ) from None
    finally:
        logger.disabled = disabled
