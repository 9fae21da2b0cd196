"""The exported form of a network for inference: a graph that other programs run without this package.

Conventions
-----------
* A graph is made for one shape of input, that of a tile, and for inference: no dropout, no gradients.
* `torch.export` was chosen over TorchScript, which is as fast and no longer developed. A graph runs the
  operations of the eager network one by one: the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


def export_network(network: nn.Module, *inputs: Tensor) -> ExportedProgram:
    """Trace a network to a graph for inference.

    Parameters
    ----------
    network : Module
        In eval mode.
    *inputs : Tensor
        Arguments of a call, such as ``x, gamma``: their shapes, dtypes and devices are those of the graph.

    Returns
    -------
    ExportedProgram
        ``program.module()`` is called like the network; `torch.export.save` and `torch.export.load` keep it.

    Raises
    ------
    ValueError
        If the network is in training mode.
    """
    if network.training:
        raise ValueError("a network is exported for inference: call eval() first")
    with torch.no_grad():
        return torch.export.export(network, inputs)
