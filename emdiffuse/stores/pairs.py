"""Stores of image pairs: the same fields imaged twice, from which emdiffuse-n and emdiffuse-r learn.

Conventions
-----------
* A store is one folder; each field is a group in it with two OME-Zarr images, ``moving`` (noisy, or of low
  resolution) and ``fixed`` (clean, or of high resolution), (z, y, x) with one slice; once registered also a
  ``mask`` on the pixel grid of ``fixed``, 1 where both show the field.
* `scale` is how many pixels of the fixed image are one of the moving one, along an axis: 1 or 2.
* A field with the key ``excluded`` is left out of training, for the reason that it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emdiffuse.runtime.errors import StoreError
from emdiffuse.stores.volume import Volume, open_volume, read_metadata, write_group

SCALES = (1, 2)


@dataclass(frozen=True)
class Pairs:
    """An opened store of pairs.

    Attributes
    ----------
    path : Path
        The folder.
    facts : dict
        What the store says of itself: dataset, scale, intensity of ``moving`` and ``fixed``, sources, fields.
    """

    path: Path
    facts: dict[str, Any]

    @property
    def scale(self) -> int:
        """Pixels of the fixed image that are one of the moving one."""
        return int(self.facts["scale"])

    @property
    def fields(self) -> list[dict[str, Any]]:
        """Group, name, specimen and level of each field, also of the excluded ones."""
        fields: list[dict[str, Any]] = self.facts["fields"]
        return fields

    def image(self, field: dict[str, Any], name: str) -> Volume:
        """Open an image of a field: "moving", "fixed" or "mask"."""
        return open_volume(self.path / field["group"] / name)

    def has_mask(self, field: dict[str, Any]) -> bool:
        """Tell whether a field has a mask."""
        return (self.path / field["group"] / "mask" / "zarr.json").exists()


def finish_pairs(path: Path, facts: dict[str, Any]) -> None:
    """Write the metadata of the groups of fields, and last that of the store, with its facts."""
    for field in facts["fields"]:
        write_group(path / field["group"], {"emdiffuse": {"name": field["name"]}})
    write_group(path, {"emdiffuse": facts})


def open_pairs(path: Path) -> Pairs:
    """Open a store of pairs.

    Raises
    ------
    StoreError
        If there is none, or it is a volume.
    """
    facts = read_metadata(path, "group")["attributes"].get("emdiffuse", {})
    if facts.get("kind") != "pairs":
        raise StoreError(f"{path}: a store of image pairs is expected here, but this is a volume")
    return Pairs(path, facts)


def holds_pairs(path: Path) -> bool:
    """Tell whether a store holds image pairs, rather than a volume."""
    return bool(read_metadata(path, "group")["attributes"].get("emdiffuse", {}).get("kind") == "pairs")
