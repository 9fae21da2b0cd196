"""webknossos WKW cubes (``.wkw``), the format before Zarr, on disk.

Conventions
-----------
* See `base`, and github.com/scalableminds/webknossos-wrap for the format: a folder with ``header.wkw``, and a
  file ``z{z}/y{y}/x{x}.wkw`` for each cube with data. A cube has 2^n blocks along each axis, in Morton order;
  a block has its voxels in Fortran order, channel fastest, uncompressed or compressed with LZ4.
* A cube without a file was never written, and counts as a missing chunk.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.absent import boxes_of
from emdiffuse.readers.axes import lay_out
from emdiffuse.readers.base import Shape, Source, named
from emdiffuse.readers.sizes import Size

HEADER = struct.Struct("<3sBBBBBQ")
TYPES = ("u1", "u2", "u4", "u8", "f4", "f8", "i1", "i2", "i4", "i8")
RAW, LZ4, LZ4HC = 1, 2, 3


@dataclass(frozen=True)
class Header:
    """The header of ``header.wkw`` or of a cube.

    Attributes
    ----------
    block, blocks : int
        Voxels per side of a block, and blocks per side of a cube.
    packing : int
        Compression of a block.
    dtype : numpy.dtype
        Data type of a voxel.
    channels : int
        Number of channels.
    offset : int
        Offset of the first block.
    """

    block: int
    blocks: int
    packing: int
    dtype: np.dtype[Any]
    channels: int
    offset: int

    @property
    def side(self) -> int:
        """Voxels per side of a cube."""
        return self.block * self.blocks


def read_header(file: Path) -> Header:
    """Read a header.

    Raises
    ------
    DataError
        If it is invalid, or of an unknown kind.
    """
    with named(str(file), "WKW file"):
        with file.open("rb") as opened:
            content = opened.read(HEADER.size)
        magic, version, sides, packing, kind, size, offset = HEADER.unpack(content)
        if magic != b"WKW" or version != 1 or not 1 <= kind <= len(TYPES) or packing not in (RAW, LZ4, LZ4HC):
            raise ValueError("its header is of an unknown kind")
        dtype = np.dtype(TYPES[kind - 1]).newbyteorder("<")
        return Header(1 << (sides & 15), 1 << (sides >> 4), packing, dtype, size // dtype.itemsize, offset)


class WkwArray(Source):
    """One magnification of a layer.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    folder : Path
        Folder of ``header.wkw``.
    shape : tuple of int
        Shape (z, y, x) from the dataset's origin.
    voxel_size : tuple of float or None
        Voxel size (z, y, x) in nanometers.
    reading : Reading
        Which channel to read.
    """

    def __init__(
        self, name: str, folder: Path, shape: Shape, voxel_size: Size | None, reading: Reading
    ) -> None:
        self._header = read_header(folder / "header.wkw")
        side = (self._header.block,) * 3
        super().__init__(name, shape, self._header.dtype, (side[0], side[1], side[2]), [folder], voxel_size)
        layout = lay_out(name, (self._header.channels, *shape), "czyx", reading)
        self._channel = layout.fixed[0]
        self._folder = folder
        boxes = list(boxes_of(shape, (self._header.side,) * 3))
        self.absent = tuple(box for box in boxes if not self._file([side.start for side in box]).is_file())
        self.chunks = len(boxes)

    def _file(self, voxel: Sequence[int]) -> Path:
        """Return the file of the cube that contains a voxel."""
        z, y, x = (n // self._header.side for n in voxel)
        return self._folder / f"z{z}/y{y}/x{x}.wkw"

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        side = self._header.block
        wanted = (slice(z0, z1), y, x)
        values = np.zeros([part.stop - part.start for part in wanted], self.stored)
        firsts = (range(part.start // side * side, part.stop, side) for part in wanted)
        for corner in itertools.product(*firsts):
            file = self._file(corner)
            if not file.is_file():
                continue  # zeros, as set by missing_chunks
            with named(str(file), "WKW file"):
                block = self._block(file, [n % self._header.side // side for n in corner])
            inside, target = [], []
            for part, first in zip(wanted, corner, strict=True):
                start, stop = max(part.start, first), min(part.stop, first + side)
                inside.append(slice(start - first, stop - first))
                target.append(slice(start - part.start, stop - part.start))
            values[tuple(target)] = block[tuple(inside)]
        return values

    def _block(self, file: Path, place: Sequence[int]) -> NDArray[Any]:
        """Return a block (z, y, x) of a cube, given its position (z, y, x) in blocks."""
        header, index = read_header(file), morton(place)
        side, channels = header.block, header.channels
        size = side**3 * channels * header.dtype.itemsize
        with file.open("rb") as opened:
            if header.packing == RAW:
                opened.seek(header.offset + index * size)
                content = require_all(opened.read(size), size)
            else:
                import imagecodecs

                ends = [header.offset]  # the ends of all blocks are listed after the header
                opened.seek(HEADER.size + 8 * max(index - 1, 0))
                ends += struct.unpack(f"<{1 + (index > 0)}Q", opened.read(8 * (1 + (index > 0))))
                opened.seek(ends[-2])
                packed = require_all(opened.read(ends[-1] - ends[-2]), ends[-1] - ends[-2])
                content = bytes(imagecodecs.lz4_decode(packed, out=size))
        values = np.frombuffer(content, header.dtype).reshape(side, side, side, channels)
        plane: NDArray[Any] = values[..., self._channel]
        return plane


def require_all(content: bytes, size: int) -> bytes:
    """Return the content if it has the expected size."""
    if len(content) < size:
        raise EOFError("unexpected end of a cube")
    return content


def morton(place: Sequence[int]) -> int:
    """Return the Morton number of a block (z, y, x): bits of x, y and z interleaved, lowest first."""
    z, y, x = place
    bits = range(max(n.bit_length() for n in place))
    return sum((n >> bit & 1) << (3 * bit + axis) for bit in bits for axis, n in enumerate((x, y, z)))
