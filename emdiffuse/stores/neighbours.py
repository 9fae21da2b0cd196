"""The neighbouring slices that a volume denoiser sees.

Conventions
-----------
* Their noise must be independent, so a slice is never its own neighbour. At the ends of the volume the only
  neighbour is used on both sides; slices marked as missing, which are copies, are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.volume import Volume


def beside(z: int, slices: int, missing: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the slice before, the slice itself, and the slice after.

    Parameters
    ----------
    z : int
        Number of the slice.
    slices : int
        Number of slices of the volume.
    missing : sequence of int
        Slices whose pixels cannot be trusted.

    Raises
    ------
    DataError
        If there is no other slice.
    """
    lost = frozenset(missing)
    before = next((s for s in range(z - 1, -1, -1) if s not in lost), None)
    after = next((s for s in range(z + 1, slices) if s not in lost), None)
    if before is None and after is None:
        raise DataError(
            "this model needs neighbouring slices, but there is only one slice; at least two are needed"
        )
    first, last = (after if before is None else before), (before if after is None else after)
    assert first is not None
    assert last is not None
    return first, z, last


def require_neighbours(volume: Volume) -> None:
    """Refuse images that have no neighbouring slices.

    Raises
    ------
    DataError
        If they are separate images, or a single one.
    """
    degraded = volume.facts.degraded or {}
    separate = volume.facts.kind == "images" and degraded.get("every") != 1
    require_several(1 if separate else volume.array.shape[0], volume.path)


def require_several(slices: int, place: Path | str) -> None:
    """Refuse a single image.

    Parameters
    ----------
    slices : int
        Number of adjacent slices.
    place : path
        Where they are.

    Raises
    ------
    DataError
        If there is only one.
    """
    if slices < 2:
        raise DataError(
            f"{place}: this model needs the neighbouring slices of a volume, but separate images "
            "have none; use a model without `patches.context`",
            Path(place),
        )
