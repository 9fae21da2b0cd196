"""Detect empty regions (resin, outside of the field, charging), in which nothing is generated.

Conventions
-----------
* The rule is local, and independent of tiles and workers. A slice in units of [-1, 1] (its robust intensity
  range) is binned to means of `BLOCK` x `BLOCK` pixels, on a grid that begins at its first pixel. In a window
  of ``2 * REACH + 1`` blocks a side, V is the variance of these means, and N that of their noise, from their
  diagonal differences, in which noise is as strong as in the means and structure is weak (cf. Donoho and
  Johnstone 1994, doi 10.1093/biomet/81.3.425). Because N is measured at the scale of the means, it is also
  valid for noise that is correlated between pixels. In tissue, N is partly structure, so at most
  ``MOST_NOISE ** 2`` of it counts.
* A place is *empty* if V is at most ``CONTRAST ** 2 + NOISY * N``, *seen* if V is at least `SEEN` times that,
  and in transition in between. A window that touches any structure is seen, so the transition is within the
  empty region. Constant regions (charged, saturated) have no variance, and are empty.
* Between two slices, a place is empty if it is empty in both. It gets the plain estimate: their linear
  interpolation; for an image the means, interpolated between blocks. Its uncertainty is 0, since nothing was
  generated. The posterior mean of an image in one evaluation is left as it is by default, and only marked: in
  real resin its variance was 7, that of the block means 6, and that of the scan 54 squared grey levels, while
  the means of blocks look mottled beside restored pixels.
* This is applied during stitching. It needs `HALO` pixels of the input around a box, and no tiles.
* The layer ``empty`` beside the restored volume marks empty regions at the resolution of blocks: uint8, 255
  in empty regions, 0 in seen ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from emdiffuse.restoration.plan import Plan
from emdiffuse.restoration.slice_grid import ImageStack
from emdiffuse.runtime.outputs import emptied
from emdiffuse.stores.array import Box, create_image_array
from emdiffuse.stores.facts import EmptyFacts
from emdiffuse.stores.intensity import shown
from emdiffuse.stores.volume import Volume, multiscale, write_group

BLOCK = 4
"""Side of a block of averaged pixels."""
REACH = 4
"""Half width of a window, in blocks."""
CONTRAST = 0.05
"""Standard deviation of the means that counts as structure, without noise: 2.5 % of the range. In real resin
(mussel, SEM) it was 0.02 to 0.04, in neuropil above 0.15 in 99 of 100 windows."""
NOISY = 1.5
"""Multiple of the noise variance that must be exceeded: noise alone gives 1, with an error of 18 %."""
MOST_NOISE = 0.05
"""Upper limit of the standard deviation of the noise of means."""
SEEN = 2.0
"""Multiple of the threshold at which the transition ends."""
HALO = BLOCK * (REACH + 3)
"""Pixels around a place that affect it: its window, and blocks for differences and interpolation."""
LAYER = "empty"
PART = 64
"""Side of the part of the layer that is computed at once, in blocks."""

Blocks = NDArray[np.float64]
Image = NDArray[np.float32]


def look(unit: Image) -> tuple[Blocks, Blocks]:
    """Apply the rule to a slice, or to a part of one that begins at a block boundary.

    Parameters
    ----------
    unit : ndarray
        (y, x), float32, in units of [-1, 1].

    Returns
    -------
    seen : ndarray
        Blocks (y, x): 0 if empty, 1 if seen, in between in the transition.
    means : ndarray
        Means of the blocks (y, x).
    """
    rows, columns = (-n % BLOCK for n in unit.shape)  # incomplete blocks are padded with the slice's edge
    whole = np.pad(unit, ((0, rows), (0, columns)), mode="edge").astype(np.float64)
    means: Blocks = whole.reshape(len(whole) // BLOCK, BLOCK, -1, BLOCK).mean((1, 3))
    variance = _averaged(means**2) - _averaged(means) ** 2
    wide = np.pad(means, ((0, 1), (0, 1)), mode="edge")
    diagonal = (wide[:-1, :-1] - wide[1:, :-1] - wide[:-1, 1:] + wide[1:, 1:]) ** 2 / 4
    noise = np.minimum(_averaged(diagonal), MOST_NOISE**2)
    ratio = variance / (CONTRAST**2 + NOISY * noise)
    return np.clip((ratio - 1) / (SEEN - 1), 0, 1), means


def _averaged(blocks: Blocks) -> Blocks:
    """Return means over windows, mirrored at the edges, identical in any part of a slice."""
    for axis in (0, 1):
        length = blocks.shape[axis]
        wide = np.pad(blocks, [(REACH, REACH) if a == axis else (0, 0) for a in (0, 1)], mode="reflect")
        # no running sum, whose rounding would depend on where a part begins
        moved = (wide.take(range(i, i + length), axis) for i in range(2 * REACH + 1))
        blocks = sum(moved, np.zeros_like(blocks)) / (2 * REACH + 1)
    return blocks


def _between(blocks: Blocks, sides: list[slice], size: int) -> Image:
    """Interpolate linearly between the centres of blocks of `size` pixels, at the pixels of a box."""
    for axis, side in enumerate(sides):
        last = blocks.shape[axis] - 1
        place = np.clip((np.arange(side.start, side.stop) + 0.5) / size - 0.5, 0, last)
        first = place.astype(np.int64)
        t = np.expand_dims(place - first, 1 - axis)
        second = np.minimum(first + 1, last)
        blocks = (1 - t) * blocks.take(first, axis) + t * blocks.take(second, axis)
    return blocks.astype(np.float32)


class Looker:
    """Applies the rule to the slices of the input, in one box of the output's plane.

    Parameters
    ----------
    plan : Plan
        The plan.
    volume : Volume
        Its input.
    sides : sequence of slice
        The box along y and x, in pixels of the output.
    """

    def __init__(self, plan: Plan, volume: Volume, sides: tuple[slice, ...]) -> None:
        self.plan, self.volume = plan, volume
        scale = plan.scale
        self.read = [
            slice(max(side.start // scale - HALO, 0) // BLOCK * BLOCK, min(side.stop // scale + HALO, length))
            for side, length in zip(sides, volume.array.shape[1:], strict=True)
        ]
        self.sides = [
            slice(side.start - wide.start * scale, side.stop - wide.start * scale)
            for side, wide in zip(sides, self.read, strict=True)
        ]
        self.of = lru_cache(maxsize=2)(self._of)

    def _of(self, z: int) -> tuple[Blocks, Blocks, Image]:
        """Return the blocks seen of a slice, their means, and the slice, around the box."""
        (unit,) = shown(self.volume.array[(slice(z, z + 1), *self.read)], self.volume.intensity.at([z]))
        return *look(unit), unit

    def seen(self, z: int) -> Blocks:
        """Return the blocks seen at an output slice, around the box."""
        grid = self.plan.grid.z
        if isinstance(grid, ImageStack):
            return self.of(z)[0]
        gap = grid.gap_of(z)
        return np.maximum(self.of(grid.good[gap])[0], self.of(grid.good[gap + 1])[0])

    def plain(self, z: int) -> Image:
        """Return the plain estimate of an output slice in the box, in [-1, 1]."""
        grid = self.plan.grid.z
        if isinstance(grid, ImageStack):
            return self.spread(self.of(z)[1])
        gap = grid.gap_of(z)
        before, after = (self.of(grid.good[gap + i])[2][tuple(self.sides)] for i in (0, 1))
        t = np.float32(np.clip(float(grid.position(gap, z)), 0, 1))
        return before + t * (after - before)

    def spread(self, blocks: Blocks) -> Image:
        """Interpolate blocks at the pixels of the box."""
        return _between(blocks, self.sides, BLOCK * self.plan.scale)


def leave_plain(plan: Plan, volume: Volume, values: Image, name: str, box: Box) -> Image:
    """Replace empty regions by the plain estimate.

    Parameters
    ----------
    plan : Plan
        The plan.
    volume : Volume
        Its input.
    values : ndarray
        A quantity of the tiles (z, y, x), in units of [-1, 1]; modified in place and returned.
    name : str
        "restored" or "uncertainty".
    box : tuple of slice
        The box of the values.
    """
    if plan.sampler.empty != "plain":
        return values
    looker = Looker(plan, volume, box[1:])
    for number, z in enumerate(range(box[0].start, box[0].stop)):
        if plan.grid.z.real(z) is not None or bool((looker.seen(z) == 1).all()):
            continue
        seen = looker.spread(looker.seen(z))
        if name == "uncertainty":
            values[number] *= seen
        else:
            values[number] += (1 - seen) * (looker.plain(z) - values[number])
    return values


def write_layer(plan: Plan, volume: Volume, voxel_size: tuple[float, float, float]) -> EmptyFacts | None:
    """Write the layer of empty regions of the restored volume, and return its facts.

    Parameters
    ----------
    plan : Plan
        The plan.
    volume : Volume
        Its input.
    voxel_size : tuple of float
        Voxel size of the restored volume (z, y, x), in nanometers.

    Returns
    -------
    EmptyFacts or None
        None if empty regions are neither left plain nor marked.
    """
    if plan.sampler.empty == "restore":
        return None
    size = BLOCK * plan.scale
    depth, height, width = plan.shape
    path = emptied(plan.restored / LAYER)
    array = create_image_array(path / "0", (depth, -(-height // size), -(-width // size)), np.dtype(np.uint8))
    total, generated = 0.0, 0
    for index in np.ndindex(*array.grid):
        box = array.box(index)
        levels = np.zeros([side.stop - side.start for side in box], np.uint8)
        for part, place in _parts(box):
            values = _layer(plan, volume, part)
            levels[place] = np.rint(255 * values).astype(np.uint8)
            total += float(values.sum())
        array[box] = levels
        real = [plan.grid.z.real(z) is not None for z in range(*box[0].indices(depth))]
        generated += levels[~np.array(real)].size
    z, y, x = voxel_size
    ome = {"version": "0.5", "multiscales": [multiscale(LAYER, (z, y * size, x * size), ["0"], [(1, 1, 1)])]}
    facts = EmptyFacts(share=round(total / max(generated, 1), 6), block=size, contrast=CONTRAST, noisy=NOISY)
    write_group(path, {"ome": ome, "emdiffuse": plan.facts.as_json()})
    return facts


def _parts(box: Box) -> Iterator[tuple[Box, Box]]:
    """Yield the parts of a box of the layer that are computed at once, and their place in it.

    A shard of the layer covers `BLOCK` ** 2 times as many input pixels, too many to hold in memory.
    """
    depth, *sides = box
    for y, x in itertools.product(*(range(side.start, side.stop, PART) for side in sides)):
        part = tuple(
            slice(start, min(start + PART, side.stop)) for start, side in zip((y, x), sides, strict=True)
        )
        place = tuple(
            slice(own.start - side.start, own.stop - side.start)
            for own, side in zip(part, sides, strict=True)
        )
        yield (depth, *part), (slice(None), *place)


def _layer(plan: Plan, volume: Volume, box: Box) -> Blocks:
    """Return how plain the blocks of a box are, 0 to 1; real slices, which are not generated, are 0."""
    size = BLOCK * plan.scale
    sides = tuple(
        slice(side.start * size, min(side.stop * size, length))
        for side, length in zip(box[1:], plan.shape[1:], strict=True)
    )
    looker = Looker(plan, volume, sides)
    inside = tuple(slice(s.start // size, -(-s.stop // size)) for s in looker.sides)
    values = np.zeros([side.stop - side.start for side in box])
    for number, z in enumerate(range(box[0].start, box[0].stop)):
        if plan.grid.z.real(z) is None:
            values[number] = 1 - looker.seen(z)[inside]
    return values
