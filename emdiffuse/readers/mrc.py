"""MRC files (also .rec, .st, .ali and .map of tomography, and compressed ones).

Conventions
-----------
* See `base`. The header's ``mapc``, ``mapr`` and ``maps`` name the axes of columns, rows and sections.
* The voxel size is that of the header, ``cella / m``. A size of 0, or the 1 angstrom that writers use as a
  default, counts as unknown. Separate images (space group 0) have no slice spacing.
* Bytes are signed in MRC 2014, unless the file's IMOD stamp states unsigned bytes. Old programs omit the
  machine stamp and the map identifier, which mrcfile's permissive mode tolerates.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import lay_out
from emdiffuse.readers.base import named
from emdiffuse.readers.flat import FlatFile, of_what_is_there, opened
from emdiffuse.readers.reasons import warn_once
from emdiffuse.readers.sizes import Size, told
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.extras import require

HEADER = 1024
IMOD_STAMP = 1146047817
COMPLEX = (3, 4)
"""Modes of Fourier transforms."""
VOLUME_STACK = 400
"""Space groups above this contain several consecutive volumes."""


def open_mrc(file: Path, reading: Reading) -> FlatFile:
    """Open an MRC file, which must contain all pixels stated in its header.

    Raises
    ------
    ConfigError
        If the library is missing.
    DataError
        If the file is not one volume of a supported type, or is truncated.
    """
    mrcfile = require("mrcfile", "formats", f"{file}: reading MRC")
    name = str(file)
    with named(name, "MRC file"), warnings.catch_warnings(record=True) as unusual:
        warnings.simplefilter("always")
        with mrcfile.open(file, header_only=True, permissive=True) as found:
            header = found.header
        if header is None:
            raise EOFError("the header is incomplete")
        if int(header.mode) in COMPLEX:
            raise DataError(
                f"{name}: pixels of type complex64 are not supported: this is a Fourier transform"
            )
        stored = mrcfile.utils.data_dtype_from_header(header)
    if unusual:
        warn_once("%s: the header does not conform to MRC 2014; reading it anyway", name)
    if stored == np.int8 and _bytes_are_unsigned(header):
        stored = np.dtype(np.uint8)
    lengths = [int(header[key]) for key in ("nz", "ny", "nx")]
    if min(lengths) < 1:
        raise DataError(
            f"{name}: not a readable MRC file: its header states {lengths} pixels; export it again"
        )
    letters = _letters(header)
    if (
        int(header.ispg) > VOLUME_STACK
        and 0 < int(header.mz) < lengths[0]
        and lengths[0] % int(header.mz) == 0
    ):
        lengths = [lengths[0] // int(header.mz), int(header.mz), *lengths[1:]]
        letters = f"t{letters}"
    layout = lay_out(name, lengths, letters, reading)
    unpacked, size = opened(file)
    offset = HEADER + int(header.nsymbt)
    layout = of_what_is_there(name, size, offset, layout, stored, reading)
    return FlatFile(name, file, layout, stored, offset, _voxel_size(header, letters[-3:]), unpacked)


def _bytes_are_unsigned(header: Any) -> bool:
    """Return whether IMOD wrote the file without marking its bytes as signed."""
    stamp, flags = np.frombuffer(header.extra2.tobytes(), header.nx.dtype)[10:12]
    return int(stamp) == IMOD_STAMP and not int(flags) & 1


def _letters(header: Any) -> str:
    """Return the axes of sections, rows and columns; the default ones if an old header has none."""
    axes = [int(header[key]) for key in ("maps", "mapr", "mapc")]
    return "".join("xyz"[axis - 1] for axis in axes) if sorted(axes) == [1, 2, 3] else "zyx"


def _voxel_size(header: Any, letters: str) -> Size | None:
    """Return the voxel size (z, y, x) in nanometers: the cell, divided by the samples along it.

    Cell and samples belong to x, y and z; but some programs that permute the axes write them in the order of
    columns, rows and sections, which the numbers of samples reveal.
    """
    samples = [int(header[f"m{axis}"]) for axis in "zyx"]
    angstrom: list[float | None] = [
        float(header.cella[axis]) / count if count > 0 else None
        for axis, count in zip("zyx", samples, strict=True)
    ]
    stored = [int(header[f"n{axis}"]) for axis in "zyx"]
    lengths = dict(zip(letters, stored, strict=True))
    if samples == stored != [lengths[axis] for axis in "zyx"]:
        by_axis = dict(zip(letters, angstrom, strict=True))
        angstrom = [by_axis[axis] for axis in "zyx"]
    if int(header.ispg) == 0 and samples[0] == 1 < stored[0]:
        angstrom[0] = None
    return told(angstrom, (0.1, 0.1, 0.1))
