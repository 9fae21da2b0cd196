"""The examples of each step: which patches, how they are changed at random, and where that is done.

Conventions
-----------
* The examples of step n follow from (seed, n) alone, and each one from its place in the batch: neither a
  resume nor the number of processes that share a batch changes them.
* A store that fits into a GPU's memory is kept there, and examples are drawn and changed there: a GPU takes
  many times more patches a second than threads can read. Elsewhere threads read them ahead. Only the noise of
  augmentation differs between the two, by the device's generator.
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
"""Threads that read and change examples while the network works."""
AHEAD = 4
"""Batches that may be ready before they are needed."""
DRAWING, AUGMENTING, DROPPING, VALIDATING, ADDING, HIDING = 1, 5, 3, 2, 4, 6
"""Streams of random numbers: of levels and noise, of augmentation, of dropout, of validation's samples, of
the noise that augmentation adds, and of the pixels that are hidden."""
RESIDENT = 0.5
"""Share of a GPU's free memory that a patch store may take, to be kept there."""


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


class ResidentPatches:
    """The patches of a store, kept in the memory of a device.

    Parameters
    ----------
    patches : PatchStore
        Read as a whole, once.
    device : torch.device
        Where they are kept, in the store's float16.
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
    """Return examples of a step as the network sees them.

    Parameters
    ----------
    patches : PatchStore
    model : Model
        Its augmentation, and the seed and batch of its training.
    step : int
    places : ndarray
        Which places of the batch; nothing else is read.
    resident : ResidentPatches, optional
        The patches on a device, where they are kept there; the examples are made there then.

    Returns
    -------
    tuple
        Batch, and target (N, D, H, W), NaN where a slice is absent.
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
    """Return the batch of rows, unchanged, and its target (N, D, H, W), NaN where a slice is absent."""
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
    """Yield the examples of a process from a step on, made where `training.feed` says."""
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
    """Tell whether patches are kept in the memory of a device."""
    if training.feed != "auto":
        return training.feed == "device"
    memory = memory_of(device)
    size = sum(array.dtype.itemsize * prod(array.shape) for array in (patches.condition, patches.target))
    fits = memory is not None and size <= RESIDENT * memory.free()
    if fits:
        logger.info("the patches (%.0f MB) are kept on %s", size / 1e6, device)
    return fits
