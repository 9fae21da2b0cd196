"""Find lost parts of a store: chunks and metadata that are missing or damaged.

Conventions
-----------
* The parts of a store are those named in its metadata (levels of an image, fields of pairs, arrays of
  patches) and those in its folder, so that neither a deleted level nor a deleted ``zarr.json`` is overlooked.
* Chunks are read completely. A machine failure (`AccessError`) ends the check, since it proves nothing about
  the data.
* A store is repaired by the stage that made it. Only its ``zarr.json`` is removed, which marks it as
  unfinished; the stage replaces the rest.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emdiffuse.runtime.errors import DamagedError, StoreError
from emdiffuse.runtime.progress import logger, progress
from emdiffuse.stores.array import Array
from emdiffuse.stores.damage import MISSING
from emdiffuse.stores.provenance import forget

METADATA = "zarr.json"
PATCH_ARRAYS = ("condition", "target", "origin")
Index = tuple[int, ...]


@dataclass(frozen=True)
class Loss:
    """A lost part of a store: a chunk, or the ``zarr.json`` of a group or array.

    Attributes
    ----------
    node : Path
        The group or array.
    index : tuple of int or None
        The position of the chunk in its grid; None for the metadata.
    file : Path
        The chunk, or the ``zarr.json``.
    what : str
        "missing", or what is wrong with it.
    """

    node: Path
    index: Index | None
    file: Path
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify_store(store: Path, repair: bool = False) -> None:
    """Check a store, and stores that share its chunks, or have the workflow recompute it.

    Parameters
    ----------
    store : Path
        An acquired or registered volume or store of pairs, or a store of patches.
    repair : bool
        Whether to mark a store with losses as unfinished, so that the next run of the workflow recomputes it.

    Raises
    ------
    StoreError
        If something is lost and `repair` is false, or there is no store.
    AccessError
        If something cannot be read, but is not provably damaged.
    """
    lost, total = losses(store)
    if not any(loss.file.parent == store and loss.index is None for loss in lost):
        facts = _metadata(store).get("attributes", {}).get("emdiffuse", {})
        if facts.get("stage") not in ("acquire", "register", "patches"):
            raise StoreError(
                f"{store}: not a store of the workflow, so chunks may be missing on purpose; give a store in "
                "results/, or the plan.json of a restoration"
            )
    elif not list(store.glob("**/zarr.json")):
        raise StoreError(f"{store}: there is no store")
    tell(store, lost, total, repair)
    if repair and lost:
        for damaged in (store, *sharing(store, lost)):
            forget(damaged / METADATA)
            logger.info("%s: marked as unfinished: the next run of the workflow recomputes it", damaged)


def tell(store: Path, lost: list[Loss], total: int, repair: bool) -> None:
    """Report what is lost, and refuse the store unless it is repaired.

    Raises
    ------
    StoreError
        If something is lost and not repaired.
    """
    for loss in lost:
        logger.warning("%s", loss)
    if not lost:
        logger.info("%s: all %d chunks and metadata files are intact", store, total)
    elif not repair:
        more = f", and {len(lost) - 1} other{'s' if len(lost) > 2 else ''}" if len(lost) > 1 else ""
        raise StoreError(
            f"{lost[0]}{more} of the {total} chunks and metadata files of {store}; run `emdiffuse verify "
            f"{shlex.quote(str(store))} --repair`, then run the workflow again to recompute the lost parts"
        )


def sharing(store: Path, lost: Iterable[Loss]) -> list[Path]:
    """Return the stores of other stages that share a lost chunk with a store, by hard links."""
    found = []
    for other in sorted(store.absolute().parent.parent.glob(f"*/{store.name}")):
        if other == store.absolute() or not (other / METADATA).exists():
            continue
        for loss in lost:
            node = other / loss.node.relative_to(store)
            if loss.index is not None and (node / METADATA).exists() and Array(node).loss(loss.index):
                found.append(other)
                break
    return found


def losses(
    store: Path, expected: Iterable[str] = (), written: Callable[[Index], bool] = lambda index: True
) -> tuple[list[Loss], int]:
    """Find the lost parts of a store.

    Parameters
    ----------
    store : Path
        A group, or an array.
    expected : iterable of str
        Paths of groups and arrays that it must contain besides those named in its metadata.
    written : callable
        Returns whether the chunk at a grid position should exist.

    Returns
    -------
    tuple
        The losses, and the number of files checked.

    Raises
    ------
    AccessError
        If something cannot be read, but is not provably damaged.
    """
    lost: list[Loss] = []
    chunks: list[tuple[Array, Index]] = []
    nodes = list(_nodes(store, set(expected)))
    for node, what in nodes:
        if what is None and _metadata(node)["node_type"] == "array":
            try:
                array = Array(node)
            except StoreError as error:
                what = f"damaged ({error})"
            else:
                chunks += [(array, index) for index in np.ndindex(*array.grid) if written(index)]
        if what is not None:
            lost.append(Loss(node, None, node / METADATA, what))
    for array, index in progress(chunks, len(chunks), f"verifying {store}", "chunk"):
        try:
            array[array.box(index)]
        except DamagedError as error:
            lost.append(Loss(array.path, index, error.chunk, error.what))
    return lost, len(nodes) + len(chunks)


def _nodes(path: Path, expected: set[str]) -> Iterator[tuple[Path, str | None]]:
    """Yield a node and the groups and arrays below it, with what is wrong with their metadata."""
    members, what = set(expected), None
    try:
        metadata = _metadata(path)
    except FileNotFoundError:
        what = MISSING
    except (ValueError, KeyError, TypeError):
        what = "damaged (not the metadata of a Zarr 3 group or array)"
    else:
        if metadata["node_type"] == "array":
            yield path, None
            return
        members |= _members(metadata)
    yield path, what
    if path.is_dir():
        members |= {child.name for child in path.iterdir() if child.is_dir() and child.name[0] != "."}
    for name in sorted({member.split("/")[0] for member in members} - {"c"}):
        below = {member.partition("/")[2] for member in members if member.startswith(f"{name}/")}
        yield from _nodes(path / name, below)


def _metadata(path: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((path / METADATA).read_text())
    if metadata["node_type"] not in ("array", "group"):
        raise ValueError(metadata["node_type"])
    return metadata


def _members(metadata: dict[str, Any]) -> set[str]:
    """Return the paths of the members named in a group's metadata."""
    attributes = metadata.get("attributes", {})
    images = attributes.get("ome", {}).get("multiscales", [])
    paths = {level["path"] for image in images for level in image["datasets"]}
    facts = attributes.get("emdiffuse", {})
    for field in facts.get("fields", []):
        moved = (field.get("quality") or {}).get("changed")
        paths |= {f"{field['group']}/{role}" for role in ("moving", "fixed", *(["mask"] if moved else []))}
    return paths | (set(PATCH_ARRAYS) if facts.get("stage") == "patches" else set())
