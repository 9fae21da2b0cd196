"""Distinguish damaged chunks from failures of the machine in the errors of tensorstore.

Conventions
-----------
* A chunk is damaged if all its bytes were read and cannot be decoded. Too many open files, no memory, no
  permission, or an unresponsive disk or share prove nothing about it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from emdiffuse.runtime.disks import trouble
from emdiffuse.runtime.errors import AccessError, StoreError

MISSING = "missing"


def damage_of(path: Path, metadata: Path, chunk: Sequence[int], dtype: np.dtype[Any]) -> str | None:
    """Return what is wrong with a chunk (or shard) of a Zarr 3 array; None if it can be decoded.

    All its bytes are read first and then decoded in memory, so that file errors are not mistaken for damage.
    Memory for the result is allocated first, because a decoder without memory fails as on damaged data.

    Parameters
    ----------
    path, metadata : Path
        File of the chunk, and ``zarr.json`` of its array.
    chunk, dtype
        Shape and data type of its content.

    Raises
    ------
    AccessError
        If it cannot be read, or there is no memory for it.
    """
    try:
        content, text = path.read_bytes(), metadata.read_bytes()
        bytearray(2 * prod(chunk) * dtype.itemsize)
    except OSError as error:
        raise AccessError(trouble(path, "read", error.errno or 0, str(error))) from None
    except MemoryError:
        raise AccessError(trouble(path, "read", errno.ENOMEM)) from None
    index = path.parts[-len(chunk) :]
    context = ts.Context()
    copy = ts.KvStore.open({"driver": "memory"}, context=context).result()
    copy["zarr.json"], copy["/".join(("c", *index))] = text, content
    try:
        spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "fill_missing_data_reads": False}
        array = ts.open(spec, context=context).result()
        box = tuple(
            slice(int(i) * c, min((int(i) + 1) * c, n))
            for i, c, n in zip(index, chunk, array.shape, strict=True)
        )
        array[box].read().result()
    except ValueError as error:
        return f"damaged ({first_line(error)})"
    return None


def require_mappings(metadata: dict[str, Any], path: Path) -> None:
    """Refuse a node's metadata if known attributes are not mappings.

    Raises
    ------
    StoreError
        If so.
    """
    attributes = metadata.get("attributes", {})
    known = [attributes]
    if isinstance(attributes, dict):
        known += [attributes[key] for key in ("ome", "emdiffuse") if key in attributes]
    if not all(isinstance(part, dict) for part in known):
        raise StoreError(f"{path}/zarr.json: its attributes are not mappings; recreate the store")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).splitlines()[0][:300]


def os_error(error: ValueError) -> int:
    """Return the operating system's error number in a tensorstore error, or 0."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else 0


def of_the_call(error: ValueError) -> bool:
    """Return whether tensorstore refused the call itself, which is a defect of emdiffuse."""
    return str(error).startswith(("OUT_OF_RANGE", "INVALID_ARGUMENT"))
