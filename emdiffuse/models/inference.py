"""A trained model, ready to restore: the network, its process, and the averaging of samples.

Conventions
-----------
* Images are scaled to [-1, 1]; see `emdiffuse.models.processes` for what a batch and a sample are.
* The restored image is the posterior mean, in one evaluation of a native network; samples are drawn for their
  spread (the uncertainty) and for texture.
* Mean and standard deviation over samples are streamed: only one sample is in memory, plus the first if its
  texture is requested.
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
        The network, with moving-average weights, in eval mode.
    process : Process
        The diffusion process.
    description : Description
        ``model.json``.
    device : torch.device
        Device of the network.
    directory : Path
        Folder of the model, for errors.
    precision : str
        Numerical precision; see `networks.precision`.
    """

    network: nn.Module
    process: Process
    description: Description
    device: torch.device
    directory: Path = Path()
    precision: str = "auto"

    @classmethod
    def load(cls, directory: Path, device: str = "cpu", precision: str = "auto") -> RestorationModel:
        """Open a model written by training or `import-weights`.

        Raises
        ------
        ModelError
            If its files are missing, damaged, or inconsistent.
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
            Condition of the network; H and W are multiples of its stride.
        sampler : Sampler
            Sampler, steps and samples; see `Description.resolve` for defaults.
        white : callable
            ``white(sample, step)``: standard normal noise (N, D, H, W), different for each sample and step.

        Returns
        -------
        tuple of Tensor
            The restored slices, and the standard deviation of the samples, (N, D, H, W), float32 in units of
            [-1, 1]. The restored slices are the mean: that of one evaluation of a native network, or that of
            the samples of a published one. `texture` adds this fraction of the first sample's difference from
            the mean; at 1 the result is that sample. `sharpen` sharpens the mean of a native model
            (`NativeProcess.sharpen`). The deviation of one sample is 0.

        Raises
        ------
        ModelError
            If the output of the network is not finite.
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
                "its training diverged; use another copy, or train again at a lower learning rate",
                self.directory,
            )
        return restored, (squares / max(samples - 1, 1)).sqrt()

    def _mean(self, batch: Batch, sampler: Sampler) -> Tensor:
        """Return the posterior mean in one evaluation, averaged over the flips and rotations of the ensemble.

        Every flip or rotation of a tile covers the same pixels, with the same grid of strides, so the average
        depends on tiles as little as a single evaluation does.
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
    raise AssertionError("the posterior mean in one evaluation draws no noise")
