"""Random numbers of a training step, independent of how a batch is shared among processes."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Random numbers of a whole batch, from which a process takes its rows.

    Parameters
    ----------
    seed : int
        Random seed, the same in every process.
    count : int
        Number of examples of the whole batch.
    rows : Tensor, optional
        Rows of this process; all by default.
    device : device or str
        Device on which they are drawn and stay, because a CPU that feeds a GPU cannot draw millions of normal
        values per step. Numbers differ between kinds of devices.
    """

    def __init__(
        self, seed: int, count: int, rows: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.count, self.device = count, device
        self.rows = (torch.arange(count) if rows is None else rows).to(device)
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, (N, *shape)."""
        return torch.randn((self.count, *shape), generator=self._generator, device=self.device)[self.rows]

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return numbers in [0, 1), (N, *shape)."""
        size = (self.count, *shape)
        return torch.rand(size, generator=self._generator, dtype=dtype, device=self.device)[self.rows]

    def integers(self, low: int, high: int) -> Tensor:
        """Return integers from `low` to `high` - 1, (N,)."""
        size = (self.count,)
        return torch.randint(low, high, size, generator=self._generator, device=self.device)[self.rows]

    def first(self, share: float) -> Tensor:
        """Return which examples belong to the first fraction `share` of the whole batch, (N,) bool."""
        return self.rows < round(share * self.count)
