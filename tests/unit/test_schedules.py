"""Noise levels and transitions: known values, exact ends, and steps that chain to the whole."""

import numpy as np
import pytest
import torch

from emdiffuse.diffusion import schedules
from emdiffuse.models.description import PUBLISHED_GAMMAS, PUBLISHED_SCHEDULE

PUBLISHED_TEST = schedules.linear_gammas(1e-4, 9e-2, 1000)


def test_linear_gammas_are_products_of_one_minus_beta():
    # betas 0.1, 0.2, 0.3 from the data to the noise
    expected = [0.9 * 0.8 * 0.7, 0.9 * 0.8, 0.9]
    np.testing.assert_allclose(schedules.linear_gammas(0.1, 0.3, 3), expected)


def test_published_schedules_are_as_measured():
    train = schedules.PUBLISHED_TRAIN
    assert len(train) == 2000
    assert train[-1] == pytest.approx(1 - 1e-6)
    assert train[0] == pytest.approx(4.386e-5, rel=1e-3)
    # more than half of the 1000 evaluations are at levels outside training
    assert np.count_nonzero(train[0] > PUBLISHED_TEST) == 532


def test_imported_models_name_the_ends_of_the_published_schedules():
    kwargs = PUBLISHED_SCHEDULE.model_dump(exclude={"name"})
    np.testing.assert_array_equal(schedules.linear_gammas(**kwargs), schedules.PUBLISHED_TRAIN)
    assert pytest.approx((schedules.PUBLISHED_TRAIN[0], PUBLISHED_TEST[-1])) == PUBLISHED_GAMMAS


def test_log_snr_and_its_inverse_at_the_ends_and_between():
    gammas = np.array([0.0, 1e-8, 0.5, 1 - 1e-9])
    assert schedules.log_snr(gammas)[0] == -np.inf
    assert schedules.log_snr(0.5) == 0
    np.testing.assert_allclose(schedules.gamma_of_log_snr(schedules.log_snr(gammas)), gammas, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 12, 100])
@pytest.mark.parametrize("gamma_min", [0.0, 4.4e-5])
def test_levels_increase_from_end_to_end_in_equal_steps_of_log_snr(steps, gamma_min):
    levels = schedules.log_snr_levels(steps, gamma_min, 0.9999)
    assert levels.shape == (steps,)
    assert levels.dtype == np.float64
    assert levels[0] == gamma_min
    assert (np.diff(levels) > 0).all()
    if steps > 1:
        assert levels[-1] == 0.9999
        log_snr = schedules.log_snr(levels)
        if gamma_min == 0:
            log_snr[0] = schedules.log_snr(schedules.PURE_NOISE_STANDIN)
        np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / (steps - 1))


@pytest.mark.parametrize("arguments", [(0, 0.1, 0.9), (3, 0.9, 0.1), (3, -0.1, 0.9), (3, 0.1, 1.0)])
def test_levels_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match=r"a sampler needs at least|the levels need"):
        schedules.log_snr_levels(*arguments)


def test_q_sample_takes_one_level_for_all_or_one_an_image():
    x0, eps = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), 10.0)
    # alpha = 0.6, sigma = 0.8: 0.6 * 2 + 0.8 * 10; pure noise; data
    assert schedules.q_sample(x0, 0.36, eps).flatten().tolist() == pytest.approx([9.2, 9.2])
    assert schedules.q_sample(x0, torch.tensor([0.0, 1.0]), eps).flatten().tolist() == [10, 2]


def test_posterior_follows_from_bayes_rule():
    gamma, gamma_prev, x0, x = 0.3, 0.5, 0.7, -0.4
    # prior of x_prev given x0: N(sqrt(.5) x0, .5); likelihood: x = sqrt(.6) x_prev + sqrt(.4) noise
    precision = 1 / 0.5 + 0.6 / 0.4
    expected = (np.sqrt(0.5) * x0 / 0.5 + np.sqrt(0.6) * x / 0.4) / precision
    images = (torch.tensor([[x]], dtype=torch.float64), torch.tensor([[x0]], dtype=torch.float64))
    mean, variance = schedules.posterior(*images, gamma, gamma_prev)
    assert mean.item() == pytest.approx(expected)
    assert variance.item() == pytest.approx(1 / precision)


def test_posterior_is_exact_from_pure_noise_and_to_the_data():
    x, x0 = torch.tensor([[3.0]]), torch.tensor([[0.5]])
    mean, variance = schedules.posterior(x, x0, 0.0, 0.25)
    assert (mean.item(), variance.item()) == (0.25, 0.75)  # noise is forgotten: a new draw at 0.25
    mean, variance = schedules.posterior(x, x0, 0.25, 1.0)
    assert (mean.item(), variance.item()) == (0.5, 0.0)  # x0 itself


def test_coefficients_keep_their_digits_near_the_data():
    _, sigma = schedules.alpha_sigma(1 - 1e-10, torch.zeros(1, 1))
    assert sigma.item() == pytest.approx(1e-5, rel=1e-6)
