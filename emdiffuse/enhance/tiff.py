"""Write TIFFs that keep the source's metadata: pixel size, description, the microscope's tags.

Conventions
-----------
* Voxel sizes are in nanometers; None if unknown.
* ImageJ files stay ImageJ files, OME-TIFF stays OME-TIFF, others keep their description. Microscope tags are
  kept only if the pixel grid is unchanged, since they refer to its pixels.
* Every file records that it was restored, from which file, by which model and how: in the tag ImageHistory
  (TIFF/EP, ISO 12234-2), and where users look: the OME description, the ImageJ info, or an otherwise empty
  description.
* Slices are written one by one, and are never all in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.readers.base import Source
from emdiffuse.readers.reasons import content_of
from emdiffuse.readers.sizes import UNITS
from emdiffuse.readers.tiff import OneDirectory, TiffStack
from emdiffuse.readers.tiff_shown import Shown
from emdiffuse.readers.tiff_sizes import voxel_size
from emdiffuse.runtime.outputs import PROGRAM
from emdiffuse.stores.array import CHUNK, Array

SLAB_BYTES = 2**28
ORIENTATION = 274
KEPT_TAGS = {269, 271, 272, 285, 306, 315, 316, 33432}
"""Tags that are kept: names, times and persons; and private tags (from 32768 on) not in `FORMAT_TAGS`."""
IMAGE_HISTORY = 37395
FORMAT_TAGS = {34665, 34853, 50838, 50839, IMAGE_HISTORY}
"""Private tags of the file's layout (Exif and GPS directories, ImageJ), and the history."""


@dataclass(frozen=True)
class TiffFacts:
    """Metadata of a TIFF.

    Attributes
    ----------
    kind : str
        "imagej", "ome" or "plain".
    pixel, spacing : float or None
        Pixel size and slice spacing.
    description : str or None
        Text of a plain file.
    imagej : dict
        ImageJ properties.
    tags : tuple
        Other tags in the form of `tifffile`: (code, type, count, value, once).
    compressed : bool
        Whether the pixels are compressed.
    stored : numpy.dtype, optional
        Data type in the file, if converted on reading.
    shown : Shown
        How stored pixels are converted to shown ones, to be reversed when writing.
    """

    kind: str
    pixel: float | None
    spacing: float | None
    description: str | None
    imagej: dict[str, Any]
    tags: tuple[tuple[Any, ...], ...]
    compressed: bool
    stored: np.dtype[Any] | None = None
    shown: Shown = field(default_factory=Shown)


def facts_of(source: Source) -> TiffFacts:
    """Return the metadata of a source's file: all of a TIFF, only sizes of other formats."""
    spacing, _, pixel = source.voxel_size or (None, None, None)
    stack = source if isinstance(source, TiffStack | OneDirectory) else None
    first = source.files[0] if source.files else None
    plain = TiffFacts("plain", pixel, spacing, None, {}, (), True, source.stored)
    if stack is None and not (source.separate and first is not None and _is_tiff(first)):
        return plain
    assert first is not None
    facts = tiff_facts(first, stack.choice if stack is not None else (0, 0))
    shown = stack.shown if stack is not None else facts.shown
    return replace(facts, pixel=pixel, spacing=spacing, stored=source.stored, shown=shown)


def _is_tiff(file: Path) -> bool:
    return (content_of(file) or "").endswith("TIFF")


def _own_words(page: Any) -> str | None:
    """Return a page's description, without the (now outdated) shape that tifffile writes there."""
    text: str = page.description
    if page.is_shaped:
        content = json.loads(text)
        content.pop("shape", None)
        text = json.dumps(content) if content else ""
    return text or None


def tiff_facts(path: Path, choice: tuple[int, int] = (0, 0)) -> TiffFacts:
    """Read the metadata of a TIFF; values that cannot be parsed are ignored.

    Parameters
    ----------
    path : Path
        The file.
    choice : tuple of int
        Numbers of the series and the level.
    """
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        kind = "ome" if tif.is_ome else "imagej" if tif.is_imagej else "plain"
        number, level = choice
        spacing, _, pixel = voxel_size(tif, number, level, path) or (None, None, None)
        kept = tuple(
            tag.astuple()
            for tag in page.tags
            if tag.code in KEPT_TAGS or (tag.code >= 32768 and tag.code not in FORMAT_TAGS)
        )
        return TiffFacts(
            kind,
            pixel,
            spacing,
            _own_words(page) if kind == "plain" else None,
            dict(tif.imagej_metadata or {}),
            kept,
            page.compression != tifffile.COMPRESSION.NONE,
        )


def write_tiff(
    path: Path,
    array: Array,
    facts: TiffFacts,
    pixel: float | None,
    spacing: float | None,
    same_grid: bool,
    history: str,
    intensities: bool = True,
) -> None:
    """Write an array (z, y, x) as a TIFF with the metadata of another one.

    Parameters
    ----------
    path : Path
        The file to write; not atomically.
    array : Array
        uint8, uint16, int16 or float32.
    facts : TiffFacts
        Metadata of the other file.
    pixel, spacing : float or None
        Pixel size and slice spacing of the array, in nanometers.
    same_grid : bool
        Whether the array has the pixel grid of the other file.
    history : str
        Provenance of the array.
    intensities : bool
        Whether the array has the intensities of the other file, and is stored like them: with their type, and
        with 0 as white if they are.
    """
    shown = facts.shown if intensities else replace(facts.shown, inverted=False)
    dtype = _type_to_write(array.dtype, facts.stored if intensities else None)
    depth, *sides = array.shape
    shape = (depth, *(sides[::-1] if shown.orientation >= 5 else sides))
    size = int(np.prod(array.shape)) * array.dtype.itemsize
    big = size > 2**32 - 2**25
    kind = facts.kind
    if kind == "imagej" and (big or dtype.name not in ("uint8", "uint16", "float32")):
        kind = "plain"
    options: dict[str, Any] = {"metadata": None}
    if pixel is not None:
        per_cm = UNITS["cm"] / pixel
        options |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    if kind == "imagej":
        hyperstack = ("ImageJ", "images", "slices", "frames", "channels", "hyperstack", "spacing", "unit")
        properties = {key: value for key, value in facts.imagej.items() if key not in hyperstack}
        if pixel is not None:
            properties["unit"] = "nm"
            options |= {"resolution": (1 / pixel, 1 / pixel), "resolutionunit": "NONE"}
        if spacing is not None:
            properties["spacing"] = spacing
        properties["Info"] = "\n".join(filter(None, [properties.get("Info"), history]))
        options["metadata"] = {**properties, "axes": "ZYX"}
    elif kind == "ome":
        sizes = {"X": pixel, "Y": pixel, "Z": spacing}
        known = {f"PhysicalSize{axis}": value for axis, value in sizes.items() if value is not None}
        units = {f"{key}Unit": "nm" for key in known}
        options["metadata"] = {"axes": "ZYX", "Description": history, **known, **units}
    else:
        options["description"] = facts.description or history
    tags: tuple[tuple[Any, ...], ...] = (
        facts.tags if same_grid else tuple(tag for tag in facts.tags if tag[0] < 32768)
    )
    tags = (*tags, (IMAGE_HISTORY, 2, None, history, True))
    if shown.orientation != 1:
        tags = (*tags, (ORIENTATION, 3, 1, shown.orientation, True))
    with tifffile.TiffWriter(path, bigtiff=big, imagej=kind == "imagej", ome=kind == "ome") as tif:
        tif.write(
            (_as_stored(plane, shown, dtype) for plane in _slices(array)),
            shape=shape,
            dtype=dtype,
            photometric="miniswhite" if shown.inverted else "minisblack",
            compression="zlib" if facts.compressed and kind != "imagej" else None,
            software=PROGRAM,
            extratags=tags,
            **options,
        )


def _type_to_write(dtype: np.dtype[Any], stored: np.dtype[Any] | None) -> np.dtype[Any]:
    """Return the data type to write: that of the input if it can represent the result."""
    if (
        stored is None
        or stored == dtype
        or stored.name not in ("int8", "float16", "float64", "uint32", "int32", "uint64", "int64")
    ):
        return dtype
    return stored


def _as_stored(plane: NDArray[Any], shown: Shown, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert a plane to the stored form of the input's file."""
    if plane.dtype != dtype:
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            plane = np.clip(np.rint(plane.astype(np.float64)), limits.min, limits.max)
        plane = plane.astype(dtype)
    return shown.undo(plane)


def _slices(array: Array) -> Iterator[NDArray[Any]]:
    """Yield the slices of an array, read by rows of chunks if these are small."""
    depth, height, width = array.shape
    step = CHUNK[0] if CHUNK[0] * height * width * array.dtype.itemsize <= SLAB_BYTES else 1
    for z in range(0, depth, step):
        yield from array[slice(z, min(z + step, depth)), slice(0, height), slice(0, width)]
