"""Damage, or a trouble of the machine: what an error of tensorstore says of a chunk, and what it does not.

Conventions
-----------
* A chunk is damaged when all its bytes were read and cannot be decoded. Too many open files, no memory, no
  permission, a disk or share that does not answer say nothing about it.
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
    """Return what is wrong with a chunk (or shard) of a Zarr 3 array; None where it can be decoded.

    All its bytes are read first, and decoded in memory, so that no trouble with files can be taken for
    damage. Room for what it holds is asked for before: a decoder without memory fails as on damaged data.

    Parameters
    ----------
    path, metadata : Path
        The chunk's file, and the ``zarr.json`` of its array.
    chunk, dtype
        Shape and type of what it holds.

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
    """Refuse a node's metadata whose known attributes are no mappings.

    Raises
    ------
    StoreError
        If it is so.
    """
    attributes = metadata.get("attributes", {})
    known = [attributes]
    if isinstance(attributes, dict):
        known += [attributes[key] for key in ("ome", "emdiffuse") if key in attributes]
    if not all(isinstance(part, dict) for part in known):
        raise StoreError(f"{path}/zarr.json: its attributes are no mappings; make the store anew")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).splitlines()[0][:300]


def os_error(error: ValueError) -> int:
    """Return the error number of the operating system that tensorstore passes on, 0 if there is none."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else 0


def of_the_call(error: ValueError) -> bool:
    """Tell whether tensorstore refuses the call, before any file is touched: a defect of ours."""
    return str(error).startswith(("OUT_OF_RANGE", "INVALID_ARGUMENT"))
