"""Predictions, the resulting denoisers, and the losses."""

import math

import pytest
import torch

from emdiffuse.diffusion.objectives import (
    SMALLEST_DIFFICULTY,
    as_denoiser,
    difficulty_aware,
    split_difficulty,
    training_target,
)
from emdiffuse.diffusion.schedules import q_sample

PREDICTIONS = ["epsilon", "flow"]


def example(gamma):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 1, 4, 5, generator=generator).unbind(0)
    return x0, eps, torch.tensor(gamma, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_gives_the_clean_image_at_every_level(prediction):
    x0, eps, gamma = example([1e-4, 0.3, 0.99])
    target = training_target(prediction, x0, eps)
    seen = {}

    def network(x, level):
        seen["dtype"] = level.dtype
        return target

    x0_hat = as_denoiser(network, prediction)(q_sample(x0, gamma, eps), gamma)
    torch.testing.assert_close(x0_hat, x0, rtol=1e-4, atol=1e-4)
    assert seen["dtype"] == torch.float32


def test_pure_noise_is_exact():
    x0, eps, gamma = example([0.0, 0.0, 0.0])
    target = training_target("flow", x0, eps)
    x0_hat = as_denoiser(lambda x, level: target, "flow")(eps, gamma)
    torch.testing.assert_close(x0_hat, x0, rtol=1e-6, atol=1e-6)


def test_an_epsilon_network_is_not_asked_at_pure_noise():
    with pytest.raises(ValueError, match="gamma = 0"):
        as_denoiser(lambda x, level: x, "epsilon")(torch.zeros(1, 1), torch.zeros(1))


def test_unknown_predictions_are_refused():
    with pytest.raises(ValueError, match="'score'"):
        as_denoiser(lambda x, level: x, "score")
    with pytest.raises(ValueError, match="'score'"):
        training_target("score", *example([0.5, 0.5, 0.5])[:2])


def test_flow_is_the_velocity_of_the_straight_path():
    x0, eps, gamma = example([0.2, 0.5, 0.8])
    alpha, sigma = (level.sqrt().reshape(3, 1, 1, 1).float() for level in (gamma, 1 - gamma))
    time = sigma / (alpha + sigma)
    straight = q_sample(x0, gamma, eps) / (alpha + sigma)
    torch.testing.assert_close(straight, (1 - time) * x0 + time * eps)
    torch.testing.assert_close(straight - time * training_target("flow", x0, eps), x0)


def test_clipping_bounds_the_clean_image():
    denoise = as_denoiser(lambda x, level: torch.zeros_like(x), "epsilon", clip=(-1, 1))
    x0 = denoise(torch.tensor([[-5.0, 0.2, 5.0]]), torch.tensor([0.25]))
    assert x0[0].tolist() == pytest.approx([-1.0, 0.4, 1.0])


def test_difficulty_is_positive_bounded_and_finite_for_any_output():
    raw = torch.tensor([-1e4, -5.0, 0.0, 5.0, 1e4]).reshape(1, 1, 5)
    prediction, difficulty = split_difficulty(torch.cat([torch.ones_like(raw), raw], dim=1))
    assert prediction.shape == difficulty.shape == (1, 1, 5)
    assert difficulty.min() == pytest.approx(SMALLEST_DIFFICULTY)
    assert difficulty.isfinite().all()
    assert difficulty[0, 0, 2].item() == pytest.approx(math.log(2) + SMALLEST_DIFFICULTY)
    loss = difficulty_aware(torch.ones(1, 1, 5), torch.cat([torch.ones_like(raw), raw], dim=1))
    assert loss >= math.log(SMALLEST_DIFFICULTY)


def test_difficulty_aware_loss_of_a_known_pixel():
    # softplus(log(e - 1)) = 1, so phi = 1.001: (3 - 1)^2 / phi^2 + log(phi)
    output = torch.tensor([1.0, math.log(math.e - 1)]).reshape(1, 2, 1, 1)
    expected = 4 / 1.001**2 + math.log(1.001)
    assert difficulty_aware(torch.full((1, 1, 1, 1), 3.0), output).item() == pytest.approx(expected)


def test_difficulty_is_learned_where_the_errors_are():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 1.0]).reshape(1, 1, 1, 2)
    target = spread * torch.randn(512, 1, 1, 2, generator=generator)
    output = torch.zeros(1, 2, 1, 2, requires_grad=True)
    optimizer = torch.optim.Adam([output], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        difficulty_aware(target, output.expand(512, -1, -1, -1)).backward()
        optimizer.step()
    _, difficulty = split_difficulty(output.detach())
    # the optimum is sqrt(2) times the standard deviation of the error
    torch.testing.assert_close(difficulty, math.sqrt(2) * spread, rtol=0.1, atol=0)
