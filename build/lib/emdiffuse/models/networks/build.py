"""Networks, and the models that they are kept as.

Conventions
-----------
* A *model* is a folder with ``model.safetensors`` and ``model.json`` (see `models.networks.weights`).
* A network is called as ``network(x, gamma)``, some with more conditions; images are (N, C, ...), float32 and
  scaled to [-1, 1], with the condition first and the noisy image last (see `emdiffuse.diffusion` for gamma).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from emdiffuse.models.description import NativeSpec, NetworkSpec, read_description
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.networks.unet import UNet
from emdiffuse.models.networks.weights import load_weights, require_weights

__all__ = ["NativeNetwork", "UNet", "build_network", "load_network"]


def build_network(spec: NetworkSpec, checkpointing: bool = False) -> nn.Module:
    """Make a network with fresh weights.

    Parameters
    ----------
    spec : NativeSpec or UnetSpec
        The network, from a model's description.
    checkpointing : bool
        Whether activations are computed again in the backward pass: less memory, more time.
    """
    network = NativeNetwork if isinstance(spec, NativeSpec) else UNet
    return network(**spec.model_dump(exclude={"architecture"}), checkpointing=checkpointing)


def load_network(model_dir: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Load a model's network, in eval mode.

    Parameters
    ----------
    model_dir : path
        Folder of the model.
    device : device or str
        Where the network is put.

    Returns
    -------
    Module
        Call it under `torch.no_grad`: it is faster than with autograd, and takes less memory.

    Raises
    ------
    ModelError
        If a file is missing, damaged, or fits no network; one sentence that names the file.
    """
    spec = read_description(model_dir).network
    with torch.device("meta"):  # nothing is allocated for weights that the file does not hold
        require_weights(model_dir, build_network(spec))
    network = build_network(spec)
    load_weights(model_dir, network)
    network = network.to(device).eval()
    return channels_last(network) if torch.device(device).type == "cuda" else network


def channels_last(network: nn.Module) -> nn.Module:
    """Let a network keep the channels of a pixel side by side, which suits a GPU's half precision."""
    volumes = any(parameter.ndim == 5 for parameter in network.parameters())
    return network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
