"""The device that a network runs on, and how many tiles fit into its memory at once.

Conventions
-----------
* Sizes are bytes. Free memory includes the reserve of PyTorch's allocator.
* A batch is a power of two, so that few shapes occur, and a device usually arrives at the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from emdiffuse.runtime.errors import ConfigError

SHARE = 0.8
"""Fraction of the free memory that a batch may use; the rest is a margin."""


def place_of(device: str) -> str:
    """Return an available device; "auto" means the GPU, if there is one.

    Parameters
    ----------
    device : str
        "auto", "cpu", a CUDA device ("cuda", "cuda:1"), or "mps" (the GPU of an Apple computer).

    Raises
    ------
    ConfigError
        If the name is unknown, or there is no such device here.
    """
    apple = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
        raise ConfigError(f"--device: there is no device '{device}'; give auto, cpu, cuda, cuda:0 or mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            found = f"GPUs are numbered from 0 to {count - 1}" if count else "PyTorch finds no CUDA GPU"
            raise ConfigError(
                f"--device: there is no '{device}' on this machine: {found}; use `--device auto`"
            )
    if kind == "mps" and not apple:
        raise ConfigError(
            "--device: there is no 'mps' on this machine: PyTorch finds no Apple GPU; use `--device auto`"
        )
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on an Apple GPU, which does not support float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def pinned(tensor: Tensor) -> Tensor:
    """Return a tensor in pinned memory, for asynchronous copies to a GPU; unchanged without a GPU."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


class Memory(Protocol):
    """Memory of a device, in bytes."""

    def free(self) -> int:
        """Return the free memory."""

    def peak(self, work: Callable[[], object]) -> int:
        """Return the peak memory of `work`, beyond that allocated before."""


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
    """Return the memory of a GPU, or None for a CPU, where batches of tiles gain nothing."""
    return CudaMemory(device) if device.type == "cuda" else None


def fitting_batch(work: Callable[[], object], memory: Memory, most: int) -> int:
    """Return how many tiles at once fit into a device's memory, as a power of two.

    Parameters
    ----------
    work : callable
        Restores one tile. It is called twice, so that one-time allocations do not count.
    memory : Memory
        Memory of the device.
    most : int
        Maximum number of tiles.
    """
    work()
    tile = max(memory.peak(work), 1)
    batch = 1
    while 2 * batch <= most and 2 * batch * tile <= SHARE * memory.free():
        batch *= 2
    return batch
