"""What a dataset was made of: a checksum of each source, and whether one changed since.

Conventions
-----------
* A file is known by the SHA-256 of its bytes. A folder of chunks is known by the names and sizes of all files
  in it, and an address by its metadata: their bytes are read but once, as pixels.
* A source that is no longer there did not change: raw data are moved to archives.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emdiffuse.readers.base import Source
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.volume import read_metadata

logger = logging.getLogger(__name__)


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
    return file_checksums(source.files, name, source.checksums)


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


def changed_source(store: Path) -> str | None:
    """Return the first source that changed since a store was made of it, None if none did.

    What was not touched since, and has its size, is not read again.

    Parameters
    ----------
    store : Path
        An acquired volume, or pairs.

    Raises
    ------
    StoreError
        If it is not finished.
    """
    facts = read_metadata(store, "group").get("attributes", {}).get("emdiffuse", {})
    since = (store / "zarr.json").stat().st_mtime
    for source in facts.get("sources", []):
        path = Path(source["path"])
        if path.exists() and _changed(path, source, since):
            return str(path)
    return None


def _changed(path: Path, source: Mapping[str, Any], since: float) -> bool:
    if path.is_dir():
        newest = max((file.stat().st_mtime for file in path.rglob("*")), default=0.0)
        return newest > since or checksum(path)[1] != source["sha256"]
    facts = path.stat()
    touched = max(facts.st_mtime, facts.st_ctime) > since
    return facts.st_size != source["bytes"] or (touched and checksum(path)[1] != source["sha256"])


def is_current(store: Path, settings: str, paths: Sequence[str]) -> bool:
    """Tell whether a store was made of these sources, in this way, and none changed since; and say why not.

    Parameters
    ----------
    store : Path
        The acquired volume, or pairs, if there is one.
    settings : str
        Hash of how it is to be made.
    paths : sequence of str
        What it is to be made of.
    """
    if not (store / "zarr.json").exists():
        return False
    facts = read_metadata(store, "group").get("attributes", {}).get("emdiffuse", {})
    if facts.get("settings") != settings or {s["path"] for s in facts.get("sources", [])} != set(paths):
        return False
    changed = changed_source(store)
    if changed is None:
        logger.info("%s: it was made of the same sources, none of which changed: nothing to do", store)
    else:
        logger.warning("%s: it changed since %s was made of it; acquired again", changed, store)
    return changed is None


def require_unchanged(store: Path) -> None:
    """Refuse a store whose sources changed since it was made.

    Raises
    ------
    DataError
        If one did: it is named.
    """
    changed = changed_source(store)
    if changed is not None:
        raise DataError(
            f"{changed}: it changed since {store} was made of it; acquire it again (`emdiffuse acquire`, or "
            "Snakemake's `--forcerun acquire`)"
        )
