"""Zeiss CZI files, through Zeiss's own library (pylibCZIrw).

Conventions
-----------
* See `base`. A scene is a series; the library assembles mosaics. Slices are along the axis Z.
* The library reads one plane, or a part of it, at a time, in one thread.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Source, named
from emdiffuse.readers.sizes import Size, told
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.extras import require

PIXELS = {"Gray8": "uint8", "Gray16": "uint16", "Gray32Float": "float32"}


class CziScene(Source):
    """A scene of a CZI file.

    Parameters
    ----------
    file : Path
        The file.
    layout : Layout
        Axes (t, c, z, y, x).
    corner : tuple of int
        Row and column of the scene's first pixel, and its number.
    dtype : numpy.dtype
        Data type of a pixel.
    voxel_size : tuple of float, optional
        Voxel size (z, y, x) in nanometers.
    """

    def __init__(
        self,
        file: Path,
        layout: Layout,
        corner: tuple[int, int, int | None],
        dtype: np.dtype[Any],
        voxel_size: Size | None,
    ) -> None:
        super().__init__(str(file), layout.shape, dtype, (1, *layout.shape[1:]), [file], voxel_size)
        self._layout = layout
        self._corner = corner
        self._lock = threading.Lock()
        self._open = ExitStack()

    @cached_property
    def _file(self) -> Any:
        """The file, kept open during the life of this source."""
        from pylibCZIrw import czi

        return self._open.enter_context(czi.open_czi(str(self.files[0])))

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        top, left, scene = self._corner
        (y0, y1, _), (x0, x1, _) = y.indices(10**9), x.indices(10**9)
        time, channel = (self._layout.fixed.get(i, 0) for i in range(2))
        planes = []
        with named(self.name, "CZI file"), self._lock:
            for z in range(z0, z1):
                plane = self._file.read(
                    plane={"T": time, "C": channel, "Z": z},
                    roi=(left + x0, top + y0, x1 - x0, y1 - y0),
                    scene=scene,
                )
                planes.append(plane[..., 0].astype(self.stored))
        return np.stack(planes)


def open_czi(file: Path, reading: Reading) -> CziScene:
    """Open a CZI file.

    Raises
    ------
    ConfigError
        If the library is missing.
    DataError
        If a scene or channel must be chosen, or it is no grayscale.
    """
    czi = require("pylibCZIrw.czi", "formats", f"{file}: reading CZI")
    with named(str(file), "CZI file"), czi.open_czi(str(file)) as opened:
        box = opened.total_bounding_box
        scenes = opened.scenes_bounding_rectangle
        kinds = opened.pixel_types
        scaling = opened.metadata
        area = opened.total_bounding_rectangle
    scene: int | None = None
    if len(scenes) > 1 or reading.series is not None:
        scene = _chosen(file, scenes, reading)
        area = scenes[scene]
    lengths = [box.get(axis, (0, 1))[1] - box.get(axis, (0, 1))[0] for axis in "TCZ"]
    layout = lay_out(str(file), (*lengths, area.h, area.w), "tczyx", reading)
    kind = str(kinds.get(layout.fixed[1], ""))
    if kind not in PIXELS:
        raise DataError(f"{file}: its pixels are {kind or 'of an unknown type'}, not grayscale; convert them")
    return CziScene(file, layout, (area.y, area.x, scene), np.dtype(PIXELS[kind]), _voxel_size(scaling))


def _chosen(file: Path, scenes: Any, reading: Reading) -> int:
    described = "; ".join(f"{i}: {area.h} x {area.w}" for i, area in sorted(scenes.items()))
    choice = reading.series
    if choice is None:
        raise DataError(f"{file}: contains {len(scenes)} scenes ({described}); choose one with `series`")
    if isinstance(choice, str) and choice.isdigit():
        choice = int(choice)
    if choice not in scenes:
        raise DataError(f"{file}: there is no series {choice!r}; available: {described or 'one, 0'}")
    return int(choice)


def _voxel_size(metadata: Any) -> Size | None:
    """Return the voxel size from the scaling, which is in meters."""
    try:
        items = metadata["ImageDocument"]["Metadata"]["Scaling"]["Items"]["Distance"]
        meters = {item["@Id"]: item.get("Value") for item in items}
    except (KeyError, TypeError):
        return None
    return told([meters.get(axis) for axis in "ZYX"], (1e9, 1e9, 1e9))
