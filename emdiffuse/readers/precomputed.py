"""Neuroglancer precomputed volumes, on disk or at an address.

Conventions
-----------
* See `base`. The finest scale and channel 0 are read; the format's (x, y, z) become (z, y, x).
* The voxel size is the scale's resolution, which is in nanometers.
"""

from __future__ import annotations

import tensorstore as ts

from emdiffuse.readers.stores import StoredArray, open_array, read_json
from emdiffuse.runtime.errors import DataError


def open_precomputed(name: str, place: str) -> StoredArray:
    """Open a precomputed volume.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : str
        Folder or address that holds ``info``.

    Raises
    ------
    DataError
        If there is none, it is not an image, or the address does not answer.
    """
    info = read_json(name, place, "info")
    try:
        resolution = [float(v) for v in (info or {})["scales"][0]["resolution"]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(
            f"{name}: there is no precomputed volume ('info' with a scale) here; check the path, "
            "or say zarr:// or n5:// before it"
        ) from None
    store = open_array(name, "neuroglancer_precomputed", place, scale_index=0)
    array = store[..., 0][ts.d[:].transpose[::-1]][ts.d[:].translate_to[0]]
    return StoredArray(name, place, array, resolution[::-1], info)
