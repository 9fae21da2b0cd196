"""Readers of raw data in any supported format, as lazy stacks of slices.

Conventions
-----------
* See `base` for sources, and `emdiffuse.config.sources` for how they are named.
* Each format has its own module, which imports its library when a file is opened. Importing this package, and
  listing the files of a source, imports none, because the workflow does so at every start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emdiffuse.config.reading import Reading
from emdiffuse.config.sources import (
    ENDINGS,
    PACKED,
    SUFFIXES,
    SourceName,
    image_files,
    parse_source,
    require_source,
    source_files,
)
from emdiffuse.runtime.errors import DataError, EmdiffuseError, printable

if TYPE_CHECKING:
    from emdiffuse.readers.base import Source

__all__ = ["READABLE", "SUFFIXES", "open_source", "source_files"]

READABLE = (*ENDINGS, *(f"{ending}{packed}" for ending in ENDINGS for packed in PACKED))
"""Extensions of all readable files."""


def open_source(
    source: str, repair: bool = False, reading: Reading | None = None, images: bool = False
) -> Source:
    """Open raw data, and check the metadata of all its files.

    Parameters
    ----------
    source : str
        A file, a folder or pattern of files with one slice each, an array in an HDF5 file
        (``file.h5:/path``), a store, or its URL: see `emdiffuse.config.sources`.
    repair : bool
        Whether gaps in the slice numbers are marked as missing, rather than refused.
    reading : Reading, optional
        Which part to read: series, channel, level, crop, ...
    images : bool
        Whether these are separate images, whose names need no numbers.

    Returns
    -------
    Source
        The stack; no pixel has been read yet.

    Raises
    ------
    DataError
        If the data do not exist, a slice is missing, repeated, unreadable or unlike the others, a choice is
        needed, or the pixel type is not supported.
    """
    reading = reading or Reading()
    name = parse_source(source)
    place = Path(name.place)
    if not name.remote and place.exists() and not (place.is_file() or place.is_dir()):
        raise DataError(
            f"{source}: not a file or a folder, but a pipe or a device; save the data to a file first"
        )
    with understood(source):
        opened = _open(source, name, repair, reading, images)
    opened.masked = reading.nan == "mask"
    if reading.data_bar != "auto":
        opened.bar = reading.data_bar
    if opened.bar >= opened.shape[1]:
        raise DataError(f"{source}: `data_bar` is {opened.bar} of {opened.shape[1]} rows; give fewer")
    if reading.crop is not None:
        opened.crop(reading.crop)
    if opened.absent:
        from emdiffuse.readers.absent import require_chunks

        require_chunks(opened, reading)
    return opened


def _open(source: str, name: SourceName, repair: bool, reading: Reading, images: bool) -> Source:
    place = Path(name.place)
    if name.kind == "image":
        from emdiffuse.readers.series import open_file, open_series

        files = image_files(name.place)
        one = len(files) == 1 and reading.step is None
        return open_file(files[0], reading) if one else open_series(source, files, reading, repair, images)
    require_source(source, name)
    if name.kind == "hdf5":
        from emdiffuse.readers.hdf5 import open_hdf5

        return open_hdf5(place, name.inside, reading)
    if name.kind == "precomputed":
        from emdiffuse.readers.precomputed import open_precomputed

        return open_precomputed(source, name.place, reading)
    if name.kind == "n5":
        from emdiffuse.readers.n5 import open_n5

        return open_n5(source, name.place, reading)
    if name.kind == "webknossos":
        from emdiffuse.readers.webknossos import open_webknossos

        return open_webknossos(source, name.place, reading)
    if name.kind == "zarr":
        from emdiffuse.readers.zarr import open_zarr, open_zipped

        if place.is_file():
            return open_zipped(source, place, name.inside, reading)
        return open_zarr(source, name.place, reading)
    from emdiffuse.readers.series import open_file

    return open_file(place, reading)


@contextmanager
def understood(source: str) -> Iterator[None]:
    """Turn any exception caused by malformed metadata into one sentence."""
    try:
        yield
    except EmdiffuseError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        said = printable(" ".join(str(error).split())[:160])
        raise DataError(
            f"{source}: its metadata cannot be parsed ({said}); the file may be damaged, or written by a "
            "program that does not follow the format; copy or export it again"
        ) from error
