"""What several test files need, besides fixtures."""

from pathlib import Path

import numpy as np

from emdiffuse.volume import create_image_array, write_image

ROOT = Path(__file__).parents[1]
INTENSITY = {
    "minimum": 0,
    "maximum": 255,
    "mean": 128.0,
    "standard_deviation": 40.0,
    "low": 20.0,
    "high": 230.0,
}


def write_volume(
    path: Path, values: np.ndarray, voxel_size: tuple[float, float, float], **facts: object
) -> Path:
    """Write a registered volume as the chain would."""
    array = create_image_array(path / "0", values.shape, values.dtype)
    for index in np.ndindex(*array.grid):
        array[array.box(index)] = values[array.box(index)]
    known = {"stage": "register", "dataset": path.name.split(".")[0], "intensity": INTENSITY, "sources": []}
    write_image(path, path.name, voxel_size, {**known, **facts})
    return path
