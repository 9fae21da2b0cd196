"""Gatan DigitalMicrograph files (``.dm3``, ``.dm4``), through RosettaSciIO.

Conventions
-----------
* See `base`. A file contains a thumbnail and one or more images; `series` chooses among several.
* RosettaSciIO is licensed under the GPL, so it is an extra, imported only when such a file is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Source, named
from emdiffuse.readers.sizes import Size, told, unit_of
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.extras import require


class DmImage(Source):
    """An image of a DigitalMicrograph file.

    Parameters
    ----------
    file : Path
        The file.
    array : dask array
        Its pixels, not yet read.
    layout : Layout
        Position of the stack in the array.
    voxel_size : tuple of float, optional
        Voxel size (z, y, x) in nanometers.
    """

    def __init__(self, file: Path, array: Any, layout: Layout, voxel_size: Size | None) -> None:
        super().__init__(
            str(file), layout.shape, np.dtype(array.dtype), (1, *layout.shape[1:]), [file], voxel_size
        )
        self._array = array
        self._layout = layout

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        with named(self.name, "DigitalMicrograph file"):
            part = self._array[self._layout.region(z0, z1, y, x)].compute(scheduler="synchronous")
        values = self._layout.arranged(self.where(z0), part)
        return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def open_dm(file: Path, reading: Reading) -> DmImage:
    """Open a DigitalMicrograph file.

    Raises
    ------
    ConfigError
        If the library is missing.
    DataError
        If an image must be chosen, or it is not one volume of a supported type.
    """
    file_reader = require("rsciio.digitalmicrograph", "formats", f"{file}: reading DM3 and DM4").file_reader
    with named(str(file), "DigitalMicrograph file"):
        try:
            images = file_reader(str(file), lazy=True)
        except (NotImplementedError, OSError, ValueError) as error:
            if "RGB" not in str(
                error
            ):  # for colours the library only reports that it cannot read them lazily
                raise
            raise DataError(f"{file}: this is a colour image; convert it to one grayscale channel") from None
    titles = [str(image["metadata"]["General"].get("title", i)) for i, image in enumerate(images)]
    image = images[_chosen(file, titles, [image["data"].shape for image in images], reading)]
    axes = sorted(image["axes"], key=lambda axis: axis["index_in_array"])
    names = [str(axis.get("name", "")) for axis in axes]
    layout = lay_out(str(file), image["data"].shape, names, reading)
    sizes = {
        letter: (axis.get("scale"), unit_of(axis.get("units")))
        for letter, axis in zip(layout.letters, axes, strict=True)
    }
    known = [sizes.get(letter, (None, None)) for letter in "zyx"]
    if image["data"].dtype.kind not in "biuf":
        raise DataError(f"{file}: its pixels are {image['data'].dtype}, not grayscale; convert them")
    return DmImage(file, image["data"], layout, told([n for n, _ in known], [u for _, u in known]))


def _chosen(file: Path, titles: list[str], shapes: list[tuple[int, ...]], reading: Reading) -> int:
    """Return the number of the chosen image."""
    described = "; ".join(
        f"{i}: {' x '.join(map(str, shape))} '{title}'"
        for i, (shape, title) in enumerate(zip(shapes, titles, strict=True))
    )
    choice = reading.series
    if choice is None and len(titles) == 1:
        return 0
    if choice is None:
        raise DataError(f"{file}: contains {len(titles)} images ({described}); choose one with `series`")
    if isinstance(choice, str) and choice in titles:
        return titles.index(choice)
    if isinstance(choice, str) and choice.isdigit():
        choice = int(choice)
    if isinstance(choice, str) or not 0 <= choice < len(titles):
        raise DataError(f"{file}: there is no series {choice!r}; available: {described}")
    return choice
