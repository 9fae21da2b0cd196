"""Checksums of the sources of a dataset, and detection of changed sources.

Conventions
-----------
* A file is identified by the SHA-256 of its bytes, a folder of chunks by the names and bytes of all its
  files, and a URL by its metadata, so that its pixels are read only once.
* A source that no longer exists counts as unchanged: raw data are moved to archives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emdiffuse.readers.base import Source
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.pairs import holds_pairs, open_pairs
from emdiffuse.stores.provenance import SourceFile, file_sha256
from emdiffuse.stores.volume import open_volume

THREADS = 4


def checksums(source: Source, name: str) -> tuple[SourceFile, ...]:
    """Return path, size in bytes and SHA-256 of all files of a source.

    Parameters
    ----------
    source : Source
        The source; files that it has already read completely are not read again.
    name : str
        Name of the dataset.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    if not source.files:
        size, sha256 = len(source.metadata), hashlib.sha256(source.metadata).hexdigest()
        return (SourceFile(path=source.name, bytes=size, sha256=sha256),)
    return file_checksums(source.files, name, source.checksums)


def file_checksums(
    files: Sequence[Path], name: str, known: Mapping[Path, tuple[int, str]] | None = None
) -> tuple[SourceFile, ...]:
    """Return path, size in bytes and SHA-256 of files and folders; see the module.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    sources = []
    for path in progress(files, len(files), f"checksums {name}", "file"):
        size, sha256 = (known or {}).get(path) or checksum(path)
        sources.append(SourceFile(path=str(path), bytes=size, sha256=sha256))
    return tuple(sources)


def checksum(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file or a folder.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None


def _of_file(path: Path) -> tuple[int, str]:
    return path.stat().st_size, file_sha256(path)


def _of_folder(folder: Path) -> tuple[int, str]:
    """Return the size of all files in a folder, and the SHA-256 of their names and checksums."""
    total, digest = 0, hashlib.sha256()
    files = sorted(_files(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_of_file, files)
        for path, (size, own) in zip(
            files, progress(found, len(files), f"checksum {folder}", "file"), strict=True
        ):
            total += size
            digest.update(f"{path.relative_to(folder).as_posix()}\0{own}\n".encode())
    return total, digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or all files in a folder."""
    yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)


def require_unchanged(store: Path) -> None:
    """Refuse a store whose sources changed after it was made.

    Files not touched since the store was made are not read again. This is judged by the time of status change
    (ctime), which also covers renaming and, unlike the modification time, cannot be set back.

    Parameters
    ----------
    store : Path
        Acquired volume, or pairs.

    Raises
    ------
    DataError
        If a source changed; names it.
    StoreError
        If the store is not finished.
    """
    since = (store / "zarr.json").stat().st_mtime
    facts = open_pairs(store).facts if holds_pairs(store) else open_volume(store).facts
    for source in facts.sources:
        path = Path(source.path)
        if path.exists() and _touched(path, since) and checksum(path)[1] != source.sha256:
            raise DataError(
                f"{path}: changed since {store} was made from it; acquire it again (`emdiffuse acquire`, or "
                "start the workflow)",
                path,
            )


def _touched(path: Path, since: float) -> bool:
    times = (file.stat() for file in _files(path))
    return any(max(facts.st_mtime, facts.st_ctime) > since for facts in times)
