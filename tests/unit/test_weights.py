"""Models on disk are complete or absent, and read strictly; no code in a published checkpoint is executed."""

import hashlib
import json
import os
import re
import shutil

import pytest
import torch
from plain_unet import PlainUNet, random_weights
from restoring import settings
from safetensors.torch import load_file, save_file

from emdiffuse.models.description import Description, UnetSpec, read_description
from emdiffuse.models.importing import import_model
from emdiffuse.models.networks.build import UNet, build_network, load_network
from emdiffuse.models.networks.weights import SCHEDULE_BUFFERS, import_published, save_model
from emdiffuse.models.processes import NativeProcess
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.tiles import restore
from emdiffuse.runtime.errors import EmdiffuseError, ModelError

SPEC = UnetSpec(in_channels=2, base_channels=8, multipliers=(1, 2), blocks=1, head_channels=8)
DENOISER = Description(task="emdiffuse-n", network=SPEC)


HOSTILE = [("in_channels", True), ("in_channels", 2.5), ("blocks", "1"), ("blocks", 10**6), ("blocks", 0)]
HOSTILE += [("multipliers", [10**6]), ("multipliers", []), ("multipliers", [1] * 99), ("multipliers", None)]
HOSTILE += [("dropout", float("nan")), ("dropout", float("inf")), ("base_channels", 1e6), ("slice_index", 0)]
"""Values of a U-Net that are refused before building it."""


def edit(**changes):
    """Return a function that changes keys of a description's network."""
    return lambda path: rewrite(path, **changes)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    directory = tmp_path / "best"
    save_model(directory, build_network(SPEC), DENOISER)
    return directory


@pytest.fixture(scope="module")
def published():
    """Random weights of the published 2-D network."""
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in UNet(2).state_dict().items()}
    return random_weights(shapes, seed=3)


def test_a_model_comes_back_as_it_was(model):
    torch.manual_seed(0)
    network, loaded = build_network(SPEC), load_network(model)
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert read_description(model).format == "emdiffuse-model"
    assert sorted(path.name for path in model.iterdir()) == ["model.json", "model.safetensors"]


def test_a_failed_write_leaves_the_old_model(model, monkeypatch):
    before = {path.name: path.read_bytes() for path in model.iterdir()}

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("emdiffuse.models.networks.weights.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, build_network(SPEC), DENOISER)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("model.json", lambda path: path.unlink(), "No such file"),
        ("model.json", lambda path: os.truncate(path, 30), "truncated"),
        ("model.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "truncated"),
        ("model.json", lambda path: path.write_text("[1]"), "does not describe an emdiffuse model"),
        (
            "model.json",
            lambda path: path.write_text('{"format": "emdiffuse-model", "version": 9}'),
            "version 9",
        ),
        (
            "model.json",
            lambda path: path.write_text('{"format": "emdiffuse-model", "version": 1}'),
            "task: this",
        ),
        ("model.json", lambda path: path.write_text("[" * 100_000), "truncated"),
        ("model.json", lambda path: rewrite(path, architecture="resnet"), "network: .*'native', 'unet'"),
        ("model.json", lambda path: rewrite(path, flavour="odd"), "network.flavour: unknown key"),
        *[("model.json", edit(**{key: value}), f"network.{key}") for key, value in HOSTILE],
        ("model.json", lambda path: rewrite(path, blocks=2), "missing, such as input_blocks"),
        ("model.safetensors", lambda path: path.unlink(), "cannot be read"),
        ("model.safetensors", lambda path: os.truncate(path, 1000), "not a complete safetensors file"),
        ("model.safetensors", lambda path: path.write_bytes(b"not safe"), "not a complete safetensors file"),
    ],
)
def test_damage_is_one_sentence_that_names_the_file(model, file, damage, sentence):
    damage(model / file)
    with pytest.raises(ModelError, match=sentence) as error:
        load_network(model)
    assert str(model) in str(error.value)
    assert isinstance(error.value, EmdiffuseError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conditions", 10**6),
        ("factors", [6, 4]),
        ("factors", [2, 1e9]),
        ("residual_scale", float("nan")),
        ("residual_scale", 0),
        ("channels", 12),
    ],
)
def test_the_native_network_is_checked_as_strictly(small_model, tmp_path, key, value):
    shutil.copytree(small_model, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path / "model.json", **{key: value})
    with pytest.raises(ModelError, match=f"model.json: network.*{key}"):
        read_description(tmp_path)


def test_a_native_model_of_an_old_version_is_refused_in_a_sentence(small_model, tmp_path):
    shutil.copytree(small_model, tmp_path, dirs_exist_ok=True)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**description, "version": 1}))
    with pytest.raises(ModelError, match="native models of version 1 are no longer supported"):
        load_network(tmp_path)


def test_a_network_that_the_weights_do_not_fill_is_never_allocated(model):
    rewrite(model / "model.json", base_channels=2048, multipliers=[64] * 8)  # 10^14 weights
    with pytest.raises(ModelError, match="does not contain the weights"):
        load_network(model)


def rewrite(path, **changes):
    description = json.loads(path.read_text())
    description["network"].update(changes)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize("prefix", ["", "denoise_fn."])
def test_published_checkpoint_is_imported_and_reached(tmp_path, published, prefix):
    state = {prefix + name: tensor for name, tensor in published.items()}
    if prefix:
        state |= {name: torch.zeros(2000) for name in SCHEDULE_BUFFERS}
    torch.save(state, tmp_path / "20_Network_ema.pth")
    network, description = import_published(tmp_path / "20_Network_ema.pth", "emdiffuse-n")
    save_model(tmp_path / "best", network, description)

    loaded = load_network(tmp_path / "best")
    x, gamma = torch.randn(1, 2, 16, 16), torch.rand(1)
    with torch.no_grad():
        expected = PlainUNet(published)(x, gamma)
        assert (loaded(x, gamma) - expected).norm() < 1e-5 * expected.norm()
    description = read_description(tmp_path / "best")
    assert description.task == "emdiffuse-n" and not description.native
    assert description.network == UnetSpec(in_channels=2)
    assert description.objective.prediction == "epsilon"
    assert (description.sampler.name, description.sampler.steps) == ("ddim", 8)
    (source,) = description.sources
    assert source.path == "20_Network_ema.pth"
    assert source.sha256 == hashlib.sha256((tmp_path / source.path).read_bytes()).hexdigest()


def test_volume_checkpoint_takes_an_index(tmp_path):
    torch.save(UNet(3, slice_index=True).state_dict(), tmp_path / "vem.pth")
    network, description = import_published(tmp_path / "vem.pth", "vemdiffuse-a")
    assert description.network == UnetSpec(in_channels=3, slice_index=True)
    assert network(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long)).shape == (
        1,
        1,
        8,
        8,
    )


def test_wrong_weights_are_named(tmp_path, published):
    state = dict(published)
    state["out.2.extra"] = state.pop("out.2.bias")
    state["out.0.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ModelError) as error:
        import_published(tmp_path / "odd.pth", "emdiffuse-n")
    for part in (
        "odd.pth",
        "missing, such as out.2.bias",
        "not used, such as out.2.extra",
        "out.0.bias (7,) instead of (32,)",
    ):
        assert part in str(error.value)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (Trap(), "not a checkpoint that contains only weights"),
        ({"weight": Trap()}, "not a checkpoint that contains only weights"),
        ({"iter": 3}, "not a state dict"),
        ([torch.zeros(1)], "not a state dict"),
    ],
)
def test_nothing_but_weights_is_read(tmp_path, monkeypatch, content, sentence):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "other.pth")
    with pytest.raises(ModelError, match=sentence):
        import_published("other.pth", "emdiffuse-n")
    assert not (tmp_path / "executed").exists()


def test_unreadable_checkpoints_and_unknown_tasks(tmp_path, published):
    with pytest.raises(ModelError, match=r"none\.pth cannot be read"):
        import_published(tmp_path / "none.pth", "emdiffuse-n")
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "cut.pth")
    os.truncate(tmp_path / "cut.pth", 2000)
    with pytest.raises(ModelError, match=r"cut\.pth is not a checkpoint"):
        import_published(tmp_path / "cut.pth", "emdiffuse-n")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ModelError, match=r"empty\.pth is not a checkpoint"):
        import_published(tmp_path / "empty.pth", "emdiffuse-n")
    with pytest.raises(ModelError, match="is not a task"):
        import_published(tmp_path / "none.pth", "emdiffuse-x")


SPOILT = {
    "one NaN": lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("nan")),
    "infinity": lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("-inf")),
    "half infinity": lambda tensor: (tensor * 1e30).half(),
    "bfloat16 NaN": lambda tensor: (tensor * float("nan")).bfloat16(),
    "bool": lambda tensor: tensor > 0,
    "integers": lambda tensor: tensor.int(),
}


@pytest.mark.parametrize("way", SPOILT)
def test_weights_that_are_no_numbers_are_refused_wherever_they_are_read(
    small_model, dataset, tmp_path, way, published
):
    model = shutil.copytree(small_model, tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    save_file({**weights, name: SPOILT[way](weights[name])}, model / "model.safetensors")
    checkpoint = dict(published)
    first = next(name for name in checkpoint if name.endswith("weight"))
    torch.save({**checkpoint, first: SPOILT[way](checkpoint[first])}, tmp_path / "a.pth")
    restoration = settings()
    for read, named in (
        (lambda: load_network(model), name),
        (lambda: import_model(model, "vemdiffuse-i", tmp_path / "imported"), name),
        (lambda: make_plan(dataset, model, restoration, tmp_path / "plan.json"), name),
        (lambda: import_published(tmp_path / "a.pth", "emdiffuse-n"), first),
    ):
        with pytest.raises(ModelError, match=rf"the weight {re.escape(named)} is (NaN|of type)"):
            read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "m"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_every_precision_that_networks_have_are_read(model, dtype):
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, model / "model.safetensors")
    loaded = load_network(model)
    for name, tensor in weights.items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0.01, atol=1e-3)


def test_an_answer_that_is_not_finite_names_the_model(small_model, dataset, tmp_path, monkeypatch):
    make_plan(dataset, small_model, settings(), tmp_path / "plan.json")
    monkeypatch.setattr(
        NativeProcess, "sample", lambda self, n, batch, *_: torch.full(batch.shape, torch.nan)
    )
    with pytest.raises(ModelError, match=f"^{small_model}: the network returns NaN"):
        restore(tmp_path / "plan.json", 1, 1, "cpu")
    assert not list((tmp_path / "tiles.zarr").rglob("c/*")), "a block of these would count as done"
