"""Estimate the memory of a plan's workers from its tiles and blocks.

Conventions
-----------
* Estimates are upper bounds in MB (10**6 bytes), for one tile at a time on a CPU; `benchmarks/memory.py`
  compares them with measurements. On a GPU they are for host memory, without that of the GPU driver.
"""

from __future__ import annotations

from math import prod

from emdiffuse.models.description import Description, NativeSpec
from emdiffuse.restoration.geometry import BlockGrid
from emdiffuse.stores.array import SHARD

LIBRARIES = {"restore": 1000, "stitch": 150, "pyramid": 150}
"""Imports: 580 to 890 MB were measured with torch, depending on machine and build, mostly library pages;
without it 100 to 115 MB."""
FIRST_CALLS = 200
"""Libraries loaded at first calls, and memory kept by allocators: 50 to 100 MB were measured."""
NATIVE, PUBLISHED = 40, 110
"""Bytes that a network holds at once, per channel and pixel of a tile (or its slices)."""


def memory_mb(grid: BlockGrid, quantities: int, description: Description) -> dict[str, int]:
    """Return the memory that a worker of each stage needs.

    Parameters
    ----------
    grid : BlockGrid
        The blocks.
    quantities : int
        Number of quantities restored per voxel.
    description : Description
        ``model.json``.

    Returns
    -------
    dict of str to int
        Memory in MB, by stage.
    """
    network = description.network
    depth = max(len(grid.z.generated(gap)) for gap in range(grid.z.gaps))
    pixels = grid.y.tile * grid.x.tile
    if isinstance(network, NativeSpec):
        tile = NATIVE * network.channels * pixels
    else:
        tile = PUBLISHED * network.base_channels * pixels * depth
    chunk, shard = 4 * quantities * prod(grid.chunk), prod(SHARD)
    # chunk: sums, one being written, one waiting, and its encoding; shard: sums and results
    needed = {"restore": tile + 4 * chunk, "stitch": 3 * chunk + 32 * shard, "pyramid": 30 * shard}
    return {stage: LIBRARIES[stage] + FIRST_CALLS + int(size / 1e6) for stage, size in needed.items()}
