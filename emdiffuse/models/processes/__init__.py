"""Training and sampling of networks: the native process, the published one, and that of whole gaps.

Conventions
-----------
* A *batch* is the condition of a network: `condition` (N, C, H, W) in [-1, 1], the real slices at
  `tasks.CONDITION_OFFSETS` of a gap or one image; `positions` (N, D), the slices' positions in the gap, NaN
  if absent; `factor` (N,); `thickness` (N,), the fraction of the slice spacing that a real slice
  integrates over. An image has one slice, at position 1/2, factor 1 and thickness 0.
* ``process.example(batch, target, draws)`` draws levels and noise, and returns the network's arguments and
  its target output, each with N first, so that a batch can be processed in parts.
* Random numbers are drawn for a whole batch, of which each process uses its rows (`Draws`), so sharing a
  batch changes nothing.
* ``process.sample(network, batch, sampler, white)`` draws one image of each slice, (N, D, H, W) in [-1, 1];
  ``white(step)`` is standard normal noise of that shape.
"""

from torch import nn

from emdiffuse.config import Training
from emdiffuse.models.description import Description, NativeSpec, Unet3dSpec
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.networks.unet import UNet
from emdiffuse.models.processes.native import GAMMA_LAST, NativeProcess
from emdiffuse.models.processes.process import Batch, Process
from emdiffuse.models.processes.published import JointProcess, PublishedProcess, published_levels

__all__ = [
    "GAMMA_LAST",
    "Batch",
    "JointProcess",
    "NativeProcess",
    "Process",
    "PublishedProcess",
    "new_process",
    "process_of",
    "published_levels",
]


def process_of(description: Description) -> Process:
    """Return the process of a model, given its description."""
    network = description.network
    if isinstance(network, NativeSpec):
        return NativeProcess(network.residual_scale, blind_spot=network.blind_spot)
    kind = JointProcess if isinstance(network, Unet3dSpec) else PublishedProcess
    return kind(network.out_channels == 2)


def new_process(network: nn.Module, training: Training, noisy: bool = False) -> Process:
    """Return the process for training a new network; from `noisy` data it learns only the mean."""
    if isinstance(network, NativeNetwork):
        share = 1.0 if noisy else training.mean_share
        return NativeProcess(network.residual_scale, share, network.blind_spot)
    kind = JointProcess if isinstance(network, UNet) and network.dims == 3 else PublishedProcess
    return kind(training.loss == "difficulty")
