"""Building networks, and loading them from models.

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
    """Build a network with new random weights.

    Parameters
    ----------
    spec : NativeSpec or UnetSpec
        The network, from a model's description.
    checkpointing : bool
        Whether to recompute activations in the backward pass: less memory, more time.
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
        Device of the network.

    Returns
    -------
    Module
        The network; call it under `torch.no_grad`, which is faster and needs less memory.

    Raises
    ------
    ModelError
        If a file is missing, damaged, or matches no network; one sentence that names the file.
    """
    spec = read_description(model_dir).network
    with torch.device("meta"):  # allocate nothing until the file is checked
        require_weights(model_dir, build_network(spec))
    network = build_network(spec)
    load_weights(model_dir, network)
    network = network.to(device).eval()
    return channels_last(network) if torch.device(device).type == "cuda" else network


def channels_last(network: nn.Module) -> nn.Module:
    """Convert a network to the channels-last layout, which is fastest in half precision on a GPU."""
    volumes = any(parameter.ndim == 5 for parameter in network.parameters())
    return network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
