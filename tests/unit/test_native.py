"""The native network: local, equivariant to its grid, blind at pure noise, with any number of slices."""

import pytest
import torch
from plain_native import PlainNative
from plain_unet import random_weights

from emdiffuse.models.networks.build import NativeNetwork, load_network
from emdiffuse.models.networks.export import export_network
from emdiffuse.models.networks.growth import grow
from emdiffuse.models.networks.native import linear_interpolation


@pytest.fixture
def network(small_model):
    return load_network(small_model)


def inputs(size=32, depth=5, count=2, factor=6.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((count, depth, size, size), generator=generator)
    condition = torch.randn((count, 4, size, size), generator=generator)
    positions = (torch.arange(1, depth + 1) / (depth + 1)).expand(count, -1)
    kind = torch.full((count,), factor), torch.zeros(count)
    return x, torch.full((count,), 0.4), condition, positions, *kind


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
THICK = [(i - 2.5) / 6 for i in range(9)]
CASES = {
    "image": ({"conditions": 1}, [[0.5]] * 2, [1.0, 1.0], 0.0),
    "a gap of six": ({}, [[i / 6 for i in range(1, 6)]] * 2, [6.0, 6.0], 0.0),
    "no whole factor": ({}, [[8 / 45, 16 / 45, 24 / 45, 32 / 45, 40 / 45]] * 2, [5.625, 5.625], 0.0),
    "two factors": ({}, [[1 / 4, 2 / 4, 3 / 4], [1 / 3, 2 / 3, NAN]], [4.0, 3.0], 0.0),
    "thick slices at the end of a volume": ({}, [THICK] * 2, [6.0, 6.0], 1.0),
    "beyond what is trained": (
        {"factors": (4, 6), "thickness": (0, 0.5)},
        [[0.25, 0.5]] * 2,
        [2.0, 12.0],
        0.9,
    ),
}


@pytest.mark.parametrize("settings, positions, factor, thickness", CASES.values(), ids=CASES.keys())
def test_the_network_is_its_plain_form(settings, positions, factor, thickness):
    """Skipping, caching and overwriting change neither the output nor any gradient."""
    network = healthy(channels=8, residual_scale=0.3, **settings)
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for tensor in weights.values():
        tensor.requires_grad_()
    kind = torch.tensor(positions), torch.tensor(factor), torch.full((2,), thickness)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, kind[0].shape[1], 32, 32), generator=generator)
    condition = torch.randn((2, settings.get("conditions", 4), 32, 32), generator=generator)
    gamma = torch.tensor([0.4, 0.0])

    known = {name: settings[name] for name in ("factors", "thickness") if name in settings}
    plain = PlainNative(weights, 0.3, **known)(x, gamma, condition, *kind)
    output = network(x, gamma, condition, *kind)
    with torch.no_grad():
        flow = network.bind(condition, *kind)
        overwriting = [flow(x, gamma), flow(x, gamma)]
    for result in (output, *overwriting):
        torch.testing.assert_close(result, plain, rtol=0, atol=1e-5 * plain.std().item())
    plain.square().mean().backward()
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        wanted = weights[name].grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


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
    x, gamma, condition, positions, *kind = inputs()
    padded = torch.cat([positions, torch.full((2, 1), float("nan"))], 1)
    more = network(torch.cat([x, torch.randn(2, 1, 32, 32)], 1), gamma, condition, padded, *kind)
    torch.testing.assert_close(more[:, :5], network(x, gamma, condition, positions, *kind))
    assert (more[:, 5] == 0).all()


@torch.inference_mode()
def test_at_pure_noise_the_noise_is_not_shown(network):
    x, _, *known = inputs()
    pure, some = torch.zeros(2), torch.full((2,), 1e-3)
    assert torch.equal(network(x, pure, *known), network(-x, pure, *known))
    assert not torch.equal(network(x, some, *known), network(-x, some, *known))


@torch.inference_mode()
def test_all_that_is_given_is_a_condition():
    network = healthy(channels=8).eval()
    x, gamma, condition, positions, factor, thickness = inputs()
    out = network(x, gamma, condition, positions, factor, thickness)
    for other in (
        (gamma + 0.1, condition, positions, factor, thickness),
        (gamma, condition, positions * 0.9, factor, thickness),
        (gamma, condition, positions, factor + 1, thickness),
        (gamma, condition, positions, factor, thickness + 1),
    ):
        assert not torch.equal(out, network(x, *other))


@torch.inference_mode()
def test_a_slice_changes_smoothly_with_its_position():
    """Halfway, a slice changes about half as much: no position has separate weights."""
    network = healthy(channels=8).eval()
    x, gamma, condition, _, *kind = inputs(depth=1, factor=6.0)

    def at(t):
        return network(x, 0 * gamma, condition, torch.full((2, 1), t), *kind)

    for t in (0.0, 1 / 12, 0.31, 0.5, 0.9):
        near, far = ((at(t + step) - at(t)).norm() for step in (1e-3, 2e-3))
        assert 0 < near < 0.05 * at(t).norm() and far / near == pytest.approx(2, rel=0.05)


def test_a_gap_of_one_factor_trains_the_weights_of_all():
    """A step on gaps of 6 has a gradient at every weight: all are trained."""
    network = healthy(channels=8)
    *known, thickness = inputs(depth=5, factor=6.0)
    network(*known, thickness + 0.5).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).float().mean() > 0.95, name


@torch.inference_mode()
def test_a_factor_beyond_those_trained_is_shown_as_the_nearest_of_them():
    network = healthy(channels=8, factors=(6, 6)).eval()
    x, gamma, condition, positions, factor, thickness = inputs()
    out = network(x, gamma, condition, positions, factor, thickness)
    torch.testing.assert_close(network(x, gamma, condition, positions, 2 * factor, thickness), out)


@torch.inference_mode()
def test_a_tile_gives_what_the_whole_image_gives(network):
    """Nothing is global: far enough from a tile's edge, its output equals the whole image's."""
    whole = inputs(size=160, count=1)
    tile = tuple(v[:, :, 16:144, 16:144] if v.ndim == 4 else v for v in whole)
    inside, there = network(*tile)[:, :, 40:-40, 40:-40], network(*whole)[:, :, 56:-56, 56:-56]
    assert (inside - there).abs().max() / there.abs().max() < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("conditions, depth", [(4, 5), (1, 1)])
def test_a_network_that_was_made_deeper_answers_as_before(conditions, depth):
    small = healthy(channels=8, multipliers=(1, 2, 2), conditions=conditions)
    large = healthy(channels=8, multipliers=(1, 2, 2), conditions=conditions, blocks=4)
    x, gamma, condition, *rest = inputs(depth=depth)
    arguments = (x, gamma, condition[:, :conditions], *rest)
    grow(small, large)
    torch.testing.assert_close(large(*arguments), small(*arguments))
    assert sum(p.numel() for p in large.parameters()) > 1.4 * sum(p.numel() for p in small.parameters())


def test_exported_network_equals_the_eager_one(network):
    x, gamma, *rest = inputs()
    graph = export_network(network, x, gamma, *rest).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(2 * x, gamma / 2, *rest), network(2 * x, gamma / 2, *rest))
