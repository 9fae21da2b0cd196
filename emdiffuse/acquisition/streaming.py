"""Copy pixels into an image array shard by shard, with several threads, and measure them on the way.

Conventions
-----------
* A shard is written once, by one thread. A source that can decode small boxes is read shard by shard: memory
  is one shard per thread, however large the volume.
* A source that decodes whole slices (TIFF) goes through a *slab*, the slices of a row of shards: in memory up
  to `SLAB_MEMORY`, beyond that in a scratch file beside the store.
* Measurements are combined in the order of the shards, so that no number depends on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emdiffuse.acquisition.statistics import Part, Statistics, measure
from emdiffuse.readers.base import Source
from emdiffuse.runtime.progress import progress
from emdiffuse.runtime.threads import allowed
from emdiffuse.stores.array import Array, Box

SLAB_MEMORY = 2**28
"""Largest slab that is kept in memory, in bytes."""
Item = TypeVar("Item")
Result = TypeVar("Result")
Valid = tuple[slice, slice]


def default_workers() -> int:
    """Return the default number of threads for converting a volume."""
    return allowed(8)


def stream_source(source: Source, array: Array, what: str, workers: int) -> Statistics:
    """Copy a source into an array of its shape.

    Parameters
    ----------
    source : Source
        Source to read.
    array : Array
        Array to write, (z, y, x).
    what : str
        Label of the progress bar.
    workers : int
        Number of threads.

    Returns
    -------
    Statistics
        Statistics of all voxels.
    """
    if all(b <= c for b, c in zip(source.block[1:], array.chunk[1:], strict=True)):
        return stream(
            array, lambda box: source.read(box[0].start, box[0].stop, *box[1:]), what, workers, source.valid
        )

    def parts(pool: ThreadPoolExecutor) -> Iterator[Part]:
        for start in range(0, array.shape[0], array.chunk[0]):
            stop = min(start + array.chunk[0], array.shape[0])
            with _slab(array, stop - start) as opened:

                def decode(z: int, opened: Callable[[], Any] = opened, start: int = start) -> None:
                    opened()[z - start] = source.read(z, z + 1)[0]

                for _ in _in_order(pool, decode, range(start, stop), workers):
                    pass

                def read(box: Box, opened: Callable[[], Any] = opened) -> NDArray[Any]:
                    return np.array(opened()[:, box[1], box[2]])

                boxes = [box for box in array.boxes() if box[0].start == start]
                yield from _in_order(pool, _copy(array, read, source.valid), boxes, workers)

    return _gather(array, parts, what, workers)


def stream(
    array: Array,
    read: Callable[[Box], NDArray[Any]],
    what: str,
    workers: int,
    valid: Valid | None = None,
) -> Statistics:
    """Fill an array with the result of `read` for the box of each shard, and measure the image.

    See `stream_source`; `valid` are the rows and columns of the image, by default all.
    """
    copy = _copy(array, read, valid)
    return _gather(array, lambda pool: _in_order(pool, copy, array.boxes(), workers), what, workers)


def _copy(
    array: Array, read: Callable[[Box], NDArray[Any]], valid: Valid | None = None
) -> Callable[[Box], Part]:
    def one(box: Box) -> Part:
        values = read(box)
        array[box] = values
        return measure(values, box, array.shape, valid)

    return one


def _gather(
    array: Array, parts: Callable[[ThreadPoolExecutor], Iterator[Part]], what: str, workers: int
) -> Statistics:
    statistics = Statistics(array.dtype)
    with ThreadPoolExecutor(workers) as pool:
        for part in progress(parts(pool), int(np.prod(array.grid)), what, "shard"):
            statistics.add(part)
    return statistics


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield the results of `work` in the order of the items, running up to `ahead` in advance."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def _slab(array: Array, depth: int) -> Iterator[Callable[[], NDArray[Any]]]:
    """Yield a function that opens the buffer of a slab, in memory or in a scratch file beside the store."""
    shape = (depth, *array.shape[1:])
    size = int(np.prod(shape)) * array.dtype.itemsize
    if size <= SLAB_MEMORY:
        memory = np.empty(shape, array.dtype)
        yield lambda: memory
        return
    path: Path = array.path.with_name("slab.scratch")
    try:
        with path.open("w+b") as file:
            # allocate, so that a full disk is an error now and not a SIGBUS later
            os.posix_fallocate(file.fileno(), 0, size)
        # mapped again at each use, so that its pages do not count as this process's memory
        yield lambda: np.memmap(path, array.dtype, "r+", shape=shape)
    finally:
        path.unlink(missing_ok=True)
