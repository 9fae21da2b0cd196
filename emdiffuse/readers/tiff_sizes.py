"""Voxel sizes and names in TIFF metadata: OME, ImageJ, microscope vendors, and resolution tags.

Conventions
-----------
* Sizes are in nanometers, by `sizes`. Sources are tried from the most to the least specific.
* Pixels of a pyramid level are larger by the ratio of the numbers of pixels.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tifffile

from emdiffuse.readers.sizes import UNITS, Size, believed, told, unit_of

GATAN = ((65011, 65005), (65010, 65004), (65009, 65003))
"""Tags of scale and unit, for z, y and x."""
TESCAN = 50431
ZEISS_PIXEL = 3
"""Index of the pixel size, in meters, in the unnamed numbers of Zeiss files."""
ZEISS_ROUNDED = 0.01
"""Relative tolerance between that number and the rounded size in the text."""


def voxel_size(tif: tifffile.TiffFile, series: int, level: int, file: Path) -> Size | None:
    """Return the voxel size (z, y, x) as far as the file states it; implausible values are ignored."""
    size: list[float | None] = [None, None, None]
    readers: tuple[Callable[[], Size | None], ...] = (
        lambda: _ome(tif, series),
        lambda: _imagej(tif),
        lambda: _fei(tif),
        lambda: _zeiss(tif),
        lambda: _tescan(tif, file),
        lambda: _gatan(tif),
        lambda: _jeol(file),
        lambda: _resolution(tif),
    )
    for read in readers:
        with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, OSError):
            for axis, value in enumerate(read() or ()):
                size[axis] = size[axis] if size[axis] is not None else believed(value)
    if level:
        levels = tif.series[series].levels
        for axis, letter in ((1, "imagelength"), (2, "imagewidth")):
            fewer = getattr(levels[0].keyframe, letter) / getattr(levels[level].keyframe, letter)
            value = size[axis]
            size[axis] = None if value is None else value * fewer
    z, y, x = size
    y, x = y if y is not None else x, x if x is not None else y  # some files state only one side of a pixel
    return None if z is y is x is None else (z, y, x)


def ome_image(tif: tifffile.TiffFile, series: int) -> Mapping[str, Any]:
    """Return the OME metadata of an image; raise KeyError if there are none."""
    if not tif.ome_metadata:
        raise KeyError("OME")
    images = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]
    chosen: Mapping[str, Any] = images[series] if isinstance(images, list) else images
    return chosen


def channel_names(tif: tifffile.TiffFile, series: int) -> list[str]:
    """Return the names of the channels, if OME or ImageJ state them."""
    with contextlib.suppress(KeyError, IndexError, TypeError, ValueError):
        channels = ome_image(tif, series)["Pixels"]["Channel"]
        channels = channels if isinstance(channels, list) else [channels]
        return [str(channel.get("Name", i)) for i, channel in enumerate(channels)]
    return []


def _ome(tif: tifffile.TiffFile, series: int) -> Size | None:
    pixels = ome_image(tif, series)["Pixels"]
    units = [unit_of(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX"]
    return told([pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"], units)


def _imagej(tif: tifffile.TiffFile) -> Size | None:
    properties = tif.imagej_metadata or {}
    unit = unit_of(properties["unit"])
    if unit is None:
        return None
    x, y = (_per_pixel(tif, tag) for tag in ("XResolution", "YResolution"))
    spacing = properties.get("spacing")
    # ImageJ writes "zunit" only if it differs from the unit of x
    units = [unit_of(properties.get("zunit", properties["unit"])), unit, unit]
    return told([spacing, y, x], units)


def _fei(tif: tifffile.TiffFile) -> Size | None:
    scan = (tif.fei_metadata or {})["Scan"]
    return (None, float(scan.get("PixelHeight", scan["PixelWidth"])) * 1e9, float(scan["PixelWidth"]) * 1e9)


def _zeiss(tif: tifffile.TiffFile) -> Size | None:
    said = tif.sem_metadata or {}
    exact: float | None = None
    with contextlib.suppress(KeyError, IndexError, TypeError, ValueError):
        exact = float(said[""][ZEISS_PIXEL]) * 1e9
    for key in ("ap_image_pixel_size", "ap_pixel_size"):
        if key in said:
            _, value, unit = said[key][:3]
            pixel = float(value) * UNITS[str(unit).strip().lower()]
            if exact is None or abs(exact - pixel) > ZEISS_ROUNDED * pixel:
                return (None, pixel, pixel)
    return (None, exact, exact)


def tescan_properties(tif: tifffile.TiffFile, file: Path) -> dict[str, str]:
    """Return the properties written by TESCAN, in a tag or in a text file beside the image."""
    tag = tif.pages.first.tags.get(TESCAN)
    text = ""
    if tag is not None:
        raw = tag.value
        text = raw.decode("latin-1", errors="replace") if isinstance(raw, bytes) else str(raw)
    else:
        for beside in (file.with_suffix(".hdr"), Path(str(file).removesuffix(file.suffix) + "-tif.hdr")):
            if beside.is_file():
                text = beside.read_text("latin-1")
    return dict(re.findall(r"(\w+)=([^\r\n\0]+)", text)) if "PixelSizeX" in text else {}


def _tescan(tif: tifffile.TiffFile, file: Path) -> Size | None:
    said = tescan_properties(tif, file)
    return (None, float(said["PixelSizeY"]) * 1e9, float(said["PixelSizeX"]) * 1e9)


def _gatan(tif: tifffile.TiffFile) -> Size | None:
    tags = tif.pages.first.tags
    scales = [float(tags[scale].value) if scale in tags else None for scale, _ in GATAN]
    units = [unit_of(tags[unit].value) if unit in tags else None for _, unit in GATAN]
    return told(scales, units)


def jeol_properties(file: Path) -> dict[str, str]:
    """Return the properties written by JEOL, in a text file beside the image."""
    beside = next((path for e in (".txt", ".TXT") if (path := file.with_suffix(e)).is_file()), None)
    if beside is None:
        return {}
    return dict(re.findall(r"^\$+([A-Z_0-9]+)[ \t]+(.+?)\s*$", beside.read_text("latin-1"), re.MULTILINE))


def _jeol(file: Path) -> Size | None:
    said = jeol_properties(file)
    number = re.fullmatch(r"([\d.]+)\s*(\D+)", said["SM_MICRON_MARKER"])
    if number is None:
        return None
    unit = unit_of(number[2])
    pixel = float(number[1]) * (unit or float("nan")) / float(said["SM_MICRON_BAR"].split()[0])
    return (None, pixel, pixel)


def _resolution(tif: tifffile.TiffFile) -> Size | None:
    unit = {2: "inch", 3: "cm"}[int(tif.pages.first.tags["ResolutionUnit"].value)]
    x, y = (_per_pixel(tif, tag) for tag in ("XResolution", "YResolution"))
    return (None, y * UNITS[unit], x * UNITS[unit])


def _per_pixel(tif: tifffile.TiffFile, tag: str) -> float:
    pixels, units = tif.pages.first.tags[tag].value
    return float(units) / float(pixels)
