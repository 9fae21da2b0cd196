"""The slices on both sides of a slice, which a denoiser of volumes is shown beside it.

Conventions
-----------
* Their noise must be their own: a slice never stands beside itself. Where one side has none (the ends of the
  volume), the other neighbour stands on both sides, and a slice that is marked as missing, whose pixels are a
  copy, is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.volume import Volume


def beside(z: int, slices: int, missing: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the slice before, the slice itself, and the slice after.

    Parameters
    ----------
    z : int
        The slice.
    slices : int
        Slices of the volume.
    missing : sequence of int
        Those whose pixels are not to be trusted.

    Raises
    ------
    DataError
        If there is no other slice.
    """
    lost = frozenset(missing)
    before = next((s for s in range(z - 1, -1, -1) if s not in lost), None)
    after = next((s for s in range(z + 1, slices) if s not in lost), None)
    if before is None and after is None:
        raise DataError("one slice has no neighbours, which this model is shown: at least two are needed")
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
    if separate or volume.array.shape[0] < 2:
        raise DataError(
            f"{volume.path}: this model is shown the neighbouring slices of a volume, and separate images "
            "have none; take a model without `patches.context`",
            volume.path,
        )
