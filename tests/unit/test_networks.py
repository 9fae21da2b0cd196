"""The U-Net: equal to the published one to 1e-5, in any size, and exported."""

import hashlib

import pytest
import torch
from plain_unet import PlainUNet, random_weights

from emdiffuse.models.description import UnetSpec
from emdiffuse.models.networks.blocks import (
    GroupNorm,
    double,
    sinusoidal_embedding,
    upsampled_convolution,
)
from emdiffuse.models.networks.build import UNet, build_network
from emdiffuse.models.networks.export import export_network
from emdiffuse.models.networks.precision import autocast_for

PUBLISHED = {
    "2d": (
        {"in_channels": 2},
        15_677_345,
        326,
        "fce0ba98caf4633ecc8b4613220cec56acfbb9eea98c3bd410aa90454ec108f5",
    ),
    "vem": (
        {"in_channels": 3, "slice_index": True},
        16_615_873,
        330,
        "93abbbc7ca1603f3777e2980d11b1c8fc28dbe335c29729d05034a2511708a03",
    ),
}
SMALL = {"in_channels": 2, "base_channels": 16, "multipliers": (1, 2), "blocks": 1, "head_channels": 16}


def filled(network, seed=0):
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(random_weights(shapes, seed))
    return network.eval()


def arguments(network, *shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)]
    if network.channel_embed is not None:
        inputs.append(torch.arange(shape[0]))
    return inputs


def relative(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(kind):
    kwargs, parameters, entries, digest = PUBLISHED[kind]
    with torch.device("meta"):
        state = UNet(**kwargs).state_dict()
    lines = "\n".join(sorted(f"{name} {list(tensor.shape)}" for name, tensor in state.items()))
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert len(state) == entries
    # hash of the sorted lines "name [shape]" of the published checkpoint
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_output_is_that_of_the_plain_published_network(kind, images):
    kwargs = PUBLISHED[kind][0]
    network = filled(UNet(**kwargs))
    inputs = arguments(network, images, kwargs["in_channels"], 32, 48)
    with torch.no_grad():
        expected = PlainUNet(network.state_dict())(*inputs)
        assert relative(network(*inputs), expected) < 1e-5
    assert relative(network(*inputs).detach(), expected) < 1e-5  # with autograd
    with torch.inference_mode():
        assert relative(network(*inputs), expected) < 1e-5
    assert expected.std() > 0.1


def test_half_the_base_has_half_the_groups():
    network = filled(UNet(2, base_channels=16))
    assert {module.num_groups for module in network.modules() if isinstance(module, GroupNorm)} == {16}
    inputs = arguments(network, 2, 2, 16, 16)
    with torch.no_grad():
        assert relative(network(*inputs), PlainUNet(network.state_dict())(*inputs)) < 1e-5


def test_group_norm_is_exact_on_large_images_far_from_zero():
    norm = filled(GroupNorm(4, 8))
    x = torch.randn(2, 8, 256, 256, generator=torch.Generator().manual_seed(0)) + 30
    scale, shift = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    double = torch.nn.GroupNorm(4, 8, dtype=torch.float64)
    double.load_state_dict(norm.state_dict())
    expected = (double(x.double()) * (1 + scale[..., None, None]) + shift[..., None, None]).detach()
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            result = norm(x.contiguous(memory_format=layout), (scale, shift))
        assert relative(result.double(), expected) < 3e-6
        assert result.is_contiguous(memory_format=layout)


def test_embedding_is_cosines_then_sines_of_the_unscaled_value():
    embedded = sinusoidal_embedding(torch.tensor([0.5]), 4)
    angles = torch.tensor([0.5, 0.005])
    torch.testing.assert_close(embedded[0], torch.cat([angles.cos(), angles.sin()]))


def test_upsampled_convolution_is_one_transposed_convolution():
    convolve = torch.nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(2, 3, 6, 4)
    torch.testing.assert_close(upsampled_convolution(x, convolve), convolve(double(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_plain_network(checkpointing):
    network = filled(UNet(2, base_channels=16, checkpointing=checkpointing)).train()
    inputs = arguments(network, 2, 2, 16, 16)
    network(*inputs).square().mean().backward()

    weights = {name: tensor.clone().requires_grad_() for name, tensor in network.state_dict().items()}
    PlainUNet(weights)(*inputs).square().mean().backward()
    size = torch.stack([tensor.grad.norm() for tensor in weights.values()]).norm()
    for name, parameter in network.named_parameters():
        error = (parameter.grad - weights[name].grad).norm()
        assert error <= 1e-4 * weights[name].grad.norm() + 1e-6 * size, name


def test_dropout_acts_in_training_alone():
    network = filled(UNet(**SMALL, dropout=0.5))
    inputs = arguments(network, 1, 2, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(*inputs), network(*inputs))
        network.train()
        assert not torch.equal(network(*inputs), network(*inputs))


def test_inputs_are_not_overwritten():
    network = filled(UNet(**SMALL))
    inputs = arguments(network, 1, 2, 8, 8)
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    before = inputs[0].clone()
    with torch.no_grad():
        network(*inputs)
    assert torch.equal(inputs[0], before)


@pytest.mark.parametrize("slices", [1, 5])
def test_three_dimensions_keep_any_number_of_slices(slices):
    network = filled(UNet(**SMALL, dims=3))
    assert network.input_blocks[0][0].weight.shape == (16, 2, 3, 3, 3)
    inputs = arguments(network, 2, 2, slices, 8, 12)
    with torch.no_grad():
        output = network(*inputs)
    assert output.shape == (2, 1, slices, 8, 12)
    assert relative(network(*inputs).detach(), output) < 1e-5


def test_three_dimensions_restore_slices_jointly():
    network = filled(UNet(**SMALL, dims=3))
    x, gamma = arguments(network, 1, 2, 5, 8, 8)
    with torch.no_grad():
        before = network(x, gamma)
        x[:, :, 4] += 1
        assert not torch.allclose(network(x, gamma)[:, :, 0], before[:, :, 0])


def test_mistakes_are_said_clearly():
    network = UNet(**SMALL)
    with pytest.raises(ValueError, match="multiples of 2, not 9 x 8"):
        network(torch.zeros(1, 2, 9, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="4 axes, not 5"):
        network(torch.zeros(1, 2, 5, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="takes no slice index"):
        network(torch.zeros(1, 2, 8, 8), torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="index of the slice is missing"):
        UNet(**SMALL, slice_index=True)(torch.zeros(1, 2, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        UNet(2, dims=4)


def test_build_network_passes_the_arguments_on():
    spec = UnetSpec(**SMALL, out_channels=2)
    assert build_network(spec)(torch.zeros(1, 2, 8, 8), torch.zeros(1)).shape == (1, 2, 8, 8)


def test_precision_follows_the_device():
    autocast, scaler = autocast_for("cpu")
    assert not scaler.is_enabled()
    network = filled(UNet(**SMALL))
    inputs = arguments(network, 2, 2, 8, 8)
    with torch.no_grad():
        expected = network(*inputs)
        with autocast:
            assert torch.equal(network(*inputs), expected)
        with autocast_for("cpu", "bfloat16")[0]:
            rough = network(*inputs)
    assert rough.dtype == torch.bfloat16
    assert 1e-5 < relative(rough.float(), expected) < 0.05
    with pytest.raises(ValueError, match="'int8'"):
        autocast_for("cpu", "int8")


def test_exported_network_equals_the_eager_one(tmp_path):
    network = filled(UNet(**SMALL, slice_index=True))
    inputs = arguments(network, 1, 2, 16, 16)
    torch.export.save(export_network(network, *inputs), tmp_path / "network.pt2")
    exported = torch.export.load(tmp_path / "network.pt2").module()
    other = arguments(network, 1, 2, 16, 16, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(exported(*other), network(*other), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="call eval"):
        export_network(network.train(), *inputs)
