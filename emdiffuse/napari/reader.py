"""Lazy reading of OME-Zarr into napari layers: no voxel is read before it is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emdiffuse.runtime.errors import EmdiffuseError
from emdiffuse.viewing.images import find_images, napari_layers

LayerData = tuple[Any, dict[str, Any], str]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Return `read` for folders with an OME-Zarr image, else None (napari's reader interface)."""
    paths = [path] if isinstance(path, str) else path
    try:
        for one in paths:
            find_images(Path(one))
    except (EmdiffuseError, OSError):
        return None
    return read


def read(path: str | list[str]) -> list[LayerData]:
    """Return the layers of OME-Zarr volumes in napari's form: data, arguments and kind."""
    layers: list[LayerData] = []
    for one in [path] if isinstance(path, str) else path:
        for layer in napari_layers(Path(one)):
            data = layer.pop("data")
            layers.append((data, layer, "image"))
    return layers
