"""Speed of a network: measured here, or estimated for a graphics card from its data sheet.

Conventions
-----------
* Work is counted in floating-point operations (a multiplication and an addition are two) of convolutions and
  matrix products, as counted by PyTorch; other operations only appear in the measured time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from emdiffuse.config import Sampler
from emdiffuse.config.tasks import CONDITION_OFFSETS, TASKS
from emdiffuse.models.description import Description
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.networks.build import build_network
from emdiffuse.models.processes import Batch, process_of
from emdiffuse.runtime.devices import place_of

SIDE = 128
"""Height and width of the tile that is timed."""
CARDS = {
    "T4": 65.0,
    "V100": 125.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.0,
    "L40S": 362.0,
    "A100": 312.0,
    "H100": 989.0,
}
"""Peak of dense half-precision matrix products, in 10**12 operations per second, from the data sheets."""
SHARE = 0.1
"""Assumed fraction of that peak that a network with few channels reaches; not measured."""


@dataclass(frozen=True)
class Speed:
    """Cost of one network evaluation of one tile.

    Attributes
    ----------
    seconds : float
        Measured seconds per pixel, with one thread on a CPU, or on the GPU.
    device : str
        Device of the measurement: "cpu" or "cuda".
    operations : float
        Floating-point operations per pixel of a tile, for all slices of a gap; 0 if not counted.
    """

    seconds: float
    device: str
    operations: float = 0.0

    def on(self, card: str) -> float:
        """Return the estimated seconds per pixel on a card of `CARDS`."""
        return self.operations / (CARDS[card] * 1e12 * SHARE)


def measure(description: Description, slices: int, device: str = "auto", count: bool = True) -> Speed:
    """Time one network evaluation, with random weights, which do not affect the time.

    Parameters
    ----------
    description : Description
        The model.
    slices : int
        Number of slices in a gap; 1 for images.
    device : str
        "auto", "cpu" or a CUDA device. A GPU runs 8 tiles at once.
    count : bool
        Whether to count operations. PyTorch's counter loads Triton, whose LLVM crashes a process that renders
        with Mesa, so a viewer must not count.
    """
    place = torch.device(place_of(device))
    network = build_network(description.network).to(place).eval()
    model = RestorationModel(network, process_of(description), description, place, Path("fresh weights"))
    tiles = 8 if place.type == "cuda" else 1
    batch = _batch(description, slices, tiles)
    sampler = Sampler(name="ddim", steps=1)
    noise = torch.zeros(batch.shape, device=place)

    def evaluate() -> float:
        begin = time.perf_counter()
        model.restore(batch, sampler, lambda sample, step: noise)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - begin

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # like a worker of the workflow
    try:
        evaluate()  # warm-up: the first call selects algorithms
        operations = _operations(evaluate) if count else 0.0
        seconds = min(evaluate() for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    pixels = tiles * SIDE * SIDE
    return Speed(seconds / pixels, place.type, operations / pixels)


def _operations(work: Callable[[], object]) -> float:
    """Return the number of floating-point operations of `work`."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _batch(description: Description, slices: int, count: int) -> Batch:
    """Return a batch of empty gaps or images."""
    if not TASKS[description.task].volumetric:
        return Batch.of_images(torch.zeros(count, 1, SIDE, SIDE))
    positions = torch.arange(1, slices + 1) / (slices + 1)
    condition = torch.zeros(count, len(CONDITION_OFFSETS), SIDE, SIDE)
    return Batch.of_gaps(condition, positions, slices + 1.0)
