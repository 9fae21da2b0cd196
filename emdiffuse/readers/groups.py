"""Images and arrays inside a Zarr or N5 group that is not itself an image.

Conventions
-----------
* Folders on disk and in ZIP archives are searched; URLs cannot be listed.
* A multiscale image counts as one image, not as its levels. Arrays with one axis are tables, and are ignored.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emdiffuse.config.reading import Reading
from emdiffuse.runtime.errors import DataError

DEEPEST = 5
"""Depth of the search; a plate has its images at depth three."""
MOST_FOLDERS = 2000
SHOWN = 5
Folder = Path | zipfile.Path
Facts = dict[str, Any]


def facts_in(folder: Folder, file: str) -> Facts:
    """Return a JSON file of a folder; empty if missing or unreadable."""
    try:
        found = json.loads((folder / file).read_text())
    except (OSError, ValueError, KeyError):
        return {}
    return found if isinstance(found, dict) else {}


def is_zarr_image(folder: Folder) -> bool:
    """Return whether a folder is a Zarr array with rows and columns, or an OME-Zarr image."""
    node = facts_in(folder, "zarr.json") or facts_in(folder, ".zarray")
    if "shape" in node:
        return len(node["shape"]) >= 2
    attributes = node.get("attributes") or facts_in(folder, ".zattrs")
    return bool((attributes.get("ome") or attributes).get("multiscales"))


def is_n5_image(folder: Folder) -> bool:
    """Return whether a folder is an N5 array with rows and columns, or a multiscale group."""
    arrays = (facts_in(folder, "attributes.json"), facts_in(folder / "s0", "attributes.json"))
    return any(len(facts.get("dimensions", ())) >= 2 for facts in arrays)


def images_in(folder: Folder, is_image: Callable[[Folder], bool]) -> list[str]:
    """Return the paths of images below a folder, sorted by the numbers in them."""
    left = [MOST_FOLDERS]

    def below(folder: Folder, path: str, depth: int) -> Iterator[str]:
        for child in folder.iterdir():
            if not child.is_dir() or not left[0] or child.name.startswith("."):
                continue
            left[0] -= 1
            place = f"{path}{child.name}"
            if is_image(child):
                yield place
            elif depth < DEEPEST:
                yield from below(child, f"{place}/", depth + 1)

    return sorted(below(folder, "", 1), key=_by_numbers)


def _by_numbers(path: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path)]


def choose_image(name: str, found: list[str], reading: Reading, what: str) -> str:
    """Return the path of the chosen image: the only one, or that given by `series` (path or number).

    Parameters
    ----------
    name : str
        Name of the group, for messages.
    found : list of str
        Paths below it, from `images_in`.
    reading : Reading
        Choices of the user.
    what : str
        Kind of the group, such as "Zarr group".

    Raises
    ------
    DataError
        If there are none, or one must be chosen.
    """
    choice = reading.series
    if isinstance(choice, str) and choice not in found and choice.isdigit():
        choice = int(choice)
    if isinstance(choice, str) and choice in found:
        return choice
    if isinstance(choice, int) and 0 <= choice < len(found):
        return found[choice]
    if choice is None and len(found) == 1:
        return found[0]
    if not found:
        remedy = "unpack it first" if "ZIP" in what else "check the path"
        raise DataError(f"{name}: this {what} contains no Zarr or N5 image; {remedy}")
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise DataError(
        f"{name}: this {what} contains {len(found)} images ({', '.join(found[:SHOWN])}{more}); name one, "
        f"such as {name.rstrip('/')}/{found[0]}, or choose one with `series`"
    )
