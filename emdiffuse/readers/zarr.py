"""Zarr (versions 2 and 3), OME-Zarr and N5, on disk or at an address.

Conventions
-----------
* See `base`. Of a multiscale image level 0 is read, with its voxel size; other axes than z, y and x must have
  length 1. A plain array has the axes (z, y, x), one of N5 (x, y, z).
* An array within a store is named by its path: ``volume.zarr/raw``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import tensorstore as ts

from emdiffuse.readers.base import volume_shape
from emdiffuse.readers.stores import NANOMETERS, StoredArray, open_array, read_json
from emdiffuse.runtime.errors import DataError

Facts = Mapping[str, Any]


def open_zarr(name: str, place: str) -> StoredArray:
    """Open an array of Zarr, or level 0 of an OME-Zarr image.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : str
        Folder or address of the array, or of the group that is the image.

    Raises
    ------
    DataError
        If there is none, it is not one volume of a supported type, or the address does not answer.
    """
    driver, attributes, is_array = _zarr_node(name, place)
    image, path = _image(attributes), place
    if not is_array:
        if image is None:
            raise DataError(
                f"{name}: this is a Zarr group, and not an image; name the array in it, such as {place}/0"
            )
        path = posixpath.join(place, image["datasets"][0]["path"])
    else:  # an array that may be a level of the image around it
        above, level = place.rsplit("/", 1) if "/" in place else (".", place)
        image = _image(_zarr_node(name, above, needed=False)[1]) if ".zarr" in above else None
        if image is not None and image["datasets"][0]["path"] != level:
            image = None
    array = open_array(name, driver, path)
    if image is None:
        return StoredArray(name, place, _last_three(name, array), None, attributes)
    axes = [
        axis["name"] if isinstance(axis, dict) else axis for axis in image.get("axes", "tczyx"[-array.rank :])
    ]
    return StoredArray(name, place, _spatial(name, array, axes), _ome_size(image, axes), attributes)


def open_n5(name: str, place: str) -> StoredArray:
    """Open an array of N5, or level ``s0`` of a multiscale group.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : str
        Folder or address of the array, or of the group.

    Raises
    ------
    DataError
        As of `open_zarr`.
    """
    around = read_json(name, place, "attributes.json") or {}
    path, facts = place, around
    if "dimensions" not in facts:
        path = f"{place}/s0"
        facts = read_json(name, path, "attributes.json") or {}
    if "dimensions" not in facts:
        raise DataError(
            f"{name}: there is no N5 array here; name the array, such as {place}/raw, or check the path"
        )
    array = open_array(name, "n5", path)[ts.d[:].transpose[::-1]]
    size = _n5_size(facts) or _n5_size(around)
    return StoredArray(name, place, _last_three(name, array), size, facts)


def _zarr_node(name: str, place: str, needed: bool = True) -> tuple[str, dict[str, Any], bool]:
    """Return driver and attributes of a node, and whether it is an array."""
    if node := read_json(name, place, "zarr.json"):
        return "zarr3", dict(node.get("attributes") or {}), node.get("node_type") == "array"
    array = read_json(name, place, ".zarray")
    if needed and array is None and read_json(name, place, ".zgroup") is None:
        raise DataError(f"{name}: there is no Zarr array or group here; check the path")
    return "zarr", read_json(name, place, ".zattrs") or {}, array is not None


def _image(attributes: Facts) -> dict[str, Any] | None:
    """Return the first multiscale image that a group describes (OME-Zarr up to 0.4, or 0.5)."""
    images = attributes.get("ome", attributes).get("multiscales") or [None]
    return images[0] if isinstance(images[0], dict) and images[0].get("datasets") else None


def _last_three(name: str, array: ts.TensorStore) -> ts.TensorStore:
    """Take leading axes of length 1 off."""
    return array[volume_shape(name, array.shape)[1]]


def _spatial(name: str, array: ts.TensorStore, axes: Sequence[str]) -> ts.TensorStore:
    """Return an array's axes z, y and x."""
    if array.rank != len(axes) or not {"z", "y", "x"} <= set(axes):
        raise DataError(f"{name}: the axes are {', '.join(axes)}; an image of z, y and x is expected")
    others = [i for i, axis in enumerate(axes) if axis not in "zyx"]
    long = [f"{array.shape[i]} along {axes[i]}" for i in others if array.shape[i] != 1]
    if long:
        raise DataError(f"{name}: there are {' and '.join(long)}; export one volume, of one channel")
    moved = array.transpose([*others, *(list(axes).index(axis) for axis in "zyx")])
    return moved[(0,) * len(others)]


def _ome_size(image: Facts, axes: Sequence[str]) -> list[float] | None:
    """Return the voxel size (z, y, x) of level 0 in nanometers, None where scale or unit is not told."""
    total = [1.0] * len(axes)
    for found in (image["datasets"][0], image):
        for step in found.get("coordinateTransformations", []):
            if step.get("type") == "scale":
                total = [a * float(b) for a, b in zip(total, step["scale"], strict=True)]
    units = {axis["name"]: axis.get("unit") for axis in image.get("axes", []) if isinstance(axis, dict)}
    scales = [NANOMETERS.get(str(units.get(axis))) for axis in "zyx"]
    if None in scales:
        return None
    return [total[list(axes).index(axis)] * (scale or 0) for axis, scale in zip("zyx", scales, strict=True)]


def _n5_size(facts: Facts) -> list[float] | None:
    """Return the voxel size (z, y, x) in nanometers that an N5 node tells, in one of two ways."""
    resolution: Any = facts.get("pixelResolution", facts.get("resolution"))
    units: Any = facts.get("units")
    if isinstance(resolution, dict):
        resolution, units = resolution.get("dimensions"), [resolution.get("unit")] * 3
    if not resolution or not units or len(resolution) != 3 or any(unit not in NANOMETERS for unit in units):
        return None
    return [float(v) * NANOMETERS[unit] for v, unit in zip(resolution, units, strict=True)][::-1]
