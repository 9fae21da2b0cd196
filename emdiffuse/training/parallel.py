"""The processes that share a training, and their communication.

Conventions
-----------
* There is one process per GPU (NCCL), or several on CPUs (gloo). They find each other by torchrun's
  environment variables ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``; without
  these there is one process.
* A process reads only its part of a batch, whose random numbers do not depend on the number of processes: N
  processes give the same result as one, up to rounding.
* Only the first process validates, saves and reports progress; its clock counts for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from emdiffuse.runtime.devices import place_of
from emdiffuse.runtime.errors import ConfigError, LaunchError

TIMEOUT = timedelta(hours=1)
"""Time that the others wait for the first process, which may be validating; a dead one is noticed at once."""


@dataclass(frozen=True)
class Ranks:
    """One of the processes of a training.

    Attributes
    ----------
    device : torch.device
        Device of the process.
    rank, size : int
        Number of the process, from 0, and number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process validates and saves."""
        return self.rank == 0

    def require_divides(self, batch: int) -> None:
        """Raise ConfigError unless a batch can be divided equally."""
        if batch % self.size:
            raise ConfigError(
                f"training.batch: {batch} is not a multiple of the number of processes, {self.size}"
            )

    def part(self, batch: int) -> NDArray[np.int64]:
        """Return this process's rows of a batch: every size-th, which mixes kinds of examples."""
        return np.arange(self.rank, batch, self.size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are averaged over all processes."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, [self.device.index] if self.device.type == "cuda" else None)

    def exchanging(self, network: nn.Module, now: bool) -> AbstractContextManager[None]:
        """Return a context for a backward pass in which processes exchange gradients, now or later."""
        if isinstance(network, DistributedDataParallel) and not now:
            return network.no_sync()
        return nullcontext()

    def gather(self, *values: float) -> list[list[float]]:
        """Return the values of each process, in order of rank."""
        if self.size == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_of_them, own)
        return [part.tolist() for part in all_of_them]

    def wait(self) -> None:
        """Wait until every process has arrived."""
        self.gather(0)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes during a `with` statement.

    Parameters
    ----------
    device : str
        "auto", "cpu" or a CUDA device; with "auto" or "cuda", each of several processes uses its own GPU.

    Raises
    ------
    ConfigError
        If the device does not exist.
    LaunchError
        If another process ended prematurely.
    """
    kind = place_of(device)
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if size == 1:
        yield Ranks(torch.device(kind))
        return
    local = int(os.environ.get("LOCAL_RANK", rank))
    place = torch.device(f"cuda:{local}" if kind == "cuda" else kind)
    if place.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"{local + 1} processes on a machine with {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(place, rank, size)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LaunchError(f"process {rank + 1} of {size} lost the others: one of them has ended") from error
    finally:
        dist.destroy_process_group()
