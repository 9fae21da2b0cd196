"""How fast a network runs: measured here, or told for a graphics card from its data sheet.

Conventions
-----------
* Work is counted in floating-point operations (a multiplication and an addition are two), as PyTorch counts
  those of convolutions and products of matrices; what runs between them is in the measured time alone.
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
"""Peak of dense half-precision products of matrices, in 10**12 operations a second, from the data sheets."""
SHARE = 0.1
"""What a network of few channels is assumed to reach of that peak; not measured."""


@dataclass(frozen=True)
class Speed:
    """What one network evaluation of one tile costs.

    Attributes
    ----------
    seconds : float
        Measured seconds a pixel, with one thread on a CPU, or on the GPU.
    device : str
        Where: "cpu" or "cuda".
    operations : float
        Floating-point operations a pixel of a tile, all slices of a gap together; 0 where not counted.
    """

    seconds: float
    device: str
    operations: float = 0.0

    def on(self, card: str) -> float:
        """Return the assumed seconds a pixel on a card of `CARDS`."""
        return self.operations / (CARDS[card] * 1e12 * SHARE)


def measure(description: Description, slices: int, device: str = "auto", count: bool = True) -> Speed:
    """Time one network evaluation, with random weights: they do not change how long it takes.

    Parameters
    ----------
    description : Description
        The model.
    slices : int
        Slices that are restored in a gap; 1 of images.
    device : str
        "auto", "cpu" or a CUDA device. A GPU gets 8 tiles at once.
    count : bool
        Whether operations are counted. PyTorch's counter loads Triton, whose LLVM crashes a process that
        draws by Mesa's: a viewer does not ask for it.
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
    torch.set_num_threads(1)  # as a worker of the workflow has
    try:
        evaluate()  # the first call finds out how to compute
        operations = _operations(evaluate) if count else 0.0
        seconds = min(evaluate() for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    pixels = tiles * SIDE * SIDE
    return Speed(seconds / pixels, place.type, operations / pixels)


def _operations(work: Callable[[], object]) -> float:
    """Return the floating-point operations of some work."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _batch(description: Description, slices: int, count: int) -> Batch:
    """Return gaps, or images, without content."""
    if not TASKS[description.task].volumetric:
        return Batch.of_images(torch.zeros(count, 1, SIDE, SIDE))
    positions = torch.arange(1, slices + 1) / (slices + 1)
    condition = torch.zeros(count, len(CONDITION_OFFSETS), SIDE, SIDE)
    return Batch.of_gaps(condition, positions, slices + 1.0)
