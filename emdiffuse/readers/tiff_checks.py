"""Check that a TIFF file is complete, from its metadata alone.

Conventions
-----------
* Nothing is decoded. A file is truncated if something in it points beyond its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tifffile

from emdiffuse.runtime.errors import DataError


def contiguous(file: Path, series: Any) -> int:
    """Return the offset of the pixels of a stack with a single directory."""
    if series.dataoffset is None or series.dataoffset + series.nbytes > file.stat().st_size:
        raise DataError(f"{file}: the file is truncated; copy or export it again")
    return int(series.dataoffset)


def check_pages(file: Path, tif: tifffile.TiffFile, series: Any, planes: int) -> None:
    """Check all pages of a series, without decoding them."""
    if len(series.pages) < planes or any(page is None for page in series.pages):
        raise DataError(
            f"{file}: the metadata name {planes} planes, but some are not in the file"
            + ("s beside it" if series.is_multifile else "")
            + "; export it again"
        )
    size = file.stat().st_size
    for index, found in enumerate(series.pages):
        if series.is_multifile and found.parent is not tif:
            size = Path(found.parent.filehandle.path).stat().st_size
        page = found.aspage()
        where = f"{file}: page {index} (counted from 0)" if len(series.pages) > 1 else str(file)
        if page.imagedepth != 1 or page.imagelength * page.imagewidth == 0:
            raise DataError(
                f"{where}: the image has no height or width, or has a depth; export it as plain slices"
            )
        ends = [
            o + n if o and n else size + 1 for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
        if not ends or max(ends) > size:
            raise DataError(
                f"{where}: pixels are missing at the end: the file is truncated; copy or export it again"
            )
    if not _chain_ends(tif):
        raise DataError(
            f"{file}: the list of pages is incomplete: the file is truncated; copy or export it again"
        )


def _chain_ends(tif: tifffile.TiffFile) -> bool:
    """Return whether the last page is marked as the last, by a next offset of zero."""
    len(tif.pages)  # walks to the last one
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    offset = tif.filehandle.read(tif.tiff.offsetsize)
    return len(offset) == tif.tiff.offsetsize and not any(offset)


def breaks_off(file: Path) -> bool:
    """Return whether a file's chain of directories leads beyond its end."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = opened.read(16)
        order: Literal["little", "big"] = "little" if header[:2] == b"II" else "big"
        if header[:2] not in (b"II", b"MM") or len(header) < 8:
            return False
        version = int.from_bytes(header[2:4], order)
        if version not in (42, 43):  # other formats begin with the same letters
            return False
        big = version == 43
        count_bytes, entry_bytes, offset_bytes = (8, 20, 8) if big else (2, 12, 4)
        offset = int.from_bytes(header[8:16] if big else header[4:8], order)
        seen: set[int] = set()
        while offset and offset not in seen:
            seen.add(offset)
            opened.seek(offset)
            count = int.from_bytes(opened.read(count_bytes), order)
            end = offset + count_bytes + count * entry_bytes
            if offset + count_bytes > size or end + offset_bytes > size:
                return True
            opened.seek(end)
            offset = int.from_bytes(opened.read(offset_bytes), order)
    return False
