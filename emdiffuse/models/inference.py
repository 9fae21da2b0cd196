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
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emdiffuse.config import Sampler
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.networks.compilation import CompiledNetwork
from emdiffuse.models.networks.precision import autocast_for
from emdiffuse.models.networks.weights import PUBLISHED_SAMPLER, ModelError, load_description
from emdiffuse.models.processes import Batch, Process, process_of

WhiteNoise = Callable[[int, int], Tensor]


def is_native(description: dict[str, Any]) -> bool:
    """Tell whether a model gives the posterior mean in one call."""
    return bool(description["network"]["architecture"] == "native")


def differ(description: dict[str, Any], sampler: Sampler) -> bool:
    """Tell whether samples of a model differ: not where a native network gives the posterior mean."""
    return not is_native(description) or sampler.steps != 1


def draws(sampler: Sampler, description: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the (sample, step) of all noise that a restoration asks for, in the order in which it does."""
    if not differ(description, sampler):
        return []
    sampler = resolve(sampler, description)
    steps = sampler.steps if sampler.name == "ddpm" else 1
    return [(sample, step) for sample in range(sampler.samples) for step in range(steps or 1)]


def estimator(sampler: Sampler, description: dict[str, Any]) -> str:
    """Say in words what the restored volume is."""
    if not differ(description, sampler):
        return "posterior mean in one call"
    many = "mean" if sampler.estimate == "mean" else "first"
    what = f"{many} of {sampler.samples} samples" if sampler.samples > 1 else "one sample"
    return f"{what} of {sampler.steps} calls ({sampler.name})"


def resolve(sampler: Sampler, description: dict[str, Any]) -> Sampler:
    """Fill in what a sampler's settings leave to the model: its own sampler, and number of calls."""
    own = description.get("sampler", PUBLISHED_SAMPLER)
    name = sampler.name or own["name"]
    steps = sampler.steps or (TASKS[description["task"]].published_steps if name == "ddpm" else own["steps"])
    return sampler.model_copy(update={"name": name, "steps": steps})


def trained_for(description: dict[str, Any], factor: Fraction) -> bool:
    """Tell whether a model was trained for an anisotropy factor, or for factors around it."""
    factors = description.get("factors")
    return not factors or min(factors) <= factor <= max(factors)


@dataclass(frozen=True)
class RestorationModel:
    """A trained model.

    Attributes
    ----------
    network : Module
        Its moving-average weights, in eval mode.
    process : Process
        How it is sampled.
    description : dict
        ``model.json``.
    device : torch.device
        Where it runs.
    """

    network: nn.Module
    process: Process
    description: dict[str, Any]
    device: torch.device

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> RestorationModel:
        """Open a model that training or `import-weights` wrote.

        Raises
        ------
        ModelError
            If its files are missing or damaged, or say too little to run it.
        """
        description = load_description(directory)
        network = load_network(directory, device)
        try:
            process = process_of(description)
        except KeyError as error:
            raise ModelError(f"{directory}/model.json does not say '{error.args[0]}'; train again") from None
        return cls(network, process, description, torch.device(device))

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
            Which sampler, how many calls and samples; see `resolve` for what may be left open.
        white : callable
            ``white(sample, step)``: standard normal noise (N, D, H, W), different for each sample and step.

        Returns
        -------
        tuple of Tensor
            The mean of the samples (or the first, if the sampler's estimate is that) and their standard
            deviation, (N, D, H, W), float32 in units of [-1, 1]; the deviation of one sample is 0.
        """
        sampler = resolve(sampler, self.description)
        batch = batch.to(self.device)
        first: Tensor | None = None
        mean = torch.zeros(batch.shape, device=self.device)
        squares = torch.zeros_like(mean)
        autocast, _ = autocast_for(self.device)
        samples = sampler.samples if differ(self.description, sampler) else 1
        for sample in range(samples):
            noise = partial(white, sample)
            with autocast:
                values = self.process.sample(self.network, batch, sampler, noise).float()
            if sampler.estimate == "sample" and first is None:
                first = values
            delta = values - mean
            mean = mean + delta / (sample + 1)
            squares = squares + delta * (values - mean)
        return mean if first is None else first, (squares / max(samples - 1, 1)).sqrt()
