"""The images of an OME-Zarr store, for Neuroglancer and napari.

Conventions
-----------
* An *image* is a group with ``multiscales`` of OME-Zarr 0.4 or 0.5; its place is its path in the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import zarr

from emdiffuse.runtime.disks import read_plain
from emdiffuse.runtime.errors import AccessError, StoreError

NEUROGLANCER = "https://neuroglancer-demo.appspot.com"


@dataclass(frozen=True)
class Image:
    """An image of a store.

    Attributes
    ----------
    place : str
        Path of its group from the store; empty for the store itself.
    name : str
        Display name.
    levels : tuple of str
        Paths of the resolution levels from the group, finest first.
    scale : tuple of float
        Voxel size of the finest level per axis; in our stores (z, y, x) in nanometers.
    units : tuple of str
        Units of the axes; "pixel" for axes without a unit of length.
    contrast : tuple of float, optional
        Intensities shown as black and white, if the store states them.
    """

    place: str
    name: str
    levels: tuple[str, ...]
    scale: tuple[float, ...]
    units: tuple[str, ...]
    contrast: tuple[float, float] | None


def find_images(store: Path) -> list[Image]:
    """List the images of a store: those in its groups, up to two levels deep, or else the store itself.

    Raises
    ------
    StoreError
        If there are none.
    """
    own = _attributes(store)
    found = []
    for group in sorted({path.parent for depth in ("*", "*/*") for path in _marks(store, depth)}):
        attributes = _attributes(group)
        if "multiscales" in attributes.get("ome", {}):
            found.append(_image(store, group, own | attributes))
    if not found and "multiscales" in own.get("ome", {}):
        found.append(_image(store, store, own))
    if not found:
        raise StoreError(f"{store}: there is no OME-Zarr image; give the folder that ends in .ome.zarr")
    return sorted(found, key=lambda image: image.name != "restored")


def _marks(store: Path, depth: str) -> Iterator[Path]:
    """Yield the metadata files of groups, of Zarr 3, and of Zarr 2 (OME-Zarr 0.4)."""
    for name in ("zarr.json", ".zattrs"):
        yield from store.glob(f"{depth}/{name}")


def _attributes(group: Path) -> dict[str, Any]:
    """Return the attributes of a group in the form of OME-Zarr 0.5; in 0.4 they are one level higher."""
    new, old = group / "zarr.json", group / ".zattrs"
    try:
        if new.exists():
            node = json.loads(read_plain(new))
            return _mappings(node.get("attributes", {})) if node.get("node_type") == "group" else {}
        attributes = json.loads(read_plain(old)) if old.exists() else {}
        return _mappings({"ome": attributes}) if "multiscales" in attributes else {}
    except AccessError:
        raise
    except (ValueError, RecursionError, AttributeError, TypeError):
        raise StoreError(f"{group}: its metadata cannot be parsed; copy the store again") from None


def _mappings(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes; raise TypeError if a known part is not a mapping."""
    if not all(isinstance(attributes.get(key, {}), dict) for key in ("ome", "emdiffuse")):
        raise TypeError("a part of the attributes is not a mapping")
    return dict(attributes)


def _image(store: Path, group: Path, attributes: dict[str, Any]) -> Image:
    place = group.relative_to(store).as_posix().removeprefix(".")
    try:
        image = attributes["ome"]["multiscales"][0]
        levels = tuple(str(level["path"]) for level in image["datasets"])
        found = image["datasets"][0]["coordinateTransformations"][0]["scale"]
        scale = tuple(float(side) for side in found)
        units = tuple(str(axis.get("unit", "pixel")) for axis in image["axes"])
        intensity = attributes.get("emdiffuse", {}).get("intensity") or {}
        known = {"low", "high"} <= intensity.keys() and not place.endswith("uncertainty")
        contrast = (float(intensity["low"]), float(intensity["high"])) if known else None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{group}: its OME-Zarr metadata cannot be read; write it again") from None
    name = store.name.removesuffix(".zarr").removesuffix(".ome")
    return Image(place, place or name, levels, scale, units, contrast)


def neuroglancer_link(address: str, images: list[Image]) -> str:
    """Return a link that shows images in Neuroglancer; `address` is the URL of the store."""
    layers = []
    for number, image in enumerate(images):
        layer: dict[str, Any] = {
            "type": "image",
            "name": image.name,
            "source": f"zarr://{address}{image.place}",
            "visible": number == 0,
        }
        if image.contrast:
            layer["shaderControls"] = {"normalized": {"range": list(image.contrast)}}
        layers.append(layer)
    state = {"layers": layers, "selectedLayer": {"layer": images[0].name}, "layout": "4panel"}
    return f"{NEUROGLANCER}/#!{quote(json.dumps(state, separators=(',', ':')))}"


def napari_layers(store: Path) -> list[dict[str, Any]]:
    """Return the arguments of napari's ``add_image`` for every image of a store, without reading voxels."""
    layers = []
    for number, image in enumerate(find_images(store)):
        group = store / image.place
        layers.append(
            {
                "data": [zarr.open_array(group / level, mode="r") for level in image.levels],
                "multiscale": True,
                "name": image.name,
                "scale": image.scale,
                "units": image.units,
                "contrast_limits": image.contrast,
                "visible": number == 0,
            }
        )
    return layers
