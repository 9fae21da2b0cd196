"""NRRD volumes with attached pixels (``.nrrd``), through pynrrd.

Conventions
-----------
* See `base`. NRRD lists axes fastest first: sizes (x, y, z) are an array (z, y, x); ``kinds`` marks axes that
  are not spatial.
* Voxel sizes come from ``space directions`` or ``spacings``, with their units; without units they are
  unknown.
"""

from __future__ import annotations

import bz2
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import lay_out
from emdiffuse.readers.base import named
from emdiffuse.readers.flat import FlatFile, of_what_is_there
from emdiffuse.readers.sizes import Size, told, unit_of
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.extras import require

COLOURS = ("vector", "RGB-color", "RGBA-color", "list", "3-color", "4-color", "complex")


def open_nrrd(file: Path, reading: Reading) -> FlatFile:
    """Open an NRRD volume.

    Raises
    ------
    ConfigError
        If the library is missing.
    DataError
        If the file is not one volume of a supported type, or is truncated.
    """
    nrrd = require("nrrd", "formats", f"{file}: reading NRRD")
    name = str(file)
    with named(name, "NRRD file"), file.open("rb") as opened:
        header = nrrd.read_header(opened)
        start = opened.tell()
        if "data file" in header or "datafile" in header:
            raise DataError(
                f"{name}: its pixels are in another file; give that file with `raw`, or join them"
            )
        stored = np.dtype(nrrd.reader._determine_datatype(header))
        encoding = str(header.get("encoding", "raw")).lower()
        lengths = [int(n) for n in header["sizes"]][::-1]
        skip = int(header.get("byte skip", header.get("byteskip", 0)))
        if int(header.get("line skip", 0)) or skip < 0:
            raise DataError(f"{name}: it skips lines before the pixels; export it again")
        if encoding == "raw":
            unpacked: IO[bytes] | None = None
            offset, size = start + skip, file.stat().st_size
        elif encoding in ("gzip", "gz", "bzip2", "bz2"):
            unpacked = _unpacked(opened, encoding)
            offset, size = skip, unpacked.seek(0, 2)
        else:
            raise DataError(f"{name}: pixels encoded as {encoding} cannot be read; save it as raw or gzip")
    layout = lay_out(name, lengths, _letters(header, len(lengths)), reading)
    layout = of_what_is_there(name, size, offset, layout, stored, reading)
    return FlatFile(name, file, layout, stored, offset, _voxel_size(header, layout.letters), unpacked)


def _unpacked(source: IO[bytes], encoding: str) -> IO[bytes]:
    """Decompress the data after the header into an unnamed scratch file."""
    scratch = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the source)
    stream: Any = zlib.decompressobj(47) if encoding.startswith("g") else bz2.BZ2Decompressor()
    while part := source.read(2**20):
        scratch.write(stream.decompress(part))
    if not stream.eof:
        raise EOFError("unexpected end of the compressed pixels")
    scratch.flush()
    return scratch


def _letters(header: Any, rank: int) -> str | None:
    """Return the axes, slowest first, if `kinds` distinguishes channels from space."""
    kinds = header.get("kinds")
    if kinds is None or len(kinds) != rank:
        return None
    space = iter("xyz")
    letters = []
    for kind in kinds:
        plain = str(kind).strip()
        letters.append("c" if plain in COLOURS else "t" if plain == "time" else next(space, "?"))
    return "".join(letters[::-1])


def _voxel_size(header: Any, letters: str) -> Size | None:
    units = header.get("space units") or header.get("units")
    if units is None:
        return None
    directions = header.get("space directions")
    if directions is not None:
        rows = np.asarray(directions, float).reshape(-1, len(units))
        sizes = [float(np.linalg.norm(row)) for row in rows if np.isfinite(row).all()]
    else:
        sizes = [float(v) for v in header.get("spacings", ()) if np.isfinite(float(v))]
    if len(sizes) != 3 or len(units) != 3 or not set("zyx") <= set(letters):
        return None
    return told(sizes[::-1], [unit_of(unit) for unit in units][::-1])
