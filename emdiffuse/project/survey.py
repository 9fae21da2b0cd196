"""Inspect paths: find volumes, images or pairs of images, and their metadata.

Conventions
-----------
* No pixel is read. Shapes are (z, y, x), voxel sizes (z, y, x) in nanometers, None if unknown.
* A folder is tried as image pairs, as numbered slices, and then as a folder of several volumes or images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emdiffuse.acquisition.layouts import PATTERNS, find_pairs
from emdiffuse.config.datasets import allowed_name
from emdiffuse.config.sources import is_slice, parse_source
from emdiffuse.readers import open_source
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

Kind = Literal["volume", "images", "pairs"]
UNKNOWN: Size = (None, None, None)
ISOTROPIC = 1.05
"""Largest ratio of the sides of a voxel that still counts as isotropic."""


@dataclass(frozen=True)
class Finding:
    """Data found at a path.

    Attributes
    ----------
    name : str
        Name of the dataset.
    source : str
        Source in the configuration, relative to the workflow's folder if inside it.
    kind : str
        "volume", "images" or "pairs".
    shape : tuple of int
        Shape (z, y, x); for pairs, their number and the shape of a clean image.
    dtype : str
        Data type of the pixels.
    size : tuple of float or None
        Voxel size.
    scale : int
        For pairs: pixels of the clean image per pixel of the other.
    stretched : bool
        Whether pixels are not square, and will be resampled to `size`.
    """

    name: str
    source: str
    kind: Kind
    shape: tuple[int, int, int]
    dtype: str
    size: Size = UNKNOWN
    scale: int = 1
    stretched: bool = False

    @property
    def ratio(self) -> float:
        """Ratio z/y of the voxel size, which must be known."""
        z, y, _ = self.size
        assert z is not None and y is not None
        return z / y

    @property
    def isotropic(self) -> bool:
        """Whether voxels are cubes, or nearly so."""
        return 1 / ISOTROPIC <= self.ratio <= ISOTROPIC

    def __str__(self) -> str:
        z, y, x = self.shape
        what = {
            "volume": f"a volume of {z} slices of",
            "images": f"{z} image{'' if z == 1 else 's'} of",
            "pairs": f"{z} pair{'' if z == 1 else 's'} of images of",
        }[self.kind]
        known = [f"{value:g}" if value is not None else "?" for value in self.size]
        size = f", voxels of {' x '.join(known)} nm" if any(self.size) else ", voxel size unknown"
        return f"{self.source}: {what} {y} x {x} pixels, {self.dtype}{size}"


def survey(paths: Iterable[str], folder: Path) -> list[Finding]:
    """Inspect raw data.

    Parameters
    ----------
    paths : iterable of str
        Files, folders, patterns or URLs, as in `source` of the configuration.
    folder : Path
        Folder of the workflow, to which the paths of sources are relative.

    Raises
    ------
    DataError
        If a path has no readable data.
    """
    found: list[Finding] = []
    for path in paths:
        found += _at(path, folder)
    return _named_apart(found)


def _at(path: str, folder: Path) -> list[Finding]:
    place = Path(path)
    if not place.is_dir() or parse_source(path).kind != "image":
        return [_one(path, folder)]
    if pairs := _pairs(place, folder):
        return [pairs]
    try:
        return [_one(path, folder)]
    except DataError as error:
        several = [_one(str(part), folder) for part in sorted(place.iterdir()) if _is_data(part)]
        if not several:
            raise DataError(f"{path}: neither slices of one volume nor several files ({error})") from None
        return several


def _one(path: str, folder: Path) -> Finding:
    """Inspect one source."""
    source = open_source(path)
    size = source.voxel_size or UNKNOWN
    kind: Kind = "images" if source.shape[0] == 1 else "volume"
    z, y, x = source.shape
    return Finding(_name(path), _told(path, folder), kind, (z, y, x), source.dtype.name, size)


def _pairs(place: Path, folder: Path) -> Finding | None:
    """Look for image pairs by their file names: one noisy or coarse, the other clean."""
    for pattern in PATTERNS:
        try:
            pairs = find_pairs(place, pattern).pairs
        except DataError:
            continue
        moving, fixed = (open_source(str(path)) for path in (pairs[0].moving, pairs[0].fixed))
        scale = max(round(fixed.shape[1] / moving.shape[1]), 1)
        _, y, x = fixed.shape
        size = fixed.voxel_size or UNKNOWN
        shape = (len(pairs), y, x)
        return Finding(
            _name(str(place)), _told(str(place), folder), "pairs", shape, fixed.dtype.name, size, scale
        )
    return None


def _is_data(path: Path) -> bool:
    """Return whether an entry of a folder is data: an image, a file of another format, or a store."""
    return is_slice(path) or (not path.name.startswith(".") and parse_source(str(path)).kind != "image")


def _name(path: str) -> str:
    """Return a name for a dataset: that of the file, made valid."""
    stem = re.split(r"[/:]", path.rstrip("/*"))[-1]
    stem = re.sub(r"(\.ome)?\.\w+$", "", stem)
    return allowed_name(stem)


def _told(path: str, folder: Path) -> str:
    """Return a path relative to the workflow's folder if inside it, otherwise absolute."""
    source = parse_source(path)
    if source.remote or not Path(source.place).exists():
        return path
    place, home = Path(source.place).resolve(), folder.resolve()
    told = os.path.relpath(place, home) if place.is_relative_to(home) else str(place)
    return path.replace(source.place, told, 1)


def _named_apart(found: list[Finding]) -> list[Finding]:
    """Make the names unique."""
    names: set[str] = set()
    apart = []
    for finding in found:
        name, number = finding.name, 2
        while name.casefold() in names:
            name, number = f"{finding.name}_{number}", number + 1
        names.add(name.casefold())
        apart.append(Finding(**{**finding.__dict__, "name": name}))
    return apart
