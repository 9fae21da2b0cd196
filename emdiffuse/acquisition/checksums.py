"""What a dataset was made of: a checksum of each source, and whether one changed since.

Conventions
-----------
* A file is known by the SHA-256 of its bytes. A folder of chunks is known by the names and sizes of all files
  in it, and an address by its metadata: their bytes are read but once, as pixels.
* A source that is no longer there did not change: raw data are moved to archives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emdiffuse.errors import DataError
from emdiffuse.progress import progress
from emdiffuse.readers import NumberedTiffs, Source


def checksums(source: Source, name: str) -> list[dict[str, Any]]:
    """Return path, size in bytes and SHA-256 of all that a source is made of.

    Parameters
    ----------
    source : Source
        The source; files that it was read from as a whole are not read again.
    name : str
        Name of the dataset.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    if not source.files:
        size, digest = len(source.metadata), hashlib.sha256(source.metadata).hexdigest()
        return [{"path": source.name, "bytes": size, "sha256": digest}]
    known = source.checksums if isinstance(source, NumberedTiffs) else {}
    return file_checksums(source.files, name, known)


def file_checksums(
    files: Sequence[Path], name: str, known: Mapping[Path, tuple[int, str]] | None = None
) -> list[dict[str, Any]]:
    """Return path, size in bytes and SHA-256 of files, and of folders; see the module.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    sources = []
    for path in progress(files, len(files), f"checksums {name}", "file"):
        size, digest = (known or {}).get(path) or checksum(path)
        sources.append({"path": str(path), "bytes": size, "sha256": digest})
    return sources


def checksum(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file or a folder.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        if path.is_dir():
            return _listing(path)
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None


def _listing(folder: Path) -> tuple[int, str]:
    """Return the size of all files in a folder, and the SHA-256 of their names and sizes."""
    total, digest = 0, hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        total += size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\n".encode())
    return total, digest.hexdigest()


def changed_source(sources: Sequence[Mapping[str, Any]], since: float) -> str | None:
    """Return the first source that changed, None if none did.

    Parameters
    ----------
    sources : sequence of mapping
        As `checksums` returned them.
    since : float
        When they were read, in seconds as of `os.stat`: what was not touched since is not read again.
    """
    for source in sources:
        path = Path(source["path"])
        if not path.exists():
            continue
        if path.is_dir():
            newest = max((file.stat().st_mtime for file in path.rglob("*")), default=0.0)
            if newest > since or _listing(path)[1] != source["sha256"]:
                return str(path)
            continue
        facts = path.stat()
        touched = max(facts.st_mtime, facts.st_ctime) > since
        if facts.st_size != source["bytes"] or (touched and checksum(path)[1] != source["sha256"]):
            return str(path)
    return None
