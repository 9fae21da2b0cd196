"""Export of a volume as Neuroglancer precomputed.

Conventions
-----------
* Every level of the OME-Zarr image becomes a scale, with identical voxels; the axes of precomputed are
  (x, y, z), and its resolution is in nanometers.
* Chunks are uncompressed, 64 voxels a side; a web server may compress them in transit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import zarr

from emdiffuse.runtime.atomic import replaced
from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.runtime.progress import progress
from emdiffuse.runtime.units import NANOMETERS
from emdiffuse.viewing.images import find_images

CHUNK = 64
BOX = (64, 512, 512)
"""Shape of the box that is copied at once (z, y, x), of whole chunks."""
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")

Box = tuple[slice, ...]


def export_precomputed(volume: Path, out: Path) -> None:
    """Write an OME-Zarr image as Neuroglancer precomputed.

    Parameters
    ----------
    volume : Path
        An OME-Zarr 0.4 or 0.5 image (z, y, x), or a store that contains one.
    out : Path
        Folder to write; it appears complete, or not at all.

    Raises
    ------
    StoreError
        If there is no image, or there are several.
    DataError
        If it has other axes, or a data type that the format does not support.
    OutputError
        If `out` exists and was not written by emdiffuse.
    """
    images = find_images(volume)
    if len(images) > 1:
        names = ", ".join(image.name for image in images)
        raise StoreError(
            f"{volume}: there are several images ({names}); name one, such as {volume / images[0].place}"
        )
    (image,) = images
    levels = [zarr.open_array(volume / image.place / level, mode="r") for level in image.levels]
    finest = levels[0]
    if finest.ndim != 3 or not set(image.units) <= NANOMETERS.keys():
        raise DataError(f"{volume}: expected three axes (z, y, x) of known length; export one channel")
    if finest.dtype.name not in DTYPES:
        raise DataError(
            f"{volume}: precomputed does not support {finest.dtype}; convert it to {', '.join(DTYPES)}"
        )
    size = [value * NANOMETERS[unit] for value, unit in zip(image.scale, image.units, strict=True)]
    boxes = [(level, box) for level in levels for box in _boxes(level.shape)]
    with replaced(out, [volume]) as partial:
        targets = {id(level): _scale(partial, level, finest, size) for level in levels}
        for level, box in progress(boxes, len(boxes), "precomputed", "box"):
            values = np.asarray(level[box])
            x, y, z = reversed(box)
            targets[id(level)][x, y, z, 0] = values.transpose(2, 1, 0)


def _scale(folder: Path, level: Any, finest: Any, size: list[float]) -> Any:
    """Add a resolution level to a folder, and return it opened, with axes (x, y, z, channel)."""
    steps = [round(n / m) for n, m in zip(finest.shape, level.shape, strict=True)]
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "multiscale_metadata": {"data_type": finest.dtype.name, "num_channels": 1, "type": "image"},
        "scale_metadata": {
            "size": list(level.shape[::-1]),
            "resolution": [value * step for value, step in zip(size, steps, strict=True)][::-1],
            "chunk_size": [CHUNK] * 3,
            "encoding": "raw",
        },
    }
    return ts.open(spec, create=True, open=True).result()


def _boxes(shape: tuple[int, ...]) -> Iterator[Box]:
    """Yield boxes (z, y, x) of whole chunks that cover a shape."""
    starts = (range(0, n, step) for n, step in zip(shape, BOX, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(a, min(a + s, n)) for a, s, n in zip(corner, BOX, shape, strict=True))
