"""What the text of a `source` names: a format, a place on disk or on the web, and what is meant within it.

Conventions
-----------
* The text alone decides, but for a folder without a telling ending, in which the format's own files are
  looked for. A folder or a file of which nothing else is known is TIFF.
* Nothing here opens a file: the workflow asks which files there are in every one of its jobs, and no
  numerical library is loaded for that.
* An address begins with ``http://``, ``https://``, ``gs://`` or ``s3://``; before it, or before a folder,
  ``precomputed://``, ``zarr://`` or ``n5://`` says what lies there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emdiffuse.runtime.errors import DataError

Kind = Literal["tiff", "mrc", "hdf5", "zarr", "n5", "precomputed"]
SCHEMES: tuple[Kind, ...] = ("precomputed", "zarr", "n5")
MARKS: dict[Kind, tuple[str, ...]] = {
    "zarr": ("zarr.json", ".zgroup", ".zarray"),
    "n5": ("attributes.json",),
    "precomputed": ("info",),
}
"""Files that give a folder away."""
SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
"""Endings of TIFF files."""
_HDF5 = re.compile(r"(.+\.(?:h5|hdf5|hdf))(?::(.*))?", re.IGNORECASE)
_MRC = re.compile(r".+\.(?:mrc|mrcs|rec|st|map)", re.IGNORECASE)
_URL = re.compile(r"(?:https?|gs|s3)://")


@dataclass(frozen=True)
class SourceName:
    """A source, taken apart.

    Attributes
    ----------
    kind : str
        Its format.
    place : str
        A file, a folder, a glob, or an address.
    inside : str
        The path of the array in an HDF5 file; elsewhere it is part of the place.
    """

    kind: Kind
    place: str
    inside: str = ""

    @property
    def remote(self) -> bool:
        """Whether the place is an address."""
        return _URL.match(self.place) is not None

    @property
    def exists(self) -> bool:
        """Whether the place names anything on disk; an address is believed."""
        path = Path(self.place)
        if self.remote or path.exists():
            return True
        pattern = str(path.relative_to(path.anchor))
        return any(c in self.place for c in "*?[") and any(True for _ in Path(path.anchor).glob(pattern))


def parse_source(source: str) -> SourceName:
    """Take the text of a source apart."""
    for kind in SCHEMES:
        if source.startswith(f"{kind}://"):
            return SourceName(kind, source.removeprefix(f"{kind}://").rstrip("/"))
    if match := _HDF5.fullmatch(source):
        return SourceName("hdf5", match[1], (match[2] or "").strip("/"))
    if _MRC.fullmatch(source):
        return SourceName("mrc", source)
    place = source.rstrip("/") or source
    for kind in ("zarr", "n5"):
        if any(part.lower().endswith(f".{kind}") for part in place.split("/")):
            return SourceName(kind, place)
    if _URL.match(source):
        return SourceName("precomputed", place)
    for kind, marks in MARKS.items():
        if any((Path(place) / mark).is_file() for mark in marks):
            return SourceName(kind, place)
    return SourceName("tiff", source)


def source_files(source: str) -> list[Path]:
    """Return the files that stand for a source: all of TIFF, the metadata of a folder, none of an address.

    Raises
    ------
    DataError
        If there is none on disk.
    """
    name = parse_source(source)
    if name.kind == "tiff":
        return tiff_files(source)
    require_source(source, name)
    place = Path(name.place)
    if name.remote:
        return []
    if place.is_file():
        return [place]
    return [place / mark for mark in (*MARKS["zarr"], *MARKS["n5"], "info") if (place / mark).is_file()]


def tiff_files(source: str) -> list[Path]:
    """Return the TIFF files that a source names, sorted by name: not yet in the order of their numbers.

    Raises
    ------
    DataError
        If there is none.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = list(path.iterdir())
    else:
        found = (
            list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if re.search(r"[*?\[]", source)
            else []
        )
    files = sorted(f for f in found if f.suffix.lower() in SUFFIXES and f.name[0] != "." and f.is_file())
    if not files:
        what = "this folder holds" if path.is_dir() else "there is"
        raise DataError(f"{source}: {what} no TIFF file ({', '.join(SUFFIXES)}); check the path")
    return files


def require_source(source: str, name: SourceName) -> None:
    """Refuse a source that names nothing on disk.

    Raises
    ------
    DataError
        If there is no such file or folder.
    """
    if not name.exists:
        raise DataError(f"{source}: there is no such file or folder; check the path")
