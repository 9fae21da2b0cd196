"""Compilation of a network by PyTorch for its device.

Conventions
-----------
* The modes are those of `torch.compile`: ``default``; ``reduce-overhead``, which replays a call as one CUDA
  graph; ``max-autotune``, which also tries several kernels for each operation. On a CPU there are no graphs.
* The first call, and the first with another number of tiles, compiles, which takes minutes.
* The result differs from the eager network only by rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emdiffuse.runtime.errors import ConfigError


class CompiledNetwork(nn.Module):
    """A network that is compiled when first called.

    Parameters
    ----------
    network : Module
        The network in eval mode, on its device.
    mode : {"default", "reduce-overhead", "max-autotune"}
        See the module.
    """

    def __init__(self, network: nn.Module, mode: str) -> None:
        super().__init__()
        self.compiled = torch.compile(network, mode=mode)
        self.graphs = mode != "default"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the network.

        Raises
        ------
        ConfigError
            If it cannot be compiled on this machine.
        """
        from torch._dynamo.exc import TorchDynamoException  # importing takes a second

        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            output: Tensor = self.compiled(*inputs)
        except TorchDynamoException as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"--compile: the network cannot be compiled here ({reason}); install a C++ compiler (and "
                "Triton, for a GPU), or omit --compile"
            ) from None
        # the next graph replay overwrites the same memory
        return output.clone() if self.graphs else output
