"""Parsing of a `source`: its format, its place on disk or on the web, and the path within it.

Conventions
-----------
* The text alone decides, except for a folder without a known extension, which is searched for files that
  identify its format. Any other file is called an image; the readers identify it by its first bytes.
* Nothing here opens a file or loads a numerical library: the workflow lists the files in every one of its
  jobs.
* A URL begins with ``http://``, ``https://``, ``gs://`` or ``s3://``. The prefix ``precomputed://``,
  ``zarr://``, ``n5://`` or ``webknossos://``, before a URL or a folder, states the format. ``file://`` names
  a place on disk.
* An existing path is taken literally; only a path that does not exist may be a pattern with ``*``, ``?``,
  ``[`` or ``{z}``, which stands for the slice number.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from emdiffuse.runtime.errors import DataError

Kind = Literal[
    "image", "mrc", "hdf5", "zarr", "n5", "precomputed", "webknossos", "dm", "czi", "amira", "fibsem", "nrrd",
    "npy", "raw",
]  # fmt: skip
SCHEMES: dict[str, Kind] = {
    "precomputed": "precomputed",
    "zarr": "zarr",
    "zarr2": "zarr",
    "zarr3": "zarr",
    "n5": "n5",
    "webknossos": "webknossos",
}
MARKS: dict[Kind, tuple[str, ...]] = {
    "zarr": ("zarr.json", ".zgroup", ".zarray"),
    "n5": ("attributes.json",),
    "precomputed": ("info",),
    "webknossos": ("datasource-properties.json",),
}
"""Files that identify the format of a folder."""
SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2")
PICTURES = (".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".webp", ".gif", ".pgm")
ENDINGS: dict[str, Kind] = {
    **dict.fromkeys((*SUFFIXES, *PICTURES), "image"),
    **dict.fromkeys((".mrc", ".mrcs", ".rec", ".st", ".map", ".ali", ".preali", ".ccp4"), "mrc"),
    **dict.fromkeys((".dm3", ".dm4"), "dm"),
    ".czi": "czi",
    ".am": "amira",
    ".dat": "fibsem",
    **dict.fromkeys((".nrrd", ".nhdr"), "nrrd"),
    ".npy": "npy",
    ".raw": "raw",
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".ims", ".emd"), "hdf5"),
}
"""Formats by file extension; files only."""
PACKED = (".gz", ".bz2")
NUMBER = "{z}"
_HDF5 = re.compile(r"(.+\.(?:h5|hdf5|hdf|ims|emd))(?::(.*))?", re.IGNORECASE | re.DOTALL)
_IN_HDF5 = re.compile(r"(.+?\.(?:h5|hdf5|hdf|ims|emd))/(.*)", re.IGNORECASE | re.DOTALL)
_ZIP = re.compile(r"(.+?\.(?:zip|ozx))((?:/.*)?)$", re.IGNORECASE | re.DOTALL)
_URL = re.compile(r"(?:https?|gs|s3)://")


@dataclass(frozen=True)
class SourceName:
    """A parsed source.

    Attributes
    ----------
    kind : str
        Its format; "image" also for folders of numbered slices and unknown formats.
    place : str
        A file, a folder, a pattern, or a URL.
    inside : str
        Path of the array in an HDF5 file or a zipped Zarr; part of the place in other formats.
    """

    kind: Kind
    place: str
    inside: str = ""

    @property
    def remote(self) -> bool:
        """Whether the place is a URL."""
        return _URL.match(self.place) is not None

    @property
    def exists(self) -> bool:
        """Whether the place exists on disk; a URL is assumed to exist."""
        return self.remote or Path(self.place).exists() or any(True for _ in matches(self.place))


def parse_source(source: str) -> SourceName:
    """Parse the text of a source."""
    scheme, _, rest = source.partition("://")
    if scheme in SCHEMES and rest:
        return SourceName(SCHEMES[scheme], _on_disk(rest).rstrip("/"))
    source = _on_disk(source)
    if match := _HDF5.fullmatch(source):
        return SourceName("hdf5", match[1], (match[2] or "").strip("/"))
    if (match := _IN_HDF5.match(source)) and Path(match[1]).is_file():  # as ilastik writes it: file.h5/data
        return SourceName("hdf5", match[1], match[2].strip("/"))
    place = source.rstrip("/") or source
    if match := _ZIP.match(place):
        return SourceName("zarr", match[1], match[2].strip("/"))
    folders = place.split("/")
    for kind in ("zarr", "n5"):
        if any(part.lower().endswith(f".{kind}") for part in folders):
            return SourceName(kind, place)
    if _URL.match(source):
        return SourceName("precomputed", place)
    for kind, marks in MARKS.items():
        if any((Path(place) / mark).is_file() for mark in marks):
            return SourceName(kind, place)
    if Path(place).is_dir() or (not Path(place).exists() and is_pattern(place)):
        return SourceName("image", place)
    return SourceName(kind_of(place), place)


def kind_of(file: str) -> Kind:
    """Return the format by the extension of a file; "image" if unknown."""
    name = file.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), "image")


def is_slice(file: Path) -> bool:
    """Return whether a file of a folder may be a slice of a series, judged by its name."""
    name = file.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return not name.startswith(".") and name.endswith(tuple(ENDINGS)) and file.is_file()


def is_pattern(place: str) -> bool:
    """Return whether a place may stand for several files."""
    return NUMBER in place or re.search(r"[*?\[]", place) is not None


def matches(place: str) -> Iterable[Path]:
    """Return the files that match a pattern, in no particular order."""
    if not is_pattern(place):
        return ()
    path = Path(place.replace(NUMBER, "*"))
    return Path(path.anchor).glob(str(path.relative_to(path.anchor)))


def _on_disk(source: str) -> str:
    """Remove ``file://`` and decode the rest."""
    if not source.startswith("file://"):
        return source
    return unquote(source.removeprefix("file://localhost").removeprefix("file://"))


def source_files(source: str) -> list[Path]:
    """Return the files of a source: all images, only the metadata of a store, none of a URL.

    Raises
    ------
    DataError
        If there are none on disk.
    """
    name = parse_source(source)
    if name.kind == "image":
        return image_files(name.place)
    require_source(source, name)
    place = Path(name.place)
    if name.remote:
        return []
    if place.is_file():
        return [place]
    marks = (mark for known in MARKS.values() for mark in known)
    return [place / mark for mark in marks if (place / mark).is_file()]


def require_source(source: str, name: SourceName) -> None:
    """Refuse a source that does not exist on disk.

    Raises
    ------
    DataError
        If there is no such file or folder.
    """
    if not name.exists:
        raise DataError(f"{source}: there is no such file or folder; check the path")


def image_files(place: str) -> list[Path]:
    """Return the files of a source, sorted by name, not yet by slice number.

    Raises
    ------
    DataError
        If there are none, or several formats.
    """
    path = Path(place)
    if path.is_file():
        return [path]
    if not path.is_dir():
        files = sorted(file for file in matches(place) if is_slice(file))
        if not files:
            what = "no image matching this pattern" if is_pattern(place) else "no such file or folder"
            raise DataError(f"{place}: there is {what}; check the path")
        return _of_one_format(place, files)
    try:
        files = sorted(file for file in path.iterdir() if is_slice(file))
    except PermissionError:
        raise DataError(f"{place}: no permission to read this folder; check its permissions") from None
    if not files:
        raise DataError(
            f"{place}: this folder contains no image ({', '.join([*SUFFIXES[:2], '.png', '.mrc'])}, ...); "
            "check the path"
        )
    return _of_one_format(place, files)


def _of_one_format(place: str, files: list[Path]) -> list[Path]:
    """Return the files if all share one format; refuse a mixture."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        kinds[_ending(file)].append(file)
    if len(kinds) == 1:
        return files
    (_, most), *others = sorted(kinds.items(), key=lambda item: -len(item[1]))
    stray = next(iter(others[0][1]))
    raise DataError(
        f"{place}: there are files of several formats, such as '{most[0].name}' and '{stray.name}'; "
        "select one stack "
        f"by a pattern such as '*{most[0].suffix}'"
    )


def _ending(file: Path) -> str:
    name = file.name.lower()
    return (
        "tiff" if name.endswith(SUFFIXES) else next((e for e in ENDINGS if name.endswith(e)), kind_of(name))
    )
