"""TIFF files that say of themselves what another one said: pixel size, description, the microscope's tags.

Conventions
-----------
* Voxel sizes are in nanometers; None where a file does not say.
* ImageJ's files stay ImageJ's, OME-TIFF stays OME-TIFF, others keep their description. Tags of the microscope
  are kept as long as the pixel grid is the same, since they speak of its pixels.
* Slices are written one after another, and never all held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.stores.volume import CHUNK, Array

SLAB_BYTES = 2**28
LARGEST_PIXEL = 10_000.0
"""Nanometers; what claims larger pixels speaks of a printer (72 dots an inch), and not of a microscope."""

UNITS = {
    "nm": 1.0, "nanometer": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3,
    "micrometer": 1e3, "mm": 1e6, "cm": 1e7, "m": 1e9, "inch": 2.54e7, "å": 0.1, "angstrom": 0.1, "pm": 1e-3,
}  # fmt: skip
KEPT_TAGS = {269, 271, 272, 285, 306, 315, 316, 33432}
"""Names, times and persons; private tags (from 32768 on) are kept too, but for those in `FORMAT_TAGS`."""
FORMAT_TAGS = {34665, 34853, 50838, 50839}
"""Private tags that belong to the file's layout: folders of Exif and GPS, and ImageJ's own."""


@dataclass(frozen=True)
class TiffFacts:
    """What a TIFF says beside its pixels.

    Attributes
    ----------
    kind : str
        "imagej", "ome" or "plain".
    pixel, spacing : float or None
        Size of a pixel, and distance of slices.
    description : str or None
        Text of a plain file.
    imagej : dict
        ImageJ's properties.
    tags : tuple
        Other tags, as `tifffile` writes them: (code, type, count, value, once).
    compressed : bool
        Whether the pixels are.
    """

    kind: str
    pixel: float | None
    spacing: float | None
    description: str | None
    imagej: dict[str, Any]
    tags: tuple[tuple[Any, ...], ...]
    compressed: bool


def tiff_facts(path: Path) -> TiffFacts:
    """Read what a TIFF says beside its pixels; what cannot be understood is taken as not said."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        kind = "ome" if tif.is_ome else "imagej" if tif.is_imagej else "plain"
        pixel = spacing = None
        for read in (_ome_size, _imagej_size, _microscope_size, _resolution_size):
            with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
                found = read(tif)
                pixel, spacing = pixel or _plausible(found[0]), spacing or _plausible(found[1])
        kept = tuple(
            tag.astuple()
            for tag in page.tags
            if tag.code in KEPT_TAGS or (tag.code >= 32768 and tag.code not in FORMAT_TAGS)
        )
        return TiffFacts(
            kind,
            pixel,
            spacing,
            page.description if kind == "plain" and page.description else None,
            dict(tif.imagej_metadata or {}),
            kept,
            page.compression != tifffile.COMPRESSION.NONE,
        )


def _plausible(size: float | None) -> float | None:
    return size if size is not None and 0 < size < LARGEST_PIXEL else None


def _ome_size(tif: tifffile.TiffFile) -> tuple[float | None, float | None]:
    if not tif.ome_metadata:
        raise KeyError("no OME metadata")
    images = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]
    pixels = (images[0] if isinstance(images, list) else images)["Pixels"]

    def size(axis: str) -> float | None:
        value = pixels.get(f"PhysicalSize{axis}")
        unit = str(pixels.get(f"PhysicalSize{axis}Unit", "µm")).lower()
        return None if value is None else float(value) * UNITS[unit]

    return size("X"), size("Z")


def _imagej_size(tif: tifffile.TiffFile) -> tuple[float | None, float | None]:
    properties = tif.imagej_metadata or {}
    scale = UNITS[str(properties["unit"]).lower().replace("\\u00b5", "µ")]
    pixels, units = tif.pages.first.tags["XResolution"].value
    spacing = properties.get("spacing")
    return scale * units / pixels, None if spacing is None else scale * float(spacing)


def _microscope_size(tif: tifffile.TiffFile) -> tuple[float | None, float | None]:
    """Return what Thermo Fisher (FEI) and Zeiss say."""
    if tif.fei_metadata:
        return float(tif.fei_metadata["Scan"]["PixelWidth"]) * 1e9, None
    _, value, unit = (tif.sem_metadata or {})["ap_image_pixel_size"]
    return float(value) * UNITS[str(unit).lower()], None


def _resolution_size(tif: tifffile.TiffFile) -> tuple[float | None, float | None]:
    tags = tif.pages.first.tags
    pixels, units = tags["XResolution"].value
    scale = {2: UNITS["inch"], 3: UNITS["cm"]}[int(tags["ResolutionUnit"].value)]
    return scale * units / pixels, None


def write_tiff(
    path: Path, array: Array, facts: TiffFacts, pixel: float | None, spacing: float | None, same_grid: bool
) -> None:
    """Write an array (z, y, x) as a TIFF like another one.

    Parameters
    ----------
    path : Path
        The file to write; not atomically.
    array : Array
        uint8, uint16, int16 or float32.
    facts : TiffFacts
        What the other file says.
    pixel, spacing : float or None
        Size of a pixel and distance of slices of the array, in nanometers.
    same_grid : bool
        Whether pixel i of the array lies where pixel i of the other file lies.
    """
    size = int(np.prod(array.shape)) * array.dtype.itemsize
    big = size > 2**32 - 2**25
    kind = facts.kind
    if kind == "imagej" and (big or array.dtype.name not in ("uint8", "uint16", "float32")):
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
        options["metadata"] = {**properties, "axes": "ZYX"}
    elif kind == "ome":
        sizes = {"X": pixel, "Y": pixel, "Z": spacing}
        known = {f"PhysicalSize{axis}": value for axis, value in sizes.items() if value is not None}
        options["metadata"] = {"axes": "ZYX", **known, **{f"{key}Unit": "nm" for key in known}}
    elif facts.description:
        options["description"] = facts.description
    tags = facts.tags if same_grid else tuple(tag for tag in facts.tags if tag[0] < 32768)
    with tifffile.TiffWriter(path, bigtiff=big, imagej=kind == "imagej", ome=kind == "ome") as tif:
        tif.write(
            _slices(array),
            shape=array.shape,
            dtype=array.dtype,
            photometric="minisblack",
            compression="zlib" if facts.compressed and kind != "imagej" else None,
            software="emdiffuse",
            extratags=tags,
            **options,
        )


def _slices(array: Array) -> Iterator[NDArray[Any]]:
    """Yield the slices of an array, read by rows of chunks where these are small."""
    depth, height, width = array.shape
    step = CHUNK[0] if CHUNK[0] * height * width * array.dtype.itemsize <= SLAB_BYTES else 1
    for z in range(0, depth, step):
        yield from array[slice(z, min(z + step, depth)), slice(0, height), slice(0, width)]
