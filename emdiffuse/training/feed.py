"""The examples of each step: choice of patches, augmentation, and where this is done.

Conventions
-----------
* The examples of step n depend only on (seed, n), and each one on its position in the batch: neither resuming
  nor the number of processes that share a batch changes them.
* A store that fits into a GPU's memory is kept there, and examples are drawn and augmented there, because a
  GPU consumes many times more patches per second than threads can read. Otherwise threads read ahead. Only
  the noise of augmentation differs between the two, because of the device's generator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emdiffuse.config import Model, Training
from emdiffuse.models.draws import Draws
from emdiffuse.models.processes import Batch
from emdiffuse.patches.cut import PatchStore
from emdiffuse.runtime.devices import memory_of, pinned
from emdiffuse.runtime.progress import logger
from emdiffuse.training.augmentation import CHOICES, augment
from emdiffuse.training.blind_spot import blind_spot_of, hide, keeping_scan

WORKERS = 2
"""Threads that read and augment examples while the network works."""
AHEAD = 4
"""Maximum number of batches prepared ahead."""
DRAWING, AUGMENTING, DROPPING, VALIDATING, ADDING, HIDING = 1, 5, 3, 2, 4, 6
"""Streams of random numbers: levels and noise, augmentation, dropout, validation samples,
augmentation noise, and hidden pixels."""
RESIDENT = 0.5
"""Maximum fraction of a GPU's free memory for keeping a patch store there."""


def seed_of(seed: int, step: int, stream: int) -> int:
    """Return a distinct seed for a step and a stream."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batch_rows(patches: PatchStore, training: Training, step: int) -> NDArray[np.int64]:
    """Return the patches of a step; each epoch is a new permutation."""
    size = len(patches.training)
    places = step * training.batch + np.arange(training.batch)
    orders = {
        e: np.random.default_rng([training.seed, int(e)]).permutation(size) for e in np.unique(places // size)
    }
    rows = [orders[p // size][p % size] for p in places]
    return patches.training[rows]


class ResidentPatches:
    """The patches of a store, kept in the memory of a device.

    Parameters
    ----------
    patches : PatchStore
        The store, which is read once.
    device : torch.device
        Device on which the patches are kept, in the store's float16.
    """

    def __init__(self, patches: PatchStore, device: torch.device) -> None:
        full = (slice(None),) * 4
        self.condition, self.target = (
            torch.from_numpy(array[full]).to(device) for array in (patches.condition, patches.target)
        )

    def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the condition and target of rows, (N, C, H, W) and (N, D, H, W), float32, on the device."""
        numbers = torch.from_numpy(rows).to(self.condition.device)
        return self.condition[numbers].float(), self.target[numbers].float()


def draw_batch(
    patches: PatchStore,
    model: Model,
    step: int,
    places: NDArray[np.int64],
    resident: ResidentPatches | None = None,
) -> tuple[Batch, Tensor]:
    """Return the examples of a step as the network sees them.

    Parameters
    ----------
    patches : PatchStore
        The store.
    model : Model
        Settings of augmentation, seed and batch.
    step : int
        The step.
    places : ndarray
        Positions in the batch to return; nothing else is read.
    resident : ResidentPatches, optional
        The patches if kept on a device, where the examples are then drawn.

    Returns
    -------
    tuple
        Batch, and target (N, D, H, W), NaN in absent slices.
    """
    training = model.training
    rows = batch_rows(patches, training, step)[places]
    condition, target = resident.read(rows) if resident else map(torch.from_numpy, patches.read(rows))
    own, device = torch.from_numpy(places), condition.device
    choices = Draws(seed_of(training.seed, step, AUGMENTING), training.batch, own).uniform(CHOICES)

    def noise() -> Tensor:
        draws = Draws(seed_of(training.seed, step, ADDING), training.batch, own, device)
        return draws.normal(*condition.shape[1:])

    if (spot := blind_spot_of(patches, training)) is not None:
        hiding = Draws(seed_of(training.seed, step, HIDING), training.batch, own, device)
        condition, target = hide(condition, target, spot, hiding.uniform)
    positions = torch.from_numpy(patches.positions[rows]).to(device)
    settings = keeping_scan(model.augmentation, patches, training)
    condition, target, positions = augment(condition, target, positions, settings, choices, noise)
    return _batch(patches, rows, condition, positions), target


def read_batch(patches: PatchStore, rows: NDArray[np.int64]) -> tuple[Batch, Tensor]:
    """Return the batch of rows without augmentation, and its target (N, D, H, W), NaN in absent slices."""
    condition, target = (torch.from_numpy(values) for values in patches.read(rows))
    return _batch(patches, rows, condition, torch.from_numpy(patches.positions[rows])), target


def _batch(patches: PatchStore, rows: NDArray[np.int64], condition: Tensor, positions: Tensor) -> Batch:
    """Return the batch of rows, with their conditions and positions."""
    factor, thickness = (
        torch.from_numpy(values[rows]).to(condition.device) for values in (patches.factor, patches.thickness)
    )
    return Batch(condition, positions, factor, thickness)


def batches(
    patches: PatchStore,
    model: Model,
    places: NDArray[np.int64],
    step: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the examples of a process from a step on, prepared as set by `training.feed`."""
    place = torch.device(device)
    if _resident(patches, model.training, place):
        kept = ResidentPatches(patches, place)
        for number in count(step):
            yield draw_batch(patches, model, number, places, kept)

    def read(number: int) -> tuple[Batch, Tensor]:
        batch, target = draw_batch(patches, model, number, places)
        return Batch(*map(pinned, batch)), pinned(target)

    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = deque(pool.submit(read, step + i) for i in range(AHEAD))
        for number in count(step + AHEAD):
            yield waiting.popleft().result()
            waiting.append(pool.submit(read, number))


def _resident(patches: PatchStore, training: Training, device: torch.device) -> bool:
    """Return whether patches are kept in the memory of a device."""
    if training.feed != "auto":
        return training.feed == "device"
    memory = memory_of(device)
    size = sum(array.dtype.itemsize * prod(array.shape) for array in (patches.condition, patches.target))
    fits = memory is not None and size <= RESIDENT * memory.free()
    if fits:
        logger.info("keeping the patches (%.0f MB) on %s", size / 1e6, device)
    return fits
