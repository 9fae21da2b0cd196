"""OME-Zarr 0.5 images.

Conventions
-----------
* Axes are (z, y, x); voxel sizes are (z, y, x) in nanometers, kept in the OME metadata as the scale of each
  level.
* The pixel at index i covers [i, i + 1) voxels; OME's coordinates are those of pixel centres, so that level
  n, whose pixel averages 2**n, is translated by (2**n - 1) / 2 voxels along each axis that was reduced.
* What the project knows of a store is in its attributes, under ``emdiffuse``.
* A group's ``zarr.json`` is written last: a store without it was not finished, and nothing opens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any

from emdiffuse.runtime.errors import StoreError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.stores.array import Array, read_metadata
from emdiffuse.stores.facts import Facts, RestoredFacts, VolumeFacts, parse_volume_facts, require_made
from emdiffuse.stores.intensity import Intensity
from emdiffuse.stores.provenance import Link, write_and_keep


def known_of(path: Path) -> dict[str, Any]:
    """Return the facts of a finished group as JSON; empty for a foreign one."""
    attributes = read_metadata(path, "group").get("attributes")
    known = attributes.get("emdiffuse") if isinstance(attributes, dict) else None
    return known if isinstance(known, dict) else {}


def kind_of(path: Path) -> str:
    """Return what a store holds: "volume", "images" or "pairs"."""
    return str(known_of(path).get("kind", "volume"))


def write_group(path: Path, attributes: dict[str, Any]) -> None:
    """Write a group's ``zarr.json``, atomically: the last thing that the maker of a store does.

    Where the group says what it was made of, a copy is kept, by which it is known when it is asked for again.
    """
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    if "made" in attributes.get("emdiffuse", {}):
        write_and_keep(path / "zarr.json", metadata)
    else:
        write_json(path / "zarr.json", metadata)


def multiscale(
    name: str, voxel_size: Sequence[float], paths: Sequence[str], scales: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Return the OME-Zarr 0.5 metadata of one multiscale image.

    Parameters
    ----------
    name : str
        Name of the image.
    voxel_size : sequence of float
        Voxel size (z, y, x) of level 0, in nanometers.
    paths : sequence of str
        Path of each level, from the group.
    scales : sequence of sequence of int
        How many voxels of level 0 a pixel of each level averages along (z, y, x).
    """
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [float(v * s) for v, s in zip(voxel_size, scale, strict=True)],
                    },
                    {
                        "type": "translation",
                        "translation": [
                            float(v * (s - 1) / 2) for v, s in zip(voxel_size, scale, strict=True)
                        ],
                    },
                ],
            }
            for path, scale in zip(paths, scales, strict=True)
        ],
    }


@dataclass(frozen=True)
class Volume:
    """A finished OME-Zarr image, opened.

    Attributes
    ----------
    path : Path
        The group.
    array : Array
        Level 0, (z, y, x).
    voxel_size : tuple of float
        Voxel size (z, y, x) in nanometers.
    facts : VolumeFacts
        Its facts: `RestoredFacts` if it was restored.
    """

    path: Path
    array: Array
    voxel_size: tuple[float, float, float]
    facts: VolumeFacts

    @property
    def intensity(self) -> Intensity:
        """How its slices are scaled."""
        if self.facts.intensity is None:
            raise StoreError(f"{self.path}: its intensity range is unknown; acquire it again")
        return self.facts.intensity

    @property
    def restoration(self) -> RestoredFacts:
        """What is known of how it was restored: nothing, where this program did not do it."""
        return self.facts if isinstance(self.facts, RestoredFacts) else RestoredFacts()

    @property
    def made(self) -> Link:
        """How it was made."""
        return require_made(self.facts, self.path)

    @property
    def valid(self) -> tuple[slice, slice]:
        """Rows and columns that are image, and no data bar of a microscope."""
        _, height, width = self.array.shape
        top, bottom, left, right = self.facts.valid or (0, height, 0, width)
        return slice(top, bottom), slice(left, right)


def open_volume(path: Path) -> Volume:
    """Open an OME-Zarr 0.5 image of three axes (z, y, x).

    Raises
    ------
    StoreError
        If it is missing, unfinished, or not such an image.
    """
    attributes = read_metadata(path, "group").get("attributes", {})
    try:
        image = attributes["ome"]["multiscales"][0]
        axes = [str(axis["name"]) for axis in image["axes"]]
        level = image["datasets"][0]
        z, y, x = (float(side) for side in level["coordinateTransformations"][0]["scale"])
        place = PurePosixPath(level["path"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{path}: this Zarr group is not an OME-Zarr 0.5 image") from None
    if axes != ["z", "y", "x"]:
        raise StoreError(f"{path}: the axes must be z, y, x, but are {', '.join(axes)}")
    if not all(0 < side < inf for side in (z, y, x)):
        raise StoreError(f"{path}: its voxel size ({z:g}, {y:g}, {x:g}) is not valid; recreate the store")
    if place.is_absolute() or ".." in place.parts:
        raise StoreError(f"{path}: its level '{place}' lies outside the store; recreate the store")
    array = Array(path / place)
    if len(array.shape) != 3:
        raise StoreError(f"{array.path}: three axes (z, y, x) are expected, not {len(array.shape)}")
    return Volume(path, array, (z, y, x), parse_volume_facts(attributes.get("emdiffuse"), path))


def write_image(path: Path, name: str, voxel_size: Sequence[float], facts: Facts) -> None:
    """Finish an image of one level, stored as array ``0``: write its group's metadata."""
    image = multiscale(name, voxel_size, ["0"], [(1, 1, 1)])
    write_group(path, {"ome": {"version": "0.5", "multiscales": [image]}, "emdiffuse": facts.as_json()})
