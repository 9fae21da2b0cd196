"""Processes: a network's training examples, and the use of its predictions."""

import math

import pytest
import torch

from emdiffuse.config import Sampler
from emdiffuse.diffusion.schedules import PUBLISHED_TRAIN, linear_gammas
from emdiffuse.models.draws import Draws
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.processes import Batch, NativeProcess, PublishedProcess, published_levels
from emdiffuse.runtime.errors import DataError

NAN = math.nan


def gaps(count=3, size=8, positions=(1 / 3, 2 / 3), factor=3.0):
    generator = torch.Generator().manual_seed(0)
    condition = torch.rand((count, 4, size, size), generator=generator) * 2 - 1
    target = torch.rand((count, len(positions), size, size), generator=generator) * 2 - 1
    return Batch.of_gaps(condition, torch.tensor(positions), factor), target


def draws(batch):
    return Draws(0, len(batch.condition))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def test_an_absent_slice_adds_nothing_to_the_native_loss():
    batch, target = gaps()
    padded = batch._replace(positions=torch.cat([batch.positions, torch.full((3, 1), NAN)], 1))
    longer = torch.cat([target, torch.full((3, 1, 8, 8), NAN)], 1)
    process, network = NativeProcess(0.3, mean_share=1.0), NativeNetwork(channels=8, multipliers=[1, 2])
    losses = []
    for case in ((batch, target), (padded, longer)):
        arguments, wanted = process.example(*case, draws(batch))
        losses.append(process.loss(network(*arguments), wanted))
    assert losses[0] > 0
    torch.testing.assert_close(losses[0], losses[1])


def test_the_published_example_is_of_one_slice_between_two_levels_of_training():
    batch, target = gaps(count=500, positions=(0.25, 0.5, 0.75, NAN), factor=4.0)
    target[:, 3] = NAN
    (x, gamma, index), eps = PublishedProcess().example(batch, target, draws(batch))
    assert x.shape == (500, 3, 8, 8) and eps.shape == (500, 1, 8, 8)
    assert set(index.tolist()) == {0, 1, 2}
    assert PUBLISHED_TRAIN[0] <= gamma.min() and gamma.max() <= PUBLISHED_TRAIN[-1]
    assert torch.equal(x[:, 0], batch.condition[:, 2]) and torch.equal(x[:, 1], batch.condition[:, 1])
    level = gamma[:, None, None]
    clean = (x[:, 2] - (1 - level).sqrt() * eps[:, 0]) / level.sqrt()
    wanted = target[torch.arange(500), index]
    near = gamma > 0.01  # below, float32 keeps too little of the signal
    torch.testing.assert_close(clean[near], wanted[near], atol=1e-4, rtol=0)


class Oracle(torch.nn.Module):
    """An oracle network: the noise that leads to given images, by slice index."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, x, gamma, index=None):
        clean = self.images[:, index][0] if index is not None else self.images[:, 0]
        level = gamma[:, None, None, None]
        return (x[:, -1:] - level.sqrt() * clean[:, None]) / (1 - level).sqrt()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++", "heun"])
def test_published_samples_are_what_the_network_says(name):
    batch, target = gaps(count=1)
    white = lambda step: torch.randn(batch.shape, generator=seeded(step))  # noqa: E731
    sampler = Sampler(name=name, steps=30)
    images = PublishedProcess().sample(Oracle(target), batch, sampler, white)
    torch.testing.assert_close(images, target, atol=2e-2 if name == "ddpm" else 1e-3, rtol=0)
    one = Batch.of_images(batch.condition[:, :1])
    white = lambda step: torch.randn(one.shape, generator=seeded(step))  # noqa: E731
    images = PublishedProcess().sample(Oracle(target[:, :1]), one, sampler, white)
    torch.testing.assert_close(images, target[:, :1], atol=2e-2 if name == "ddpm" else 1e-3, rtol=0)


def test_the_published_schedule_is_walked_by_ddpm():
    levels = published_levels(Sampler(name="ddpm", steps=1000))
    assert levels.tolist() == linear_gammas(1e-4, 0.09, 1000).tolist()
    few = published_levels(Sampler(name="dpm++", steps=12))
    assert len(few) == 12 and PUBLISHED_TRAIN[0] <= few[0] and few[-1] <= 1 - 1e-4


def test_a_published_network_knows_no_half_slices():
    batch, _ = gaps(factor=2.5)
    with pytest.raises(DataError, match="integer factors"):
        PublishedProcess().sample(Oracle(None), batch, Sampler(name="ddim", steps=2), lambda step: None)


def test_one_native_call_draws_no_noise_and_is_the_mean():
    """One evaluation of a network that is constant over levels gives its own prediction."""
    batch, target = gaps()

    class Mean(torch.nn.Module):
        def forward(self, x, gamma, condition, positions, factor, thickness):
            t = positions[:, :, None, None]
            base = condition[:, 1:2] + t * (condition[:, 2:3] - condition[:, 1:2])
            return -(target - base) / 0.3

    restored = NativeProcess(0.3).sample(Mean(), batch, Sampler(name="dpm++", steps=1), None)
    torch.testing.assert_close(restored, target)


class GaussianFlow(torch.nn.Module):
    """The exact flow of a normal residual with mean 0.4 and standard deviation 1."""

    def forward(self, x, gamma, *batch):
        level = gamma[:, None, None, None]
        clean = (1 - level) * 0.4 + level.sqrt() * x
        return (x - level.sqrt() * clean) / (1 - level).sqrt() - clean


@pytest.mark.parametrize("name", ["unipc", "heun"])
@pytest.mark.parametrize("level_of_noise", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_a_mean_is_sharpened_by_as_much_as_is_asked(name, level_of_noise):
    """The fraction of the posterior's variance hidden by noise of that level; all of it is a sample."""
    process, batch = NativeProcess(0.3), gaps(count=2, size=32)[0]
    sampler = Sampler(name=name, steps=40, sharpen=level_of_noise)
    noises = [torch.randn(batch.shape, generator=seeded(step)) for step in range(40)]
    mean = process.sample(GaussianFlow(), batch, Sampler(name=name, steps=1), noises.__getitem__)
    sharp = process.sharpen(GaussianFlow(), batch, sampler, mean, noises.__getitem__)
    level = (1 - level_of_noise) ** 2 / ((1 - level_of_noise) ** 2 + level_of_noise**2)
    added = (sharp - mean) / process.scale
    # the last level is 0.998: a little noise remains
    assert float(added.std()) == pytest.approx(math.sqrt(1 - min(level, 0.99)), rel=0.1)
    assert abs(float(added.mean())) < 0.1
    if level_of_noise == 1:
        sample = process.sample(GaussianFlow(), batch, sampler, noises.__getitem__)
        torch.testing.assert_close(sharp, sample, atol=1e-5, rtol=0)
