"""Tiles that suit one image: as large as memory easily allows, with few pixels computed twice.

A tile of 256 pixels keeps 176 between its margins: an image of 1024 x 1024 costs 2.25 times its pixels
in 36 tiles; 4 of 560 cost 1.2 times.
"""

from __future__ import annotations

from emdiffuse.config import Tiling
from emdiffuse.models.description import Description
from emdiffuse.restoration.geometry import TILE_MULTIPLE, TileAxis

LARGEST = 640
"""Largest tile, in pixels: a native network of 32 channels holds 0.5 GB for it."""


def economical_tiling(height: int, width: int, description: Description) -> Tiling:
    """Return the tiles by which the fewest pixels are computed; of equally good ones the smallest.

    Parameters
    ----------
    height, width : int
        Of the restored image or slices.
    description : Description
        Of the model. A published network keeps the tiles that it is used with everywhere: it needs far more
        memory, and what it restores depends on the tile.
    """
    default = Tiling()
    if not description.native:
        return default

    def computed(tile: int) -> int:
        axes = (TileAxis(side, tile, default.halo, default.blend) for side in (height, width))
        rows, columns = (axis.tile * len(axis.starts) for axis in axes)
        return rows * columns

    tiles = range(default.tile, LARGEST + 1, TILE_MULTIPLE)
    return default.model_copy(update={"tile": min(tiles, key=computed)})
