"""N5, on disk or at a URL.

Conventions
-----------
* See `base`. N5 lists axes fastest first: dimensions (x, y, z) are an array (z, y, x), unless ``axes`` or
  COSEM's ``transform`` state otherwise. In a multiscale group ``s0`` or the chosen level is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorstore as ts

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import lay_out, letters_of
from emdiffuse.readers.groups import choose_image, images_in, is_n5_image
from emdiffuse.readers.sizes import Size, told, unit_of
from emdiffuse.readers.stores import StoredArray, open_array, read_json
from emdiffuse.runtime.errors import DataError

Facts = Mapping[str, Any]
COMPRESSIONS = ("raw", "gzip", "bzip2", "xz", "blosc", "zstd")


def open_n5(name: str, place: str, reading: Reading) -> StoredArray:
    """Open an N5 array, or a level of a multiscale group.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    place : str
        Folder or URL of the array or group.
    reading : Reading
        Which part to read.

    Raises
    ------
    DataError
        If it is missing, not a volume of a supported type, or the server does not respond.
    """
    around = read_json(name, place, "attributes.json") or {}
    path, facts = place, around
    if "dimensions" not in facts:
        path = f"{place}/s{reading.level}"
        facts = read_json(name, path, "attributes.json") or {}
    if "dimensions" not in facts:
        if "://" in place:
            raise DataError(
                f"{name}: there is no N5 array; name the array, such as {place}/raw, or check the path"
            )
        inside = choose_image(name, images_in(Path(place), is_n5_image), reading, "N5 group")
        deeper = reading.model_copy(update={"series": None})
        return open_n5(f"{name.rstrip('/')}/{inside}", f"{place}/{inside}", deeper)
    _require_compression(name, facts)
    store = open_array(name, "n5", path, reading)
    assert store is not None
    rank = store.rank
    names = _names(facts, rank) or _names(around, rank)
    layout = lay_out(name, store.shape[::-1], names, reading)
    level = reading.level if path != place else 0
    size = _size(facts, layout.letters) or _scaled(_size(around, layout.letters), around, level)
    reversed_store = store[ts.d[:].transpose[::-1]][ts.d[:].label[("",) * rank]]
    return StoredArray(name, place, reversed_store, layout, size, facts)


def _require_compression(name: str, facts: Facts) -> None:
    """Refuse a compression that tensorstore does not support."""
    kind = (facts.get("compression") or {"type": "raw"}).get("type", "raw")
    if kind not in COMPRESSIONS:
        raise DataError(
            f"{name}: its blocks are compressed with {kind}, which cannot be read; copy the array with one "
            "of "
            f"{', '.join(COMPRESSIONS)}"
        )


def _names(facts: Facts, rank: int) -> list[str] | None:
    """Return the names of the axes, slowest first, or None."""
    transform = facts.get("transform")
    if isinstance(transform, dict) and len(transform.get("axes") or ()) == rank:
        axes = [str(axis) for axis in transform["axes"]]
        return axes[::-1] if str(transform.get("ordering", "C")).upper() == "F" else axes
    given = facts.get("axes")
    if isinstance(given, list) and len(given) == rank:
        return [str(axis) for axis in given][::-1]
    return None


def _size(facts: Facts, letters: str) -> Size | None:
    """Return the voxel size (z, y, x) of a node in nanometers, stored in one of three ways."""
    transform = facts.get("transform")
    units: Any = None
    if isinstance(transform, dict) and transform.get("scale"):
        axes = letters_of([str(axis) for axis in transform.get("axes", "zyx")])
        units = transform.get("units") or [None] * len(axes)
        known = dict(zip(axes, zip(transform["scale"], units, strict=False), strict=False))
        pairs = [known.get(axis, (None, None)) for axis in "zyx"]
        return told([number for number, _ in pairs], [unit_of(unit) for _, unit in pairs])
    resolution: Any = facts.get("pixelResolution", facts.get("resolution"))
    units = facts.get("units")
    if isinstance(resolution, dict):
        resolution, units = resolution.get("dimensions"), [resolution.get("unit")] * 3
    if not isinstance(resolution, list) or units is None:
        return None
    units = units if isinstance(units, list) else [units] * len(resolution)
    if len(resolution) == len(units) == len(letters):
        known = dict(zip(letters[::-1], zip(resolution, units, strict=True), strict=True))
    elif len(resolution) == len(units) == 3:
        known = dict(zip("xyz", zip(resolution, units, strict=True), strict=True))
    else:
        return None
    pairs = [known.get(axis, (None, None)) for axis in "zyx"]
    return told([number for number, _ in pairs], [unit_of(unit) for _, unit in pairs])


def _scaled(size: Size | None, around: Facts, level: int) -> Size | None:
    """Return the voxel size of a level from that of the group and the downsampling."""
    if size is None or level == 0:
        return size
    scales = around.get("scales") or around.get("downsamplingFactors")
    if not isinstance(scales, list) or len(scales) <= level or len(scales[level]) != 3:
        return None
    z, y, x = (None if v is None else v * float(f) for v, f in zip(size, scales[level][::-1], strict=True))
    return z, y, x
