"""How much memory a worker of a plan needs, from its tiles and blocks alone.

Conventions
-----------
* An estimate from above, in MB (10**6 bytes), for one tile at a time on a CPU; `benchmarks/memory.py` stands
  beside it with what was measured. On a GPU it is the memory of the host that counts here, and what the GPU's
  driver takes of it comes on top.
"""

from __future__ import annotations

from math import prod

from emdiffuse.models.description import Description, NativeSpec
from emdiffuse.restoration.geometry import BlockGrid
from emdiffuse.stores.array import SHARD

LIBRARIES = {"restore": 1000, "stitch": 150, "pyramid": 150}
"""Imports: with torch 580 to 890 MB were measured, by machine and build, most of it pages of library files;
without it 100 to 115 MB."""
FIRST_CALLS = 200
"""What first calls load of the libraries beyond that, and allocators keep: 50 to 100 MB were measured."""
NATIVE, PUBLISHED = 40, 110
"""Bytes that a network holds at once, for each of its channels and each pixel of a tile (or its slices)."""


def memory_mb(grid: BlockGrid, quantities: int, description: Description) -> dict[str, int]:
    """Return what a worker of each stage needs.

    Parameters
    ----------
    grid : BlockGrid
        The blocks.
    quantities : int
        What is restored for every voxel.
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
    # of a chunk: the sums, what is written and what waits, and its encoding; of a shard sums and results
    needed = {"restore": tile + 4 * chunk, "stitch": 3 * chunk + 32 * shard, "pyramid": 30 * shard}
    return {stage: LIBRARIES[stage] + FIRST_CALLS + int(size / 1e6) for stage, size in needed.items()}
