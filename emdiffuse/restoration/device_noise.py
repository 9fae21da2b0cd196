"""The noise of `emdiffuse.restoration.noise`, identical to the bit, drawn on the network's device.

Conventions
-----------
* 64-bit words are stored as int64, whose sums and products wrap around like unsigned ones; only shifts and
  the high half of a product must take care of the sign.
* Each operation is a separate kernel: compiled together, a multiplication and an addition could be fused and
  rounded only once, and the bits would differ from the CPU's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emdiffuse.restoration.noise import CELL_WORDS, NOISE_CELL, OFFSET, circle, logarithm, turned

_LOW = 2**32 - 1
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10


def device_noise(
    seed: int,
    sample: int,
    step: int,
    origins: list[tuple[int, int, int]],
    shape: tuple[int, int, int],
    device: torch.device | str,
) -> Tensor:
    """Return the values of `noise_field` for boxes of one shape, drawn on a device.

    Parameters
    ----------
    seed, sample, step : int
        See `noise_field`.
    origins : list of tuple of int
        First voxel (z, y, x) of each of the N boxes.
    shape : tuple of int
        Shape (z, y, x) of every box.
    device : device or str
        Device on which the noise is drawn, and stays.

    Returns
    -------
    Tensor
        (N, z, y, x), float32.
    """
    return torch.stack([_field(seed, sample, step, origin, shape, device) for origin in origins])


def _field(
    seed: int,
    sample: int,
    step: int,
    origin: tuple[int, int, int],
    shape: tuple[int, int, int],
    device: torch.device | str,
) -> Tensor:
    """Draw all cells that overlap a box at once, and crop them to the box."""
    (oz, oy, ox), (nz, ny, nx) = origin, shape
    rows = range(oy // NOISE_CELL, -(-(oy + ny) // NOISE_CELL))
    columns = range(ox // NOISE_CELL, -(-(ox + nx) // NOISE_CELL))
    zs = torch.arange(oz, oz + nz, device=device)[:, None, None, None]
    cy = torch.arange(rows.start, rows.stop, device=device)[:, None, None]
    cx = torch.arange(columns.start, columns.stop, device=device)[:, None]
    block = torch.arange(1, CELL_WORDS // 4 + 1, device=device)
    counters = torch.broadcast_tensors(
        block,
        zs + OFFSET,
        (cy + OFFSET) << 32 | (cx + OFFSET),
        torch.tensor(_signed(sample << 32 | step), device=device),
    )
    words = torch.stack(philox(counters, (seed & (2**64 - 1), seed >> 64)), -1).flatten(-2)
    halves = torch.stack([words & _LOW, words >> 32 & _LOW], -1).flatten(-2)
    first, second = halves.unflatten(-1, (2, -1)).unbind(-2)
    cells = _normal(first, second).unflatten(-1, (NOISE_CELL, NOISE_CELL))
    field = cells.permute(0, 1, 3, 2, 4).reshape(nz, len(rows) * NOISE_CELL, len(columns) * NOISE_CELL)
    top, left = oy - rows.start * NOISE_CELL, ox - columns.start * NOISE_CELL
    return field[:, top : top + ny, left : left + nx]


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Return normal values from pairs of 32-bit words (..., n), cosines before sines."""
    mantissa, exponent = torch.frexp((first.float() + 1) * 2.0**-32)
    # the float32 square root of MKL may be off by one bit; the rounded float64 root is exact
    radius = torch.sqrt(-2 * logarithm(mantissa, exponent.float(), torch.where).double()).float()
    second = second + 2**29 & _LOW
    angle = ((second & (2**30 - 1)) - 2**29).float()
    # the float32 that NumPy multiplies by; a Python float would be rounded elsewhere
    scale = torch.tensor(np.float32(np.pi * 2**-31), device=angle.device)
    cosine, sine = turned(*circle(angle * scale), second >> 30, torch.where)
    return torch.cat([radius * cosine, radius * sine], -1)


def philox(counters: tuple[Tensor, ...], key: tuple[int, int]) -> list[Tensor]:
    """Return the four int64 words of Philox 4x64-10 for counters of four words each, lowest first."""
    c = list(counters)
    for number in range(ROUNDS):
        k = [_signed(word + number * weyl) for word, weyl in zip(key, _WEYL, strict=True)]
        high0, low0 = _product(c[0], _MULTIPLIERS[0])
        high1, low1 = _product(c[2], _MULTIPLIERS[1])
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
    return c


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and low word of a product of unsigned 64-bit words."""
    x0, x1, f0, f1 = x & _LOW, x >> 32 & _LOW, factor & _LOW, factor >> 32
    low, cross0, cross1 = x0 * f0, x1 * f0, x0 * f1
    carry = (low >> 32 & _LOW) + (cross0 & _LOW) + (cross1 & _LOW)
    high = x1 * f1 + (cross0 >> 32 & _LOW) + (cross1 >> 32 & _LOW) + (carry >> 32)
    return high, x * _signed(factor)


def _signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned word."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word
