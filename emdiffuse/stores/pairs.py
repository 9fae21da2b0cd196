"""Stores of image pairs: the same fields imaged twice, from which emdiffuse-n and emdiffuse-r learn.

Conventions
-----------
* A store is one folder; each field is a group in it with two OME-Zarr images, ``moving`` (noisy, or of low
  resolution) and ``fixed`` (clean, or of high resolution), (z, y, x) with one slice; after registration also
  a ``mask`` on the pixel grid of ``fixed``, 1 where both show the field.
* `scale` is the number of pixels of the fixed image per pixel of the moving one, along an axis: 1 or 2.
* A field with the key ``excluded`` is not trained on, for the reason given there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emdiffuse.runtime.errors import StoreError
from emdiffuse.stores.facts import PairField, PairsFacts, parse_facts
from emdiffuse.stores.volume import Volume, kind_of, known_of, open_volume, write_group

SCALES: tuple[Literal[1, 2], ...] = (1, 2)


@dataclass(frozen=True)
class PairStore:
    """An opened store of pairs.

    Attributes
    ----------
    path : Path
        The folder.
    facts : PairsFacts
        The facts of the store.
    """

    path: Path
    facts: PairsFacts

    @property
    def scale(self) -> int:
        """Pixels of the fixed image per pixel of the moving one."""
        return self.facts.scale

    @property
    def fields(self) -> tuple[PairField, ...]:
        """All fields, including excluded ones."""
        return self.facts.fields

    def image(self, field: PairField, name: str) -> Volume:
        """Open an image of a field: "moving", "fixed" or "mask"."""
        return open_volume(self.path / field.group / name)

    def has_mask(self, field: PairField) -> bool:
        """Return whether a field has a mask."""
        return (self.path / field.group / "mask" / "zarr.json").exists()


def finish_pairs(path: Path, facts: PairsFacts) -> None:
    """Write the metadata of the fields' groups, and finally that of the store, with its facts."""
    for field in facts.fields:
        write_group(path / field.group, {"emdiffuse": {"name": field.name}})
    write_group(path, {"emdiffuse": facts.as_json()})


def open_pairs(path: Path) -> PairStore:
    """Open a store of pairs.

    Raises
    ------
    StoreError
        If it is missing, or a volume.
    """
    if not holds_pairs(path):
        raise StoreError(f"{path}: expected a store of image pairs, but this is a volume", path)
    return PairStore(path, parse_facts(PairsFacts, known_of(path), path))


def holds_pairs(path: Path) -> bool:
    """Return whether a store contains image pairs, rather than a volume."""
    return kind_of(path) == "pairs"
