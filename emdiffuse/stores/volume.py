"""OME-Zarr 0.5 images.

Conventions
-----------
* Axes are (z, y, x); voxel sizes are (z, y, x) in nanometers, stored in the OME metadata as the scale of each
  level.
* The pixel at index i covers [i, i + 1) voxels; OME coordinates are those of pixel centres, so level n, whose
  pixels average 2**n voxels, is translated by (2**n - 1) / 2 voxels along each reduced axis.
* The facts of a store are in its attributes, under ``emdiffuse``.
* A group's ``zarr.json`` is written last: a store without it is unfinished, and cannot be opened.
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
    """Return the kind of a store: "volume", "images" or "pairs"."""
    return str(known_of(path).get("kind", "volume"))


def write_group(path: Path, attributes: dict[str, Any]) -> None:
    """Write a group's ``zarr.json`` atomically, as the last step of creating a store.

    If the group records its provenance, a copy is kept, so that it can be recognized later.
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
        Path of each level, relative to the group.
    scales : sequence of sequence of int
        Number of level-0 voxels that a pixel of each level averages along (z, y, x).
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
    """An opened, finished OME-Zarr image.

    Attributes
    ----------
    path : Path
        The group.
    array : Array
        Level 0, (z, y, x).
    voxel_size : tuple of float
        Voxel size (z, y, x) in nanometers.
    facts : VolumeFacts
        Facts of the image: `RestoredFacts` if it was restored.
    """

    path: Path
    array: Array
    voxel_size: tuple[float, float, float]
    facts: VolumeFacts

    @property
    def intensity(self) -> Intensity:
        """Intensity scaling of its slices."""
        if self.facts.intensity is None:
            raise StoreError(f"{self.path}: the intensity range is unknown; acquire it again")
        return self.facts.intensity

    @property
    def restoration(self) -> RestoredFacts:
        """Facts of its restoration; empty if it was not restored by emdiffuse."""
        return self.facts if isinstance(self.facts, RestoredFacts) else RestoredFacts()

    @property
    def made(self) -> Link:
        """Provenance of the image."""
        return require_made(self.facts, self.path)

    @property
    def valid(self) -> tuple[slice, slice]:
        """Rows and columns of the image, without a data bar."""
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
        raise StoreError(f"{path}: invalid voxel size ({z:g}, {y:g}, {x:g}); recreate the store")
    if place.is_absolute() or ".." in place.parts:
        raise StoreError(f"{path}: the level '{place}' is outside the store; recreate the store")
    array = Array(path / place)
    if len(array.shape) != 3:
        raise StoreError(f"{array.path}: expected three axes (z, y, x), not {len(array.shape)}")
    return Volume(path, array, (z, y, x), parse_volume_facts(attributes.get("emdiffuse"), path))


def write_image(path: Path, name: str, voxel_size: Sequence[float], facts: Facts) -> None:
    """Finish an image of one level, stored as array ``0``: write its group's metadata."""
    image = multiscale(name, voxel_size, ["0"], [(1, 1, 1)])
    write_group(path, {"ome": {"version": "0.5", "multiscales": [image]}, "emdiffuse": facts.as_json()})
