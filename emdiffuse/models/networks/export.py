"""Export of a network for inference, as a graph that runs without this package.

Conventions
-----------
* A graph has a fixed input shape, that of a tile, and is for inference only: no dropout, no gradients.
* `torch.export` was chosen over TorchScript, which is equally fast but no longer developed. A graph runs the
  operations of the eager network one by one, with identical results.
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
        Arguments of a call, such as ``x, gamma``, which set the shapes, dtypes and devices of the graph.

    Returns
    -------
    ExportedProgram
        ``program.module()`` is called like the network; `torch.export.save` and `torch.export.load` store it.

    Raises
    ------
    ValueError
        If the network is in training mode.
    """
    if network.training:
        raise ValueError("a network is exported for inference; call eval() first")
    with torch.no_grad():
        return torch.export.export(network, inputs)
