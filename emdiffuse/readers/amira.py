"""Amira and Avizo volumes (``.am``): a uniform binary lattice.

Conventions
-----------
* See `base`. A lattice of nx x ny x nz is stored with x fastest, so the array is (z, y, x).
* The bounding box joins the centres of the first and last voxel, so a voxel is its length over n - 1. Its
  unit is that of the parameters; without one the size is unknown.
* Compressed pixels (HxZip, HxByteRLE) are decompressed once, into an unnamed scratch file.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import lay_out
from emdiffuse.readers.base import named
from emdiffuse.readers.flat import FlatFile, of_what_is_there
from emdiffuse.readers.reasons import not_of
from emdiffuse.readers.sizes import Size, told, unit_of
from emdiffuse.runtime.errors import DataError

TYPES = {"byte": "u1", "ushort": "u2", "short": "i2", "int": "i4", "float": "f4", "double": "f8"}
LONGEST_HEADER = 2**20
_LATTICE = re.compile(r"define\s+Lattice\s+(\d+)\s+(\d+)\s+(\d+)")
_DATA = re.compile(
    r"Lattice\s*\{\s*(\w+)(\[\d+\])?\s+\w+\s*\}\s*(?:=\s*)?@(\d+)(?:\((Hx\w+),(\d+)\))?", re.IGNORECASE
)
_BOX = re.compile(r"BoundingBox\s+([-+.\deE\s]+)")
_UNIT = re.compile(r"Coordinates\s+\"([^\"]+)\"")


def open_amira(file: Path, reading: Reading) -> FlatFile:
    """Open an Amira volume.

    Raises
    ------
    DataError
        If it contains no uniform binary lattice of a supported type, or is truncated.
    """
    name = str(file)
    with file.open("rb") as opened:
        content = opened.read(LONGEST_HEADER)
    first = content.split(b"\n", 1)[0].decode(errors="replace")
    if not re.match(r"#\s*(AmiraMesh|Avizo|HyperMesh)", first):
        raise DataError(f"{name}: {not_of(file, 'an Amira file')}")
    if "BINARY" not in first.upper():
        raise DataError(f"{name}: the pixels are stored as text; export it as binary")
    # the data begin after a line "@1", which the header names
    mark = re.search(rb"\n\s*@1[ \t]*\r?\n", content)
    text = content[: mark.start() if mark else len(content)].decode("latin-1")
    lattice, data = _LATTICE.search(text), _DATA.search(text)
    if mark is None or lattice is None or data is None:
        raise DataError(
            f"{name}: there is no data lattice in this Amira file (`Lattice {{ byte Data }} @1`); export "
            "the volume itself"
        )
    kind, vector, number, packing, packed_bytes = data.groups()
    if kind.lower() not in TYPES or vector or number != "1":
        raise DataError(f"{name}: a lattice of '{kind}{vector or ''}' is not one grayscale image; convert it")
    stored = np.dtype(("<" if "LITTLE" in first.upper() else ">") + TYPES[kind.lower()])
    counts = [int(n) for n in lattice.groups()]
    layout = lay_out(name, counts[::-1], "zyx", reading)
    size = _voxel_size(text, counts)
    if packing is None:
        layout = of_what_is_there(name, file.stat().st_size, mark.end(), layout, stored, reading)
        return FlatFile(name, file, layout, stored, mark.end(), size)
    unpacked = _unpacked(file, mark.end(), packing, int(packed_bytes))
    layout = of_what_is_there(name, unpacked.seek(0, 2), 0, layout, stored, reading)
    return FlatFile(name, file, layout, stored, 0, size, unpacked)


def _unpacked(file: Path, start: int, packing: str, count: int) -> IO[bytes]:
    """Decompress pixels into a scratch file."""
    scratch = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the source)
    with named(str(file), "Amira file"), file.open("rb") as source:
        source.seek(start)
        if packing.lower() == "hxzip":
            stream = zlib.decompressobj()
            while count and (part := source.read(min(2**20, count))):
                count -= len(part)
                scratch.write(stream.decompress(part))
            scratch.write(stream.flush())
        elif packing.lower() == "hxbyterle":
            scratch.write(run_lengths(source.read(count)))
        else:
            raise DataError(f"{file}: pixels packed as {packing} cannot be read; export it uncompressed")
    scratch.flush()
    return scratch


def run_lengths(packed: bytes) -> bytes:
    """Decode Amira's run lengths: n and a byte repeated n times, or 128 + n and n literal bytes."""
    parts, at = [], 0
    while at + 1 < len(packed):
        count = packed[at]
        if count & 128:
            parts.append(packed[at + 1 : at + 1 + (count & 127)])
            at += 1 + (count & 127)
        else:
            parts.append(packed[at + 1 : at + 2] * count)
            at += 2
    return b"".join(parts)


def _voxel_size(text: str, counts: list[int]) -> Size | None:
    box, unit = _BOX.search(text), _UNIT.search(text)
    scale = unit_of(unit[1]) if unit else None
    if box is None or scale is None:
        return None
    ends = [float(v) for v in box[1].split()[:6]]
    sizes = [
        (high - low) / (n - 1) if n > 1 else None
        for low, high, n in zip(ends[::2], ends[1::2], counts, strict=False)
    ]
    return told(sizes[::-1], (scale,) * 3) if len(sizes) == 3 else None
