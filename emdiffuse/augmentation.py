"""Augmentation: what is changed at random in a batch before the network sees it.

Conventions
-----------
* Everything is drawn from the generator that is given, on the CPU, one example after another.
* Geometry is changed in condition and target alike; degradations touch the condition alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emdiffuse.processes import Batch
from emdiffuse.tasks import CONDITION_OFFSETS

MISSING_SHARE = 0.08
"""Share of gaps whose outer real slice is taken away, on either side, as at the ends of a volume."""


def augment(batch: Batch, target: Tensor, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """Flip and transpose at random; of gaps, flip along z and now and then take an outer real slice away.

    Parameters
    ----------
    batch : Batch
        With H = W.
    target : Tensor
        (N, D, H, W), NaN where a slice is absent; those come last.
    generator : torch.Generator
        Where the choices come from.

    Returns
    -------
    tuple
        Batch and target of the same shapes. A missing outer slice is replaced by the one next to it.
    """
    choices = torch.rand((len(target), 6), generator=generator).tolist()
    gaps = batch.condition.shape[1] == len(CONDITION_OFFSETS)
    conditions, targets = [], []
    for c, t, choice in zip(batch.condition, target, choices, strict=True):
        if choice[0] < 0.5 and gaps:
            depth = int((~t[:, 0, 0].isnan()).sum())
            c, t = c.flip(0), torch.cat([t[:depth].flip(0), t[depth:]])
        for axis in (1, 2):
            if choice[axis] < 0.5:
                c, t = c.flip(axis), t.flip(axis)
        if choice[3] < 0.5:
            c, t = c.transpose(1, 2), t.transpose(1, 2)
        if gaps:
            first, last = (
                (c[1] if choice[4] < MISSING_SHARE else c[0]),
                (c[2] if choice[5] < MISSING_SHARE else c[3]),
            )
            c = torch.stack([first, c[1], c[2], last])
        conditions.append(c)
        targets.append(t)
    return batch._replace(condition=torch.stack(conditions)), torch.stack(targets)
