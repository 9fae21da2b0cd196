"""Tile size for a single image: as large as memory easily allows, with little overlap.

A tile of 256 pixels keeps 176 between its margins: an image of 1024 x 1024 takes 36 tiles with 2.25 times its
pixels; 4 tiles of 560 have 1.2 times, and one of 1024 needs no margins.
"""

from __future__ import annotations

from emdiffuse.config import Tiling
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import Description
from emdiffuse.restoration.geometry import TILE_MULTIPLE, TileAxis

LARGEST, LARGEST_OF_GAPS = 1024, 640
"""Largest tile, in pixels, for an image and for the slices of a gap.

A process takes 1.3 GiB in total for an image of 1024 pixels a side; each slice of a gap takes memory in
addition.
"""


def economical_tiling(height: int, width: int, description: Description) -> Tiling:
    """Return the tiling that computes the fewest pixels; among equals, the one with the smallest tiles.

    Parameters
    ----------
    height, width : int
        Size of the restored image or slices.
    description : Description
        Description of the model. A published network keeps its default tiles: it needs far more memory, and
        its result depends on the tile.
    """
    default = Tiling()
    if not description.native:
        return default

    def computed(tile: int) -> int:
        axes = (TileAxis(side, tile, default.halo, default.blend) for side in (height, width))
        rows, columns = (axis.tile * len(axis.starts) for axis in axes)
        return rows * columns

    largest = LARGEST_OF_GAPS if TASKS[description.task].volumetric else LARGEST
    tiles = range(default.tile, largest + 1, TILE_MULTIPLE)
    return default.model_copy(update={"tile": min(tiles, key=computed)})
