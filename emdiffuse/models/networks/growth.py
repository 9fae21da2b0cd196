"""Deepen a native network: it keeps what it has learned, and added blocks initially change nothing.

Source: identity transfer of Chen et al. 2016 (Net2Net, arXiv 1511.05641), with blocks whose residual is 0.
"""

from __future__ import annotations

import torch
from torch import nn

from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.networks.native_blocks import NativeBlock


@torch.no_grad()
def grow(small: NativeNetwork, large: NativeNetwork) -> None:
    """Copy the weights of a network into one with more blocks per level, which then gives the same output.

    Parameters
    ----------
    small : NativeNetwork
        Network to copy.
    large : NativeNetwork
        Network with the same channels and levels, and at least as many blocks per level; modified in place.
    """
    others = {
        name: tensor for name, tensor in small.state_dict().items() if not name.startswith(("down.", "up."))
    }
    large.load_state_dict(others, strict=False)
    for few, many in ((small.down, large.down), (small.up, large.up)):
        for own, other in zip(_samplers(few), _samplers(many), strict=True):
            other.load_state_dict(own.state_dict())
        for level, deeper in zip(_levels(few), _levels(many), strict=True):
            for own, other in zip(level, deeper, strict=False):
                other.load_state_dict(own.state_dict())
            for added in deeper[len(level) :]:
                for parameter in added.conv2.parameters():
                    nn.init.zeros_(parameter)


def _samplers(path: nn.ModuleList) -> list[nn.Module]:
    """Return the layers that change the resolution, in order."""
    return [module for module in path if not isinstance(module, NativeBlock)]


def _levels(path: nn.ModuleList) -> list[list[NativeBlock]]:
    """Return the blocks between the changes of resolution."""
    levels: list[list[NativeBlock]] = [[]]
    for module in path:
        if isinstance(module, NativeBlock):
            levels[-1].append(module)
        else:
            levels.append([])
    return levels
