"""Reading OME-Zarr into napari's layers, lazily: no voxel is read before it is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emdiffuse.runtime.errors import EmdiffuseError
from emdiffuse.viewing import find_images, napari_layers

LayerData = tuple[Any, dict[str, Any], str]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Return `read` for folders that hold an OME-Zarr image, and None for all else, as napari asks it."""
    paths = [path] if isinstance(path, str) else path
    try:
        for one in paths:
            find_images(Path(one))
    except (EmdiffuseError, OSError):
        return None
    return read


def read(path: str | list[str]) -> list[LayerData]:
    """Return the layers of OME-Zarr volumes, as napari takes them: data, arguments and kind of each."""
    layers: list[LayerData] = []
    for one in [path] if isinstance(path, str) else path:
        for layer in napari_layers(Path(one)):
            data = layer.pop("data")
            layers.append((data, layer, "image"))
    return layers
