"""Janelia FIB-SEM ``.dat`` files: one slice per file, with one or more interleaved detectors.

Conventions
-----------
* See `base`. The header is 1024 bytes, big-endian; its layout is public (github.com/clbarnes/jeiss-specs).
* Pixels are 8 or 16 bits, as digitised; a channel is a detector. Pixels are square; the header does not state
  the slice spacing.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import lay_out
from emdiffuse.readers.flat import FlatFile, head, of_what_is_there, open_raw, opened
from emdiffuse.readers.reasons import not_of
from emdiffuse.readers.sizes import believed
from emdiffuse.runtime.errors import DataError

HEADER = 1024
MAGIC = struct.pack(">I", 3555587570)


def open_fibsem(file: Path, reading: Reading) -> FlatFile:
    """Open a FIB-SEM slice; any other ``.dat`` file is read as headerless pixels if `raw` is given.

    Raises
    ------
    DataError
        If it is neither, or is truncated.
    """
    name = str(file)
    unpacked, size = opened(file)
    header = head(file, unpacked, HEADER)
    if header[:4] != MAGIC and reading.raw is not None:
        return open_raw(file, reading)
    if header[:4] != MAGIC or len(header) < HEADER:
        raise DataError(
            f"{name}: {not_of(file, 'a FIB-SEM .dat file')} (for bare pixels state `raw: {{shape: [z, y, x], "
            "dtype: uint8}`)"
        )
    (version,) = struct.unpack_from(">H", header, 4)
    channels, eight_bit = struct.unpack_from(">2B", header, 32)
    width, height = struct.unpack_from(">2I", header, 100)
    if 0 in (channels, width, height):
        raise DataError(
            f"{name}: the header states {height} x {width} pixels in {channels} channels; nothing "
            "was recorded"
        )
    (pixel,) = struct.unpack_from(">d", header, 416) if version < 3 else struct.unpack_from(">f", header, 464)
    detectors = [
        header[start : start + length].split(b"\0")[0].decode(errors="replace").strip()
        for start, length in ((380, 10), (390, 18))
    ]
    stored = np.dtype("u1" if eight_bit == 1 else ">i2")
    layout = lay_out(name, (height, width, channels), "yxc", reading, [d for d in detectors if d][:channels])
    layout = of_what_is_there(name, size, HEADER, layout, stored, reading)
    size_known = believed(pixel)
    voxel = None if size_known is None else (None, size_known, size_known)
    return FlatFile(name, file, layout, stored, HEADER, voxel, unpacked)
