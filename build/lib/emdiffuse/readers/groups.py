"""What lies in a group of Zarr or N5 that is no image itself: the images and arrays below it.

Conventions
-----------
* Folders on disk, and those in a ZIP archive; an address cannot be listed.
* An image (multiscale) counts once, and not by its levels. Arrays of one axis are tables, and count for none.
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
"""Folders below one another that are looked into: a plate has its images in the third."""
MOST_FOLDERS = 2000
SHOWN = 5
Folder = Path | zipfile.Path
Facts = dict[str, Any]


def facts_in(folder: Folder, file: str) -> Facts:
    """Return a JSON file of a folder; empty where it is not there or cannot be read."""
    try:
        found = json.loads((folder / file).read_text())
    except (OSError, ValueError, KeyError):
        return {}
    return found if isinstance(found, dict) else {}


def is_zarr_image(folder: Folder) -> bool:
    """Tell whether a folder is an array of Zarr with rows and columns, or an image of OME-Zarr."""
    node = facts_in(folder, "zarr.json") or facts_in(folder, ".zarray")
    if "shape" in node:
        return len(node["shape"]) >= 2
    attributes = node.get("attributes") or facts_in(folder, ".zattrs")
    return bool((attributes.get("ome") or attributes).get("multiscales"))


def is_n5_image(folder: Folder) -> bool:
    """Tell whether a folder is an array of N5 with rows and columns, or a multiscale group."""
    arrays = (facts_in(folder, "attributes.json"), facts_in(folder / "s0", "attributes.json"))
    return any(len(facts.get("dimensions", ())) >= 2 for facts in arrays)


def images_in(folder: Folder, is_image: Callable[[Folder], bool]) -> list[str]:
    """Return the paths below a folder that are images, in the order of the numbers in them."""
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
    """Return the path of the image that is meant: the only one, or that which `series` names or counts.

    Parameters
    ----------
    name : str
        What the user calls the group.
    found : list of str
        The paths below it, from `images_in`.
    reading : Reading
        What the user chose.
    what : str
        What the group is, such as "Zarr group".

    Raises
    ------
    DataError
        If there is none, or one must be chosen.
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
        raise DataError(f"{name}: this {what} holds no image of Zarr or N5; {remedy}")
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise DataError(
        f"{name}: this {what} holds {len(found)} images ({', '.join(found[:SHOWN])}{more}); name one, "
        f"such as {name.rstrip('/')}/{found[0]}, or choose it by `series`"
    )
