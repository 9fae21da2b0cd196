"""Protection of user data: only emdiffuse's own outputs may be replaced, and never an input.

Conventions
-----------
* A folder made by emdiffuse (a Zarr store) contains the file `MARKER` from the start. A folder without it is
  foreign, and so is any file in it that is not part of a Zarr store: both are refused and left unchanged. An
  empty folder may be filled.
* A file that emdiffuse writes for a user is identified by its metadata: the software tag of a TIFF or PNG,
  the metadata of safetensors, a key of JSON, the header of a model card, the comment of a ZIP, the generator
  of HTML, or the headings of a table. Any other existing file is replaced only if the user asks for it
  (``--overwrite``).
* An output is never an input, contains one, or is inside one. Paths are compared by device and inode, so
  that neither links nor mounts hide that two are the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from emdiffuse.runtime.errors import OutputError

PROGRAM = "emdiffuse"
MARKER = ".emdiffuse"
MARKED = (
    "This folder was made by emdiffuse, which replaces all of it when it is recomputed: do not keep your own "
    "files here.\n"
)
_MEASURES = "plane,measure,unit,method,mean,low,high,identical"
HEADINGS = (_MEASURES, f"dataset,model,truth,{_MEASURES}")
"""First lines of the tables that emdiffuse writes: of an evaluation, and of a report."""
_OF_A_STORE = re.compile(r"zarr\.json|\.zarr\.json\..*|slab\.scratch")
_OF_THE_SYSTEM = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+|\.snakemake_timestamp")


def require_apart(output: Path, inputs: Iterable[Path | str]) -> None:
    """Refuse an output that is an input, contains one, or is inside one.

    Parameters
    ----------
    output : Path
        Path to write; it need not exist.
    inputs : iterable of path
        Paths that are read; URLs are ignored.

    Raises
    ------
    OutputError
        Names both paths.
    """
    own = _place(output)
    above = {place for path in _parents(output) if (place := _place(path))}
    holders: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given)
        if (place := _place(path)) is None:
            continue
        if place == own:
            raise OutputError(f"{output}: this is the input {path}; choose another output")
        if place in above:
            raise OutputError(f"{output}: this is inside the input {path}; choose an output outside it")
        holders |= dict.fromkeys((parent for parent in _parents(path) if parent not in holders), path)
    for holder, path in holders.items():
        if own is not None and _place(holder) == own:
            raise OutputError(f"{output}: this folder contains the input {path}; choose another output")


def _place(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return facts.st_dev, facts.st_ino


def _parents(path: Path) -> Iterator[Path]:
    """Yield the parent folders of a path, both as written and with links resolved."""
    yield from path.absolute().parents
    yield from path.resolve().parents


def require_own_folder(folder: Path, inputs: Iterable[Path | str] = ()) -> None:
    """Refuse to replace a folder that this program did not make, or that contains foreign files.

    Raises
    ------
    OutputError
        If so, or if `require_apart` refuses it; names the first foreign file.
    """
    require_apart(folder, inputs)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: a file is in the way; move it, or choose another output")
    if not any(folder.iterdir()):
        return
    if not is_marked(folder):
        raise OutputError(
            f"{folder}: this folder was not made by emdiffuse and will not be replaced; move it, or choose "
            "another output"
        )
    if foreign := next(_foreign(folder), None):
        raise OutputError(
            f"{foreign}: emdiffuse did not write this file, and {folder} is to be replaced; "
            "move the file elsewhere"
        )


def is_marked(folder: Path) -> bool:
    """Return whether a folder, or the store that contains it, was made by emdiffuse."""
    place = folder.absolute()
    return any((path / MARKER).is_file() for path in (place, *place.parents[:3]))


def _foreign(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not part of a Zarr store of emdiffuse."""
    for parent, folders, names in os.walk(folder):
        inside = Path(parent).relative_to(folder).parts
        yield from (Path(parent, name) for name in folders if Path(parent, name).is_symlink())
        for name in names:
            chunk = "c" in inside and name[:1].isdigit()
            if not (chunk or name == MARKER or _OF_A_STORE.fullmatch(name) or _OF_THE_SYSTEM.fullmatch(name)):
                yield Path(parent, name)


def mark(folder: Path) -> None:
    """Mark a folder as made by emdiffuse."""
    (folder / MARKER).write_text(MARKED)


def emptied(folder: Path, inputs: Iterable[Path | str] = ()) -> Path:
    """Empty a folder made by emdiffuse, or create one, and mark it unless a parent folder is marked.

    Raises
    ------
    OutputError
        As `require_own_folder`.
    """
    require_own_folder(folder, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    if not is_marked(folder):
        mark(folder)
    for path in folder.iterdir():
        if path.name != MARKER:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def require_free(file: Path, inputs: Iterable[Path | str] = (), overwrite: bool | None = False) -> None:
    """Refuse to replace a file that this program did not write.

    Parameters
    ----------
    file : Path
        File to write.
    inputs : iterable of path
        Files that are read, and never replaced.
    overwrite : bool or None
        Whether the user allows replacing a foreign file; None if there is no such option.

    Raises
    ------
    OutputError
        If it is an input, a folder, or foreign.
    """
    require_apart(file, inputs)
    if file.is_dir() or not file.name:
        raise OutputError(f"{file}: a folder is in the way; choose another output")
    if os.path.lexists(file) and not overwrite and not is_own_file(file):
        remedy = "move it" if overwrite is None else "add `--overwrite` to replace it"
        raise OutputError(
            f"{file}: this file was not written by emdiffuse; {remedy}, or choose another output"
        )


def is_own_file(file: Path) -> bool:
    """Return whether the metadata of a file name emdiffuse as its writer."""
    read = _SAYS.get(file.suffix.lower())
    if read is None or not file.is_file():
        return False
    try:
        return read(file)
    except Exception:  # a file that a reader cannot parse is not ours
        return False


def _tiff_says(file: Path) -> bool:
    import tifffile

    with tifffile.TiffFile(file) as tif:
        return bool(tif.pages.first.software == PROGRAM)


def _png_says(file: Path) -> bool:
    with file.open("rb") as png:
        return f"tEXtSoftware\0{PROGRAM}".encode() in png.read(4096)


def _json_says(file: Path) -> bool:
    with file.open() as text:
        content: dict[str, Any] = json.loads(text.read(2**26))
    known = content.get("program") == PROGRAM or content.get("format") == f"{PROGRAM}-model"
    return known or any("stage" in (content.get(key) or {}) for key in ("made", "restored_by"))


def _safetensors_say(file: Path) -> bool:
    with file.open("rb") as weights:
        (length,) = struct.unpack("<Q", weights.read(8))
        header: dict[str, Any] = json.loads(weights.read(min(length, 2**26)))
    return bool(header["__metadata__"]["program"] == PROGRAM)


def _markdown_says(file: Path) -> bool:
    """Check the header of a model card."""
    with file.open() as text:
        return f"library_name: {PROGRAM}\n" in text.read(4096)


def _html_says(file: Path) -> bool:
    with file.open() as text:
        return f'<meta name="generator" content="{PROGRAM}">' in text.read(4096)


def _csv_says(file: Path) -> bool:
    with file.open() as text:
        return text.readline().strip() in HEADINGS


def _zip_says(file: Path) -> bool:
    with zipfile.ZipFile(file) as archive:
        return archive.comment == PROGRAM.encode()


_SAYS = {
    ".tif": _tiff_says,
    ".tiff": _tiff_says,
    ".btf": _tiff_says,
    ".tf8": _tiff_says,
    ".png": _png_says,
    ".json": _json_says,
    ".md": _markdown_says,
    ".html": _html_says,
    ".csv": _csv_says,
    ".safetensors": _safetensors_say,
    ".zip": _zip_says,
    ".pt2": _zip_says,
}


def sign_zip(file: Path) -> None:
    """Mark a ZIP file as written by emdiffuse."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = PROGRAM.encode()
