"""The device that a network runs on: which it is, and how many tiles at once it has room for.

Conventions
-----------
* Sizes are bytes. Free memory counts what PyTorch's allocator holds in reserve.
* A batch is a power of two, so that few shapes occur, and the same device mostly finds the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

SHARE = 0.8
"""Share of the free memory that a batch may take; the rest is for what was not measured."""


def place_of(device: str) -> str:
    """Return the device that "auto" stands for: the GPU, where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def pinned(tensor: Tensor) -> Tensor:
    """Return a tensor in memory that a GPU copies from beside its work; as it is, where there is no GPU."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


class Memory(Protocol):
    """Memory of a device."""

    def free(self) -> int:
        """Return how much is free."""

    def peak(self, work: Callable[[], object]) -> int:
        """Return how much some work takes at its peak, beyond what was held before it."""


class CudaMemory:
    """Memory of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        """See `Memory`."""
        free, _ = torch.cuda.mem_get_info(self.device)
        reserve = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + reserve

    def peak(self, work: Callable[[], object]) -> int:
        """See `Memory`."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def memory_of(device: torch.device) -> Memory | None:
    """Return the memory of a GPU; None for a CPU, where more than one tile at once gains nothing."""
    return CudaMemory(device) if device.type == "cuda" else None


def fitting_batch(work: Callable[[], object], memory: Memory, most: int) -> int:
    """Return how many tiles at once fit into a device's memory, as a power of two.

    Parameters
    ----------
    work : callable
        Restores one tile. It is called twice: what the first call takes once for all does not count.
    memory : Memory
        Of the device.
    most : int
        Tiles that there are at once.
    """
    work()
    tile = max(memory.peak(work), 1)
    batch = 1
    while 2 * batch <= most and 2 * batch * tile <= SHARE * memory.free():
        batch *= 2
    return batch
