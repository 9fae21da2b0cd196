"""An array in an HDF5 file: ``file.h5:/path``; without a path, the only volume that the file holds.

Conventions
-----------
* See `base`. The voxel size is that of the attribute `element_size_um` (z, y, x), as ImageJ and ilastik write
  it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.readers.base import Shape, Source, named, volume_shape
from emdiffuse.runtime.errors import DataError


class Hdf5Array(Source):
    """A dataset of an HDF5 file, kept open; h5py lets one thread at a time read.

    Parameters
    ----------
    name : str
        What the user calls it.
    dataset : h5py.Dataset
        The dataset.
    file : Path
        The file.
    """

    def __init__(self, name: str, dataset: Any, file: Path) -> None:
        shape, self._front = volume_shape(name, dataset.shape)
        size = dataset.attrs.get("element_size_um")
        voxel_size = [1000 * float(v) for v in size] if size is not None and len(size) == 3 else None
        block: Shape = tuple(dataset.chunks[-3:]) if dataset.chunks else (1, 1, 1)
        super().__init__(name, shape, dataset.dtype, block, [file], voxel_size)
        self._dataset = dataset

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        with named(self.name, "HDF5 file"):
            values: NDArray[Any] = self._dataset[(*self._front, slice(z0, z1), y, x)]
            return values.astype(self.dtype, copy=False)


def open_hdf5(file: Path, inside: str) -> Hdf5Array:
    """Open an array of an HDF5 file.

    Parameters
    ----------
    file : Path
        The file.
    inside : str
        Path of the array; empty for the only one.

    Raises
    ------
    DataError
        If the library is missing, there is no such array, or it is not one volume of a supported type.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(f"{file}: to read HDF5, install `pip install 'emdiffuse[formats]'`") from None
    with named(str(file), "HDF5 file"):
        opened = h5py.File(file, "r")
        volumes: list[str] = []

        def note(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and node.ndim >= 3:
                volumes.append(name)

        opened.visititems(note)
        path = inside or (volumes[0] if len(volumes) == 1 else "")
        node = opened.get(path) if path else None
        if not isinstance(node, h5py.Dataset):
            what = f"there is no array '/{inside}' in it" if inside else "say which array to read"
            found = ", ".join(f"{file}:/{name}" for name in volumes[:5]) or "none"
            raise DataError(f"{file}: {what}; volumes that it holds: {found}")
        where = f"{file}:/{path}"
        if np.dtype(node.dtype).kind not in "iuf":
            raise DataError(
                f"{where}: pixels of type {node.dtype} are not supported; convert them to real numbers"
            )
        return Hdf5Array(where, node, file)
