"""The four tasks: their input, their output, and how condition and target are arranged in space.

Conventions
-----------
* A *gap* is the space between two neighbouring real slices of an anisotropic volume; `factor` is the distance
  between them in units of the lateral voxel size, so that a gap holds ``factor - 1`` slices when it is an
  integer.
* *Positions* within a gap run from 0 (the real slice before it) to 1 (the real slice after it).
* `published_channels` counts the input channels of the published network, the noisy image last.

Source: Lu et al., Nature Communications 2024, doi 10.1038/s41467-024-49125-z.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task that a model can learn.

    Attributes
    ----------
    title : str
        One line, for display.
    volumetric : bool
        Whether it fills gaps between slices, rather than restoring an image from an image.
    scale : int
        Output pixels of one input pixel, along y and x.
    published_channels : int
        Input channels of the published network: the condition's, then the noisy image.
    published_steps : int
        Network evaluations of the published test schedule, per image or slice.
    """

    title: str
    volumetric: bool
    scale: int
    published_channels: int
    published_steps: int


TASKS: dict[str, Task] = {
    "emdiffuse-n": Task("denoising", False, 1, 2, 1000),
    "emdiffuse-r": Task("super-resolution (2x)", False, 2, 2, 1000),
    "vemdiffuse-i": Task("isotropic volumes, trained on an isotropic volume", True, 1, 3, 200),
    "vemdiffuse-a": Task("isotropic volumes, without isotropic training data", True, 1, 3, 200),
}

CONDITION_OFFSETS = (-1, 0, 1, 2)
"""Real slices that condition a gap, relative to the one before it; missing ones repeat the nearest."""
