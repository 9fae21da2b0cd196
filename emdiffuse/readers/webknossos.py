"""webknossos datasets, whose layers are Zarr, N5, precomputed, or the older WKW.

Conventions
-----------
* See `base`. ``datasource-properties.json`` describes the layers. `series` names a layer if there is more
  than one color layer; `level` chooses a magnification.
* ``axisOrder`` names the axes. The voxel size is the dataset's ``scale`` times the magnification.
* An array begins at the dataset's origin; the layer is the part inside its bounding box.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emdiffuse.config.reading import Crop, Reading
from emdiffuse.readers.base import Shape, Source
from emdiffuse.readers.n5 import open_n5
from emdiffuse.readers.precomputed import open_precomputed
from emdiffuse.readers.sizes import Size, told, unit_of
from emdiffuse.readers.stores import read_json
from emdiffuse.readers.zarr import open_node, zarr_node
from emdiffuse.runtime.errors import DataError

PROPERTIES = "datasource-properties.json"


def open_webknossos(name: str, place: str, reading: Reading) -> Source:
    """Open a layer of a webknossos dataset.

    Raises
    ------
    DataError
        If a layer must be chosen, or its format is not supported.
    """
    properties = read_json(name, place, PROPERTIES)
    if properties is None:
        raise DataError(f"{name}: there is no '{PROPERTIES}'; check the path")
    layer = _chosen(name, properties, reading)
    mags = layer.get("mags") or layer.get("wkwResolutions") or []
    if reading.level >= len(mags):
        raise DataError(f"{name}: `level` is {reading.level}, but there are {len(mags)}, counted from 0")
    mag = mags[reading.level]
    factors = mag.get("mag", mag.get("resolution", [1, 1, 1]))
    factors = [factors] * 3 if isinstance(factors, int) else factors
    size = _voxel_size(properties.get("scale"), factors)
    path = str(mag.get("path") or f"{layer['name']}/{'-'.join(str(f) for f in dict.fromkeys(factors))}")
    path = path if "://" in path else posixpath.normpath(posixpath.join(place, path))
    kind = str(layer.get("dataFormat", "")).lower()
    order = mag.get("axisOrder")
    names = [axis for axis, _ in sorted(order.items(), key=lambda item: item[1])] if order else None
    finest = reading.model_copy(update={"level": 0, "series": None})
    if kind in ("zarr", "zarr3"):
        driver, attributes, array = zarr_node(name, path)
        names = names or list((array or {}).get("dimension_names") or "cxyz")
        opened = open_node(name, place, driver, path, names, size, attributes, finest)
    elif kind == "n5":
        opened = open_n5(name, path, finest)
    elif kind == "neuroglancerprecomputed":
        opened = open_precomputed(name, path, finest)
    elif kind == "wkw" and "://" not in path:
        from emdiffuse.readers.wkw import WkwArray

        opened = WkwArray(name, Path(path), _extent(name, layer, factors), size, finest)
    else:
        raise DataError(
            f"{name}: layer '{layer['name']}' is stored as {kind or 'an unknown format'}, which "
            "cannot be read; "
            "convert it to Zarr (webknossos convert-to-zarr)"
        )
    opened.voxel_size = size if size is not None else opened.voxel_size
    if kind != "neuroglancerprecomputed":  # precomputed has its own origin
        box = _bounding_box(layer.get("boundingBox"), factors, opened.shape)
        if box is not None:
            opened.crop(box)
    return opened


def _extent(name: str, layer: Mapping[str, Any], factors: Any) -> Shape:
    """Return the end of a layer from the dataset's origin, in voxels (z, y, x) of a magnification."""
    box = layer.get("boundingBox")
    if not isinstance(box, Mapping):
        raise DataError(f"{name}: layer '{layer['name']}' has no bounding box; export it again")
    lengths = (box["depth"], box["height"], box["width"])
    z, y, x = (
        -(-(int(first) + int(length)) // int(f))
        for first, length, f in zip(box["topLeft"][::-1], lengths, factors[::-1], strict=True)
    )
    return z, y, x


def _bounding_box(told: Any, factors: Any, shape: Shape) -> Crop | None:
    """Return the part of an array inside a layer's bounding box; None if that is all, or nothing."""
    if not isinstance(told, Mapping):
        return None
    lengths = (told["depth"], told["height"], told["width"])
    sides = [
        (max(0, int(first) // int(f)), min(n, -(-(int(first) + int(length)) // int(f))))
        for first, length, f, n in zip(told["topLeft"][::-1], lengths, factors[::-1], shape, strict=True)
    ]
    if any(first >= last for first, last in sides) or sides == [(0, n) for n in shape]:
        return None
    return Crop(z=sides[0], y=sides[1], x=sides[2])


def _chosen(name: str, properties: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Return the chosen layer."""
    layers = {str(layer["name"]): layer for layer in properties.get("dataLayers", [])}
    images = [n for n, layer in layers.items() if layer.get("category", "color") == "color"]
    choice = reading.series
    if isinstance(choice, str) and choice in layers:
        return dict(layers[choice])
    if choice is None and len(images) == 1:
        return dict(layers[images[0]])
    if isinstance(choice, int) and 0 <= choice < len(layers):
        return dict(list(layers.values())[choice])
    raise DataError(f"{name}: its layers are {', '.join(layers) or 'none'}; choose one with `series`")


def _voxel_size(scale: Any, factors: Any) -> Size | None:
    """Return the voxel size (z, y, x) of a magnification in nanometers."""
    if isinstance(scale, Mapping):
        numbers, unit = scale.get("factor"), unit_of(scale.get("unit", "nanometer"))
    else:
        numbers, unit = scale, 1.0  # old versions: nanometers
    size = told(list(numbers or ())[::-1], (unit,) * 3) if numbers else None
    if size is None:
        return None
    z, y, x = (None if v is None else v * float(f) for v, f in zip(size, list(factors)[::-1], strict=True))
    return z, y, x
