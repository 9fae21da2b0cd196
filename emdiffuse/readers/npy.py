"""NumPy arrays (``.npy``), also compressed.

Conventions
-----------
* See `base`. An array in Fortran order is stored with reversed axes.
* Arrays of Python objects are refused, because reading one executes code from the file.
"""

from __future__ import annotations

import io
from pathlib import Path

from numpy.lib import format as npy

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import lay_out
from emdiffuse.readers.base import named
from emdiffuse.readers.flat import FlatFile, head, of_what_is_there, opened
from emdiffuse.runtime.errors import DataError

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LONGEST_HEADER = 2**16


def open_npy(file: Path, reading: Reading) -> FlatFile:
    """Open a NumPy array.

    Raises
    ------
    DataError
        If the file is not a volume of a supported type, or is truncated.
    """
    name = str(file)
    unpacked, size = opened(file)
    with named(name, "NumPy array"):
        source = io.BytesIO(head(file, unpacked, LONGEST_HEADER))
        version = npy.read_magic(source)
        if version not in HEADERS:
            raise DataError(f"{name}: NumPy format {version[0]}.{version[1]} is not supported")
        shape, fortran, stored = HEADERS[version](source)
        offset = source.tell()
    if stored.hasobject or stored.names is not None:
        raise DataError(f"{name}: its pixels are Python objects or records, not numbers; save numbers")
    if min(shape, default=0) < 1:
        raise DataError(f"{name}: there are no pixels in an array of shape {shape}; save it again")
    letters = None
    if fortran:
        letters = lay_out(name, shape, None, reading).letters[::-1]
        shape, reading = shape[::-1], reading.model_copy(update={"axes": None})
    layout = lay_out(name, shape, letters, reading)
    layout = of_what_is_there(name, size, offset, layout, stored, reading)
    return FlatFile(name, file, layout, stored, offset, None, unpacked)
