"""Samplers on Gaussian data with exact solutions, and against an independent implementation.

For data N(0, diag(variance)) the denoiser and thus every sampler is linear, so its law follows exactly from a
few runs: from the start 1 for deterministic ones, from one unit of noise at a time for the ancestral one.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from emdiffuse.diffusion.objectives import as_denoiser
from emdiffuse.diffusion.samplers import SAMPLERS, ddim, ddpm, dpm_solver_pp_2m, heun, unipc
from emdiffuse.diffusion.schedules import (
    PUBLISHED_TRAIN,
    linear_gammas,
    log_snr_levels,
    q_sample,
)
from emdiffuse.models.processes import GAMMA_LAST

DETERMINISTIC = {"ddim": ddim, "dpm++": dpm_solver_pp_2m, "unipc": unipc, "heun": heun}


def gaussian_denoiser(variance, mean=0.0):
    """Posterior mean of x0 for data N(mean, diag(variance)), variance of shape (D,)."""
    variance = torch.as_tensor(variance, dtype=torch.float64)

    def denoise(x, gamma):
        gamma = gamma[:, None]
        gain = gamma.sqrt() * variance / (gamma * variance + 1 - gamma)
        return mean + gain * (x - gamma.sqrt() * mean)

    return denoise


def standard_deviation(sampler, variance, gammas, start=1.0):
    """Standard deviations (D,) of a sampler's results from N(0, start ** 2) noise."""
    denoise = gaussian_denoiser(variance)
    x = torch.zeros(len(gammas) if sampler is ddpm else 1, len(variance), dtype=torch.float64)
    x[0] = start
    if sampler is not ddpm:
        return sampler(denoise, x, gammas).abs()[0].numpy()
    # image k of the batch gets noise at step k only: the variances of independent noises add
    unit = torch.eye(len(gammas), dtype=torch.float64)
    return sampler(denoise, x, gammas, lambda step: unit[:, step : step + 1]).square().sum(0).sqrt().numpy()


def relative_wasserstein(sampler, variance, gammas):
    """Wasserstein-2 distance of a sampler's law to the data's, relative to the data's spread."""
    error = standard_deviation(sampler, variance, gammas) - np.sqrt(variance)
    return np.sqrt(np.sum(error**2) / np.sum(variance))


@pytest.mark.parametrize("sampler", DETERMINISTIC.values(), ids=DETERMINISTIC)
@pytest.mark.parametrize("gamma_min", [0.0, 0.02])
def test_one_level_is_one_call(sampler, gamma_min):
    x = torch.randn(2, 3, dtype=torch.float64)
    denoise = gaussian_denoiser([0.1, 0.5, 1.0], mean=0.3)
    expected = denoise(x, torch.full((2,), gamma_min, dtype=torch.float64))
    torch.testing.assert_close(sampler(denoise, x, [gamma_min]), expected)
    torch.testing.assert_close(ddpm(denoise, x, [gamma_min], noise=lambda step: 1 / 0), expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_shapes_and_inputs(name):
    levels, calls, steps = log_snr_levels(5, 0.0, 0.999), [], []
    x = torch.randn(2, 1, 4, 3)
    before = x.clone()

    def denoise(x, gamma):
        assert gamma.shape == (2,)
        assert gamma.dtype == torch.float64
        calls.append(gamma[0].item())
        return 0.5 * x

    def noise(step):
        steps.append(step)
        return torch.zeros_like(x)

    result = SAMPLERS[name](denoise, x, levels, **({"noise": noise} if name == "ddpm" else {}))
    assert result.shape == x.shape
    assert result.dtype == torch.float32
    assert torch.equal(x, before)
    assert sorted(set(calls)) == levels.tolist()
    assert len(calls) == (9 if name == "heun" else 5)
    assert steps == ([1, 2, 3, 4] if name == "ddpm" else [])


@pytest.mark.parametrize("levels", [[], [0.5, 0.1], [0.1, 0.1], [0.5, 1.0], [-0.1, 0.5]])
def test_levels_out_of_order_are_refused(levels):
    with pytest.raises(ValueError, match="increase from noise to data"):
        ddim(gaussian_denoiser([1.0]), torch.zeros(1, 1), levels)


@pytest.mark.parametrize("name", SAMPLERS)
def test_certain_data_are_found_from_pure_noise(name):
    # an oracle denoiser: any path from gamma = 0 must end at its prediction, without a NaN
    x0 = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    arguments = {"noise": lambda step: torch.ones_like(x0)} if name == "ddpm" else {}
    result = SAMPLERS[name](
        lambda x, gamma: x0, torch.full_like(x0, 2.0), log_snr_levels(6, 0.0, 0.99), **arguments
    )
    torch.testing.assert_close(result, x0)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_pure_noise_is_the_limit_of_nearly_pure_noise(name):
    variance = [0.01, 0.3, 1.0]
    limit = np.array([1e-12, 0.05, 0.3, 0.8, 0.99])
    exact = np.concatenate([[0.0], limit[1:]])
    sampler = DETERMINISTIC[name]
    close = standard_deviation(sampler, variance, limit)
    # the second step of DPM-Solver++, UniPC's predictor, keeps a slope of 1 / log(1e12) at the finite level
    tolerance = 0.1 if name in ("dpm++", "unipc") else 1e-5
    np.testing.assert_allclose(standard_deviation(sampler, variance, exact), close, rtol=tolerance)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++", 2), ("unipc", 2), ("heun", 2)])
def test_deterministic_samplers_converge_at_their_order(name, order):
    """The probability-flow equation of Gaussian data scales x by its marginal standard deviation."""
    variance, first, last = np.array([0.05, 0.3, 2.0]), 0.01, 0.99
    marginal = [np.sqrt(gamma * variance + 1 - gamma) for gamma in (first, last)]
    at_end = torch.tensor(marginal[1] / marginal[0])[None]
    exact = gaussian_denoiser(variance)(at_end, torch.tensor([last], dtype=torch.float64))[0].numpy()
    errors = [
        np.linalg.norm(
            standard_deviation(DETERMINISTIC[name], variance, log_snr_levels(steps, first, last)) - exact
        )
        for steps in (41, 81, 161)
    ]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, order, atol=0.25)


def test_eight_calls_of_unipc_draw_what_is_coarse_and_what_is_fine():
    """Modes of residuals have variances of 150 (coarse) to 0.1 (fine), in units of the mean one."""
    variance = np.array([150, 60, 22, 8, 3, 1, 0.3, 0.1])
    levels = log_snr_levels(8, 0.0, GAMMA_LAST)
    ratio, plain = (
        standard_deviation(s, variance, levels) / variance**0.5 for s in (unipc, dpm_solver_pp_2m)
    )
    np.testing.assert_allclose(ratio, 1, atol=0.055)
    np.testing.assert_allclose(ratio[1:], 1, atol=0.03)
    assert (abs(plain - 1) > 2 * abs(ratio - 1))[0]


def test_ancestral_sampling_converges_at_first_order():
    variance = np.array([0.05, 0.3])
    errors = [
        relative_wasserstein(ddpm, variance, log_snr_levels(n, 1e-6, 1 - 1e-6)) for n in (100, 200, 400)
    ]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 1, atol=0.1)


def test_the_mean_of_the_data_is_kept():
    mean = torch.tensor([0.5, -0.2], dtype=torch.float64)
    denoise = gaussian_denoiser([0.02, 0.1], mean)
    for name, sampler in DETERMINISTIC.items():
        result = sampler(denoise, torch.zeros(1, 2, dtype=torch.float64), log_snr_levels(20, 0.0, 0.9999))
        torch.testing.assert_close(result[0], mean, rtol=0.02, atol=0, msg=name)


PUBLISHED_TEST, PUBLISHED_TEST_VEM = (linear_gammas(1e-4, 9e-2, calls) for calls in (1000, 200))

# spectra of the residual given the condition: from nearly certain to broad
SPECTRA = {
    "certain (0.1)": np.full(8, 0.1**2),
    "between (0.05 to 0.3)": np.linspace(0.05, 0.3, 16) ** 2,
    "broad (1 / f)": 0.5 / np.arange(1, 65),
    "steep (1 / f^2)": 0.5 / np.arange(1, 65) ** 2.0,
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_twelve_calls_beat_the_published_thousand(spectrum):
    variance = SPECTRA[spectrum]
    levels = log_snr_levels(12, PUBLISHED_TRAIN[0], PUBLISHED_TEST[-1])
    few = relative_wasserstein(dpm_solver_pp_2m, variance, levels)
    assert few < relative_wasserstein(ddpm, variance, PUBLISHED_TEST)
    assert few < 0.7 * relative_wasserstein(ddpm, variance, PUBLISHED_TEST_VEM)
    # DDIM with as many evaluations does not
    assert relative_wasserstein(ddim, variance, levels) > 3 * few


# the same noise levels in an independent implementation

GAMMAS = linear_gammas(1e-3, 0.15, 40)
BETAS = np.linspace(1e-3, 0.15, 40)


def toy_network(x, gamma):
    """Return a smooth function of both arguments."""
    gamma = torch.as_tensor(gamma, dtype=x.dtype).reshape(-1, 1, 1, 1)
    return torch.tanh(x + 0.3 * torch.roll(x, 1, -1)) * (1 - 0.5 * gamma)


def by_scheduler(scheduler, x, **kwargs):
    for timestep in scheduler.timesteps:
        eps = toy_network(x, scheduler.alphas_cumprod[timestep])
        x = scheduler.step(eps, timestep, x, **kwargs).prev_sample
    return x


def start():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_ddpm_equals_diffusers_with_clipping_and_the_posterior_variance():
    scheduler = DDPMScheduler(len(BETAS), trained_betas=BETAS, variance_type="fixed_small", clip_sample=True)
    scheduler.set_timesteps(len(BETAS))
    generator = torch.Generator().manual_seed(2)
    expected = by_scheduler(scheduler, start(), generator=generator)
    generator = torch.Generator().manual_seed(2)
    denoise = as_denoiser(toy_network, "epsilon", clip=(-1, 1))
    result = ddpm(denoise, start(), GAMMAS, lambda step: torch.randn(2, 1, 8, 8, generator=generator))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 5])
def test_ddim_equals_diffusers(stride):
    scheduler = DDIMScheduler(len(BETAS), trained_betas=BETAS, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(len(BETAS) // stride)
    gammas = scheduler.alphas_cumprod[scheduler.timesteps].double().numpy()
    result = ddim(as_denoiser(toy_network, "epsilon"), start(), gammas)
    torch.testing.assert_close(result, by_scheduler(scheduler, start()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_equals_diffusers(steps):
    scheduler = DPMSolverMultistepScheduler(
        len(BETAS),
        trained_betas=BETAS,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    gammas = scheduler.alphas_cumprod[scheduler.timesteps].double().numpy()
    result = dpm_solver_pp_2m(as_denoiser(toy_network, "epsilon"), start(), gammas)
    torch.testing.assert_close(result, by_scheduler(scheduler, start()), rtol=1e-4, atol=1e-4)


def test_samples_of_a_known_law_have_its_mean_and_covariance():
    generator = torch.Generator().manual_seed(3)
    root = torch.tensor([[0.3, 0.0], [0.2, 0.1]], dtype=torch.float64)
    covariance, mean = root @ root.T, torch.tensor([0.4, -0.3], dtype=torch.float64)

    def denoise(x, gamma):
        marginal = gamma[0] * covariance + (1 - gamma[0]) * torch.eye(2, dtype=torch.float64)
        gain = gamma[0].sqrt() * covariance @ torch.linalg.inv(marginal)
        return mean + (x - gamma[0].sqrt() * mean) @ gain.T

    x = q_sample(torch.zeros(20000, 2), 0.0, torch.randn(20000, 2, generator=generator)).double()
    samples = dpm_solver_pp_2m(denoise, x, log_snr_levels(20, 0.0, 1 - 1e-5))
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(torch.cov(samples.T), covariance, rtol=0.06, atol=0.002)
