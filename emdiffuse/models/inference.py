"""A trained model, ready to restore: the network, its process, and how samples are averaged.

Conventions
-----------
* Images are scaled to [-1, 1]; see `emdiffuse.models.processes` for what a batch and a sample are.
* Mean and standard deviation over samples are streamed: no more than one sample is held, and the first where
  that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from emdiffuse.config import Sampler
from emdiffuse.models.description import Description, read_description
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.networks.compilation import CompiledNetwork
from emdiffuse.models.networks.precision import autocast_for
from emdiffuse.models.processes import Batch, Process, process_of
from emdiffuse.runtime.errors import ModelError

WhiteNoise = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class RestorationModel:
    """A trained model.

    Attributes
    ----------
    network : Module
        Its moving-average weights, in eval mode.
    process : Process
        How it is sampled.
    description : Description
        ``model.json``.
    device : torch.device
        Where it runs.
    directory : Path
        Where it was read from, for errors.
    precision : str
        What it computes in; see `networks.precision`.
    """

    network: nn.Module
    process: Process
    description: Description
    device: torch.device
    directory: Path
    precision: str = "auto"

    @classmethod
    def load(cls, directory: Path, device: str = "cpu", precision: str = "auto") -> RestorationModel:
        """Open a model that training or `import-weights` wrote.

        Raises
        ------
        ModelError
            If its files are missing or damaged, or do not fit each other.
        """
        description = read_description(directory)
        network = load_network(directory, device)
        place = torch.device(device)
        return cls(network, process_of(description), description, place, directory, precision)

    def compiled(self, mode: str) -> RestorationModel:
        """Return the model with its network compiled (see `networks.compilation`)."""
        return replace(self, network=CompiledNetwork(self.network, mode))

    @torch.inference_mode()
    def restore(self, batch: Batch, sampler: Sampler, white: WhiteNoise) -> tuple[Tensor, Tensor]:
        """Restore images, or the slices of gaps.

        Parameters
        ----------
        batch : Batch
            What is known; H and W multiples of the network's stride.
        sampler : Sampler
            Which sampler, how many steps and samples; see `Description.resolve` for what may be left open.
        white : callable
            ``white(sample, step)``: standard normal noise (N, D, H, W), different for each sample and step.

        Returns
        -------
        tuple of Tensor
            The mean of the samples (or the first, if the sampler's estimate is that) and their standard
            deviation, (N, D, H, W), float32 in units of [-1, 1]; the deviation of one sample is 0.

        Raises
        ------
        ModelError
            If what the network answers is not finite.
        """
        sampler = self.description.resolve(sampler)
        batch = batch.to(self.device)
        first: Tensor | None = None
        mean = torch.zeros(batch.shape, device=self.device)
        squares = torch.zeros_like(mean)
        autocast, _ = autocast_for(self.device, self.precision)
        samples = sampler.samples if self.description.samples_differ(sampler) else 1
        for sample in range(samples):
            noise = partial(white, sample)
            with autocast:
                values = self.process.sample(self.network, batch, sampler, noise).float()
            if sampler.estimate == "sample" and first is None:
                first = values
            delta = values - mean
            mean = mean + delta / (sample + 1)
            squares = squares + delta * (values - mean)
        if not squares.isfinite().all():  # nor is, where one sample is not, the mean
            raise ModelError(
                f"{self.directory}: the network answers with NaN or infinity; its weights are damaged, or "
                "its training diverged: take another copy, or train again at a lower learning rate",
                self.directory,
            )
        return mean if first is None else first, (squares / max(samples - 1, 1)).sqrt()
