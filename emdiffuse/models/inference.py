"""A trained model, ready to restore: the network, its process, and how samples are averaged.

Conventions
-----------
* Images are scaled to [-1, 1]; see `emdiffuse.models.processes` for what a batch and a sample are.
* What is restored is the posterior mean, in one call of a native network; samples are drawn for their spread
  (the uncertainty) and for texture.
* Mean and standard deviation over samples are streamed: no more than one sample is held, and the first where
  its texture is asked for.
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
from emdiffuse.models.processes import Batch, NativeProcess, Process, process_of
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
    directory: Path = Path()
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
            The restored slices, and the standard deviation of the samples, (N, D, H, W), float32 in units of
            [-1, 1]. Restored is the mean: that of one call of a native network, or that of the samples of a
            published one. With a `texture` so much of the first sample's difference from the mean is added:
            at 1 it is that sample. With `sharpen` the mean of a native model is sharpened
            (`NativeProcess.sharpen`). The deviation of one sample is 0.

        Raises
        ------
        ModelError
            If what the network answers is not finite.
        """
        sampler = self.description.resolve(sampler)
        batch = batch.to(self.device)
        autocast, _ = autocast_for(self.device, self.precision)
        with autocast:
            restored = self._mean(batch, sampler) if self.description.gives_mean(sampler) else None
            if self.description.sharpens(sampler):
                assert isinstance(self.process, NativeProcess) and restored is not None
                restored = self.process.sharpen(self.network, batch, sampler, restored, partial(white, 0))
                restored = restored.float()
        first: Tensor | None = None
        mean = torch.zeros(batch.shape, device=self.device)
        squares = torch.zeros_like(mean)
        samples = self.description.samples_drawn(sampler)
        for sample in range(samples):
            noise = partial(white, sample)
            with autocast:
                values = self.process.sample(self.network, batch, sampler, noise).float()
            if sampler.texture and first is None:
                first = values
            delta = values - mean
            mean = mean + delta / (sample + 1)
            squares = squares + delta * (values - mean)
        if restored is None:
            restored = mean
        if first is not None:
            restored = torch.lerp(restored, first, sampler.texture or 0.0)
        if not (restored.isfinite().all() and squares.isfinite().all()):
            raise ModelError(
                f"{self.directory}: the network returns NaN or infinity; its weights are damaged, or "
                "its training diverged: take another copy, or train again at a lower learning rate",
                self.directory,
            )
        return restored, (squares / max(samples - 1, 1)).sqrt()

    def _mean(self, batch: Batch, sampler: Sampler) -> Tensor:
        """Return the posterior mean in one call, over as many flips and turns as the sampler's ensemble says.

        Every turn of a tile covers the tile's own pixels, so that the mean depends on tiles as little as one
        call does: a network's grid of strides lies alike in all of them.
        """
        once = sampler.model_copy(update={"steps": 1})
        total = torch.zeros(batch.shape, device=self.device)
        turns = [(turn, flip) for flip in (False, True) for turn in range(4)][: sampler.ensemble]
        for turn, flip in turns:
            condition = torch.rot90(batch.condition, turn, (-2, -1))
            turned = batch._replace(condition=condition.flip(-1) if flip else condition)
            values = self.process.sample(self.network, turned, once, _no_noise).float()
            total += torch.rot90(values.flip(-1) if flip else values, -turn, (-2, -1))
        return total / len(turns)


def _no_noise(step: int) -> Tensor:
    raise AssertionError("the posterior mean in one call draws no noise")
