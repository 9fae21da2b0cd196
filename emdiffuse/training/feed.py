"""The examples of each step: which patches, how they are changed at random, and reading them ahead.

Conventions
-----------
* The examples of step n follow from (seed, n) alone, and each one from its place in the batch: neither a
  resume nor the number of processes that share a batch changes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emdiffuse.config import Model, Training
from emdiffuse.models.processes import Batch
from emdiffuse.patches.cut import PatchStore
from emdiffuse.runtime.devices import pinned
from emdiffuse.training.augmentation import augment

WORKERS = 2
"""Threads that read and change examples while the network works."""
AHEAD = 4
"""Batches that may be ready before they are needed."""
DRAWING, AUGMENTING, DROPPING, VALIDATING = 1, 5, 3, 2
"""Streams of random numbers: of levels and noise, of augmentation, of dropout, of validation's samples."""


def seed_of(seed: int, step: int, stream: int) -> int:
    """Return a seed of its own for a step and a purpose."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batch_rows(patches: PatchStore, training: Training, step: int) -> NDArray[np.int64]:
    """Return the patches of a step: each epoch is a permutation of its own."""
    size = len(patches.training)
    places = step * training.batch + np.arange(training.batch)
    orders = {
        e: np.random.default_rng([training.seed, int(e)]).permutation(size) for e in np.unique(places // size)
    }
    rows = [orders[p // size][p % size] for p in places]
    return patches.training[rows]


def draw_batch(
    patches: PatchStore, model: Model, step: int, places: NDArray[np.int64]
) -> tuple[Batch, Tensor]:
    """Return examples of a step as the network sees them.

    Parameters
    ----------
    patches : PatchStore
    model : Model
        Its augmentation, and the seed and batch of its training.
    step : int
    places : ndarray
        Which places of the batch; nothing else is read.

    Returns
    -------
    tuple
        Batch, and target (N, D, H, W), NaN where a slice is absent.
    """
    rows = batch_rows(patches, model.training, step)[places]
    seeds = [model.training.seed, step, AUGMENTING]
    examples = zip(*patches.read(rows), patches.positions[rows], places.tolist(), strict=True)
    changed = [
        augment(known, wanted, where, model.augmentation, np.random.default_rng([*seeds, place]))
        for known, wanted, where, place in examples
    ]
    condition, target, positions = (
        torch.from_numpy(np.stack(values)) for values in zip(*changed, strict=True)
    )
    return _batch(patches, rows, condition, positions), target


def read_batch(patches: PatchStore, rows: NDArray[np.int64]) -> tuple[Batch, Tensor]:
    """Return the batch of rows, unchanged, and its target (N, D, H, W), NaN where a slice is absent."""
    condition, target = (torch.from_numpy(values) for values in patches.read(rows))
    return _batch(patches, rows, condition, torch.from_numpy(patches.positions[rows])), target


def _batch(patches: PatchStore, rows: NDArray[np.int64], condition: Tensor, positions: Tensor) -> Batch:
    """Return the batch of rows, with their conditions and positions."""
    factor, thickness = (torch.from_numpy(values[rows]) for values in (patches.factor, patches.thickness))
    return Batch(condition, positions, factor, thickness)


def batches(
    patches: PatchStore, model: Model, places: NDArray[np.int64], step: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the examples of a process from a step on; those that follow are read meanwhile."""

    def read(number: int) -> tuple[Batch, Tensor]:
        batch, target = draw_batch(patches, model, number, places)
        return Batch(*map(pinned, batch)), pinned(target)

    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = deque(pool.submit(read, step + i) for i in range(AHEAD))
        for number in count(step + AHEAD):
            yield waiting.popleft().result()
            waiting.append(pool.submit(read, number))
