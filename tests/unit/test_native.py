"""The native network: local, equivariant to its grid, blind at pure noise, and for any number of slices."""

import pytest
import torch
from plain_native import PlainNative
from plain_unet import random_weights

from emdiffuse.models.networks.build import NativeNetwork, load_network
from emdiffuse.models.networks.export import export_network
from emdiffuse.models.networks.native import SLOTS, linear_interpolation, slot_weights


@pytest.fixture
def network(small_model):
    return load_network(small_model)


def inputs(size=32, depth=5, count=2, factor=6.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((count, depth, size, size), generator=generator)
    condition = torch.randn((count, 4, size, size), generator=generator)
    positions = (torch.arange(1, depth + 1) / (depth + 1)).expand(count, -1)
    return x, torch.full((count,), 0.4), condition, positions, torch.full((count,), factor)


def test_slices_meet_slots_or_lie_between_two():
    weights = slot_weights(torch.tensor([[0.5, 2.5 / 12, 1 / 24, float("nan")]]))[0]
    assert weights[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    torch.testing.assert_close(weights[1, :4], torch.tensor([0, 0.5, 0.5, 0]))
    assert weights[2, 0] == 1 and weights[2].sum() == 1  # before the first slot: the first slot
    assert weights[3].sum() == 0 and weights.shape == (4, SLOTS)


def test_linear_interpolation_is_exact_at_thirds():
    condition = torch.tensor([9.0, 0.0, 3.0, 9.0])[None, :, None, None]
    assert linear_interpolation(
        condition, torch.tensor([[1 / 3, 2 / 3]])
    ).flatten().tolist() == pytest.approx([1, 2])


def healthy(**settings):
    network = NativeNetwork(**settings)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(random_weights(shapes, seed=0))
    return network


NAN = float("nan")
IMAGES = {"conditions": 1, "slots": 1}
CASES = {
    "image": (IMAGES, [[0.5]] * 2, [1.0, 1.0]),
    "every second slot": ({}, [[i / 6 for i in range(1, 6)]] * 2, [6.0, 6.0]),
    "all slots": ({}, [[i / 12 for i in range(1, 12)]] * 2, [12.0, 12.0]),
    "between slots": ({}, [[8 / 45, 16 / 45, 24 / 45, 32 / 45, 40 / 45]] * 2, [5.625, 5.625]),
    "two factors": ({}, [[1 / 4, 2 / 4, 3 / 4], [1 / 3, 2 / 3, NAN]], [4.0, 3.0]),
}


@pytest.mark.parametrize("settings, positions, factor", CASES.values(), ids=CASES.keys())
def test_the_network_is_its_plain_form(settings, positions, factor):
    """What is left out, made once or overwritten changes neither the output nor any gradient."""
    network = healthy(channels=8, residual_scale=0.3, **settings)
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for tensor in weights.values():
        tensor.requires_grad_()
    positions, factor = torch.tensor(positions), torch.tensor(factor)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, positions.shape[1], 32, 32), generator=generator)
    condition = torch.randn((2, settings.get("conditions", 4), 32, 32), generator=generator)
    gamma = torch.tensor([0.4, 0.0])

    plain = PlainNative(weights, 0.3)(x, gamma, condition, positions, factor)
    output = network(x, gamma, condition, positions, factor)
    with torch.no_grad():
        flow = network.bind(condition, positions, factor)
        overwriting = [flow(x, gamma), flow(x, gamma)]
    for result in (output, *overwriting):
        torch.testing.assert_close(result, plain, rtol=0, atol=1e-5 * plain.std().item())
    plain.square().mean().backward()
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        wanted = weights[name].grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@torch.inference_mode()
def test_lower_precision_stays_near():
    network = healthy(channels=8).eval()
    flow = network.bind(*inputs()[2:])
    with torch.autocast("cpu", torch.bfloat16):
        lower = network.bind(*inputs()[2:])(*inputs()[:2])
    exact = flow(*inputs()[:2])
    assert (lower - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("depth", [1, 2, 5, 7, 11])
@torch.inference_mode()
def test_any_number_of_slices(network, depth):
    out = network(*inputs(depth=depth, factor=depth + 1.0))
    assert out.shape == (2, depth, 32, 32) and torch.isfinite(out).all() and out.std() > 0


@torch.inference_mode()
def test_an_absent_slice_changes_nothing(network):
    x, gamma, condition, positions, factor = inputs()
    padded = torch.cat([positions, torch.full((2, 1), float("nan"))], 1)
    more = network(torch.cat([x, torch.randn(2, 1, 32, 32)], 1), gamma, condition, padded, factor)
    torch.testing.assert_close(more[:, :5], network(x, gamma, condition, positions, factor))
    assert (more[:, 5] == 0).all()


@torch.inference_mode()
def test_at_pure_noise_the_noise_is_not_shown(network):
    x, _, condition, positions, factor = inputs()
    pure, some = torch.zeros(2), torch.full((2,), 1e-3)
    assert torch.equal(
        network(x, pure, condition, positions, factor), network(-x, pure, condition, positions, factor)
    )
    assert not torch.equal(
        network(x, some, condition, positions, factor), network(-x, some, condition, positions, factor)
    )


@torch.inference_mode()
def test_factor_level_and_position_are_conditions(network):
    x, gamma, condition, positions, factor = inputs()
    out = network(x, gamma, condition, positions, factor)
    assert not torch.equal(out, network(x, gamma, condition, positions, factor + 1))
    assert not torch.equal(out, network(x, gamma + 0.1, condition, positions, factor))
    assert not torch.equal(out, network(x, gamma, condition, positions * 0.9, factor))


@torch.inference_mode()
def test_a_tile_gives_what_the_whole_image_gives(network):
    """Nothing is global: far enough from a tile's edge its output is the whole image's."""
    whole = inputs(size=160, count=1)
    tile = tuple(v[:, :, 16:144, 16:144] if v.ndim == 4 else v for v in whole)
    inside, there = network(*tile)[:, :, 40:-40, 40:-40], network(*whole)[:, :, 56:-56, 56:-56]
    assert (inside - there).abs().max() / there.abs().max() < 1e-4


def test_exported_network_equals_the_eager_one(network):
    x, gamma, *rest = inputs()
    graph = export_network(network, x, gamma, *rest).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(2 * x, gamma / 2, *rest), network(2 * x, gamma / 2, *rest))
