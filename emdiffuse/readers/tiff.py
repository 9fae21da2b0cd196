"""TIFF files (OME-TIFF, ImageJ, vendor formats, BigTIFF): choice of the image, and its pixels.

Conventions
-----------
* See `base`. The meaning and order of pages come from tifffile's `series`: OME plane order, ImageJ
  hyperstacks, positions, pyramids.
* Values are those that a viewer shows: pages with 0 as white are inverted, grey palettes are applied, and
  images stored upside down or rotated (Orientation) are upright. `Shown` records this, so that an output can
  be stored like its input.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Source, named
from emdiffuse.readers.data_bar import bar_of_tiff
from emdiffuse.readers.flat import FlatFile
from emdiffuse.readers.pictures import warn_of_loss
from emdiffuse.readers.reasons import warn_once
from emdiffuse.readers.tiff_checks import breaks_off, check_pages, contiguous
from emdiffuse.readers.tiff_shown import Shown, shown_as
from emdiffuse.readers.tiff_sizes import channel_names, voxel_size
from emdiffuse.runtime.errors import DataError

SAME_ASPECT = 0.02
"""Relative tolerance between the aspect ratios of an overview and its image."""
LOSSY = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our errors cover what it logs about damaged files
warnings.filterwarnings("ignore", message=".*reading array from closed file")  # for an image in several files


class TiffStack(Source):
    """The stack of a TIFF file.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    file : Path
        The file.
    content : bytes or None
        Its bytes, if already in memory.
    choice : tuple
        Numbers of the series and of the level.
    layout : Layout
        Position of the stack in the series.
    shown : Shown
        How the pixels are shown.
    dtype : numpy.dtype
        Data type of a shown pixel.
    """

    def __init__(
        self,
        name: str,
        file: Path,
        content: bytes | None,
        choice: tuple[int, int],
        layout: Layout,
        shown: Shown,
        dtype: np.dtype[Any],
    ) -> None:
        z, y, x = layout.shape
        turned = shown.orientation >= 5
        shape = (z, x, y) if turned else (z, y, x)
        super().__init__(name, shape, dtype, (1, *shape[1:]), [file])
        self.shown = shown
        self._content = content
        self.choice = choice
        self._layout = layout
        self._lock = threading.RLock()

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        planes = []
        for z in range(z0, z1):
            with named(self._where(z), "TIFF"):
                planes.append(np.ascontiguousarray(self.shown.apply(self._decode(z))[y, x], self.stored))
        return np.stack(planes)

    def _decode(self, z: int) -> NDArray[Any]:
        """Return a stored page."""
        layout = self._layout
        with self._lock:
            series = _level(self._file, self.choice)
            loops = layout.lengths[: len(layout.lengths) - series.keyframe.ndim]
            index = layout.region(z, z + 1, slice(None), slice(None))
            place = [i.start if isinstance(i, slice) else i for i in index[: len(loops)]]
            page = series.pages[int(np.ravel_multi_index(place, loops)) if loops else 0]
        self._require_whole(z, page)
        values = page.asarray(lock=self._lock, maxworkers=1)
        inner = Layout(
            layout.letters[len(loops) :],
            layout.lengths[len(loops) :],
            {i - len(loops): n for i, n in layout.fixed.items() if i >= len(loops)},
        )
        fixed = tuple(inner.fixed.get(i, slice(None)) for i in range(len(inner.letters)))
        plane: NDArray[Any] = inner.arranged(self._where(z), values.reshape(inner.lengths)[fixed])[0]
        return plane

    def _require_whole(self, z: int, page: Any) -> None:
        """Refuse a page with missing strips or tiles, which tifffile reads as zeros."""
        wanted = prod(page.keyframe.chunked)
        there = sum(count > 0 for _, count in zip(page.dataoffsets, page.databytecounts, strict=False))
        if there < wanted:
            raise DataError(
                f"{self._where(z)}: only {there} of {wanted} strips (or tiles) of its pixels exist; it "
                "was not completely written; copy or export it again"
            )

    @cached_property
    def _file(self) -> tifffile.TiffFile:
        """The file, kept open, because finding a page means walking through all pages before it."""
        return tifffile.TiffFile(io.BytesIO(self._content) if self._content is not None else self.files[0])

    def _where(self, z: int) -> str:
        return self.name if self.shape[0] == 1 else super()._where(z)


class OneDirectory(FlatFile):
    """A stack whose pixels follow a single directory, as ImageJ writes beyond 4 GB."""

    shown = Shown()
    choice = (0, 0)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        values = super()._read(z0, z1, y, x)
        return np.stack([self.shown.apply(plane) for plane in values]) if self.shown.inverted else values


def open_tiff(file: Path, reading: Reading, content: bytes | None = None) -> TiffStack | OneDirectory:
    """Open a TIFF file.

    Parameters
    ----------
    file : Path
        The file.
    reading : Reading
        Which image to read.
    content : bytes, optional
        Bytes of the file, if already read; they are assumed to be complete.

    Raises
    ------
    DataError
        If a choice is needed, or it is not a grayscale stack of a supported type, or is truncated.
    """
    with _opened(file, content) as tif:
        number = _chosen_series(file, tif, reading)
        series = _level(tif, (number, reading.level), file)
        names = _axis_names(file, tif, series)
        layout = lay_out(str(file), series.shape, names, reading, channel_names(tif, number))
        keyframe = series.keyframe
        shown, dtype = shown_as(file, keyframe, series.dtype)
        planes = int(np.prod(series.shape[: len(series.shape) - keyframe.ndim]))
        opened: TiffStack | OneDirectory
        if len(series.pages) == 1 and planes > 1:
            offset = contiguous(file, series)
            opened = OneDirectory(
                str(file), file, layout, series.dtype.newbyteorder(tif.byteorder), offset, None
            )
            if shown.orientation != 1 or shown.palette is not None:
                raise DataError(f"{file}: a rotated or indexed stack with a single directory; save it again")
            opened.shown = shown
            opened.choice = (number, reading.level)
        else:
            if set(layout.letters[: len(layout.letters) - keyframe.ndim]) & {"y", "x", "s"}:
                raise DataError(
                    f"{file}: a page is not a plane of rows and columns ({series.axes}); export it as "
                    "plain slices"
                )
            if content is None:
                check_pages(file, tif, series, planes)
                if shown.inverted:
                    warn_once("%s: the file states that 0 is white; read inverted, as viewers show it", file)
                if keyframe.compression in LOSSY:
                    warn_of_loss(file, "JPEG")
            opened = TiffStack(str(file), file, content, (number, reading.level), layout, shown, dtype)
        opened.voxel_size = voxel_size(tif, number, reading.level, file)
        if shown.orientation >= 5 and opened.voxel_size is not None:
            z, y, x = opened.voxel_size
            opened.voxel_size = (z, x, y)
        opened.bar = bar_of_tiff(tif, file, opened.shape[1]) if shown.orientation == 1 else 0
        if series.is_multifile:
            opened.files = sorted({Path(page.parent.filehandle.path) for page in series.pages if page})
        return opened


def _level(tif: tifffile.TiffFile, choice: tuple[int, int], file: Path | None = None) -> Any:
    """Return a level of a series."""
    number, level = choice
    levels = tif.series[number].levels
    if level >= len(levels):
        raise DataError(
            f"{file}: `level` is {level}, but there "
            + ("is only one, 0" if len(levels) == 1 else f"are {len(levels)}, counted from 0")
        )
    return levels[level]


def _chosen_series(file: Path, tif: tifffile.TiffFile, reading: Reading) -> int:
    """Return the number of the chosen series.

    Overviews are ignored: pages marked as reduced, or showing the largest image at half its size or less.
    """
    all_series = tif.series
    if not all_series:
        raise DataError(f"{file}: there is no image in this TIFF; export it again")
    names = [str(series.name) for series in all_series]
    described = "; ".join(
        f"{i}: {' x '.join(map(str, series.shape))} {series.dtype}" + (f" '{name}'" if name else "")
        for i, (series, name) in enumerate(zip(all_series, names, strict=True))
    )
    choice = reading.series
    if isinstance(choice, str) and choice not in names and choice.isdigit():
        choice = int(choice)
    if isinstance(choice, str) and choice in names:
        return names.index(choice)
    if choice is not None:
        if isinstance(choice, str) or not 0 <= choice < len(all_series):
            raise DataError(f"{file}: there is no series {choice!r}; available: {described}")
        return choice
    full = [i for i, series in enumerate(all_series) if not series.keyframe.is_reduced] or [0]
    largest = max(full, key=lambda i: _side(all_series[i])[0] * _side(all_series[i])[1])
    left = [i for i in full if i == largest or not _overview(all_series[i], all_series[largest])]
    if len(left) > 1:
        alike = not tif.is_ome and len({(_side(all_series[i]), all_series[i].dtype) for i in left}) == 1
        stack = (
            ", or, if they are one stack, save its pages alike: they differ in compression or photometric"
            if alike
            else ""
        )
        raise DataError(
            f"{file}: contains {len(left)} images ({described}); choose one with `series`, such as 0{stack}"
        )
    if len(left) < len(full):
        warn_once("%s: reading series %d; the others are treated as overviews (%s)", file, left[0], described)
    return left[0]


def _side(series: Any) -> tuple[int, int]:
    page = series.keyframe
    return page.imagelength, page.imagewidth


def _overview(series: Any, image: Any) -> bool:
    (height, width), (full_height, full_width) = _side(series), _side(image)
    ratio = full_height / height
    return ratio >= 2 and abs(full_width / width - ratio) <= SAME_ASPECT * ratio


def _axis_names(file: Path, tif: tifffile.TiffFile, series: Any) -> str:
    """Return the axes of a series as named in the file, ignoring tifffile's guesses."""
    names = list(series.axes)
    page = series.keyframe
    if "S" in names and page.photometric in (
        tifffile.PHOTOMETRIC.MINISBLACK,
        tifffile.PHOTOMETRIC.MINISWHITE,
    ):
        extra = [int(kind) for kind in page.extrasamples]
        if not (len(extra) == series.shape[names.index("S")] - 1 == 1 and extra[0] in (1, 2)):
            names[names.index("S")] = "C"  # detectors side by side, not colours
    if series.kind == "imagej":
        properties = tif.imagej_metadata or {}
        if "channels" not in properties and "C" in names:
            names[names.index("C")] = "?"
        images = int(properties.get("images", 1))
        pages = len(tif.pages)
        if 1 < pages < images:
            warn_once(
                "%s: ImageJ's metadata state %d images, but there are %d; these are read", file, images, pages
            )
    return "".join(names)


@contextmanager
def _opened(file: Path, content: bytes | None) -> Iterator[tifffile.TiffFile]:
    with named(str(file), "TIFF"):
        if content is None and file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty; copy or export it again")
        try:
            with tifffile.TiffFile(file if content is None else io.BytesIO(content)) as tif:
                yield tif
        except tifffile.TiffFileError:
            if content is None and breaks_off(file):
                raise DataError(
                    f"{file}: the list of pages is incomplete: the file is truncated; copy or export it again"
                ) from None
            raise
