"""Batches as large as memory allows, halved when it runs out, and compiled networks: the same volume."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from restoring import content, run, settings, volumes
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from emdiffuse.diffusion import samplers, schedules
from emdiffuse.diffusion.samplers import SAMPLERS
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.networks.build import NativeNetwork, UNet, channels_last
from emdiffuse.models.networks.compilation import CompiledNetwork
from emdiffuse.models.processes import published
from emdiffuse.restoration import tiles as restoration
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.runtime.devices import CudaMemory, fitting_batch, place_of
from emdiffuse.runtime.errors import ConfigError


class FakeMemory:
    """A device of `size` bytes; a tile takes 10."""

    def __init__(self, size):
        self.size = size

    def free(self):
        return self.size

    def peak(self, work):
        work()
        return 10


class Counting(nn.Module):
    """A network that records its batch sizes, and runs out of memory above `most` tiles."""

    def __init__(self, network, most=1000):
        super().__init__()
        self.network, self.most, self.seen = network, most, []

    def forward(self, x, *others):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(x))
        return self.network(x, *others)


def counting(small_model, most=1000):
    model = RestorationModel.load(small_model)
    return replace(model, network=Counting(model.network, most))


def restored(dataset, small_model, folder, model, batch):
    """Return the plan of a restoration by a loaded model, with 8 tiles in a block."""
    plan = make_plan(dataset, small_model, settings(block=(2, 2, 2)), folder / "plan.json")
    restore(folder / "plan.json", 1, 1, "cpu", model, batch)
    stitch(folder / "plan.json", 1, 1)
    pyramid(folder / "plan.json")
    return plan


@pytest.mark.parametrize(
    ("free", "most", "batch"),
    [
        (5, 64, 1),
        (12, 64, 1),
        (25, 64, 2),
        (79, 64, 4),
        (100, 64, 8),
        (100, 7, 4),
        (10**9, 64, 64),
        (10**9, 1, 1),
    ],
)
def test_a_batch_is_the_largest_power_of_two_that_leaves_a_fifth_free(free, most, batch):
    assert fitting_batch(lambda: None, FakeMemory(free), most) == batch


def test_memory_that_the_allocator_holds_in_reserve_is_free(monkeypatch):
    numbers = {
        "mem_get_info": (100, 500),
        "memory_reserved": 60,
        "memory_allocated": 20,
        "max_memory_allocated": 55,
    }
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    memory = CudaMemory(torch.device("cuda"))
    assert memory.free() == 140
    assert memory.peak(lambda: calls.append("work")) == 35 and calls == ["reset", "work"]


def test_one_tile_at_once_on_a_cpu(dataset, small_model, tmp_path):
    model = counting(small_model)
    restored(dataset, small_model, tmp_path, model, None)
    assert set(model.network.seen) == {1}
    assert place_of("cpu") == "cpu" and place_of("auto") in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cuda", "no 'cuda' on this machine: PyTorch finds no CUDA GPU"),
        ("cuda:0", "no 'cuda:0' on this machine"),
        ("mps", "no 'mps' on this machine: PyTorch finds no Apple GPU"),
        ("gpu", "there is no device 'gpu'; give auto, cpu, cuda, cuda:0 or mps"),
        ("cuda:one", "there is no device 'cuda:one'"),
        ("", "there is no device ''"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(monkeypatch, device, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        place_of(device)


def test_the_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert place_of("auto") == place_of("mps") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (place_of("auto"), place_of("cuda:1")) == ("cuda", "cuda:1")
    with pytest.raises(ConfigError, match="numbered from 0 to 1"):
        place_of("cuda:2")


class NoWideNumbers(TorchDispatchMode):
    """A device without float64, like an Apple GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert getattr(out, "dtype", None) is not torch.float64, f"{func} makes float64"
        return out


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_needs_no_wide_numbers_where_there_are_none(monkeypatch, sampler):
    def narrow(device):
        return torch.float32

    for module in (samplers, schedules, published):
        monkeypatch.setattr(module, "widest_float", narrow)
    levels = np.linspace(1e-3, 0.999, 4)
    with NoWideNumbers():
        white = torch.ones(1, 3, 4, 4)
        noise = [lambda step: white] if sampler == "ddpm" else []
        out = SAMPLERS[sampler](
            lambda x, gamma: x * gamma.to(x.dtype).view(-1, 1, 1, 1), white, levels, *noise
        )
    assert out.isfinite().all()


def test_the_batch_is_found_by_memory(dataset, small_model, reference, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(restoration, "memory_of", lambda device: FakeMemory(55))
    model = counting(small_model)
    plan = restored(dataset, small_model, tmp_path, model, None)
    probe = 2 * plan.sampler.steps * plan.sampler.samples
    assert set(model.network.seen[:probe]) == {1} and max(model.network.seen[probe:]) == 4
    assert "4 tiles at once fit into the memory of cpu" in caplog.text
    difference = np.abs(volumes(plan)[0].astype(int) - volumes(reference)[0])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_a_batch_that_does_not_fit_is_halved_and_the_work_goes_on(dataset, small_model, tmp_path, caplog):
    model = counting(small_model, most=2)
    plan = restored(dataset, small_model, tmp_path / "halved", model, 8)
    assert max(model.network.seen) == 2
    assert [line for line in caplog.messages if "out of memory" in line] == [
        "cpu ran out of memory: continuing with 4 tiles at once",
        "cpu ran out of memory: continuing with 2 tiles at once",
    ]
    whole = run(dataset, small_model, tmp_path / "whole", block=(2, 2, 2), batch=2)
    assert content(plan.restored) == content(whole.restored)


def test_a_device_that_runs_out_in_the_midst_loses_no_finished_block(dataset, small_model, tmp_path):
    model = counting(small_model)

    class Shrinking(Counting):
        def forward(self, x, *others):
            if len(self.seen) > 9:  # others take memory meanwhile
                self.most = 1
            return super().forward(x, *others)

    shrinking = Shrinking(model.network.network)
    plan = restored(dataset, small_model, tmp_path / "a", replace(model, network=shrinking), 2)
    assert {1, 2} == set(shrinking.seen)
    whole = run(dataset, small_model, tmp_path / "b", block=(2, 2, 2))
    for ours, theirs in zip(volumes(plan), volumes(whole), strict=True):
        assert np.abs(ours.astype(np.float64) - theirs).max() <= (1 if ours.dtype == np.uint8 else 1e-2)


@pytest.mark.parametrize("batch", [None, 4])
def test_a_tile_that_does_not_fit_is_one_sentence(dataset, small_model, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(restoration, "memory_of", lambda device: FakeMemory(1000))
    with pytest.raises(
        ConfigError, match=r"^tiling.tile: not even one tile of 64 pixels fits .*another device$"
    ):
        restored(dataset, small_model, tmp_path, counting(small_model, most=0), batch)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_gives_the_same(dims):
    torch.manual_seed(0)
    depth = (3,) * (dims - 2)
    network = UNet(dims=dims, base_channels=32, multipliers=[1, 2], blocks=1, in_channels=2).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, gamma = torch.randn(2, 2, *depth, 32, 32), torch.tensor([0.3, 0.6])
    with torch.inference_mode():
        plain = network(x, gamma)
        moved = channels_last(network)(x, gamma)
    assert (plain - moved).abs().max() <= 1e-5 * plain.abs().max()


def test_channels_last_native_network_gives_the_same():
    torch.manual_seed(0)
    network = NativeNetwork(channels=8, multipliers=[1, 2], blocks=1).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    gaps = torch.tensor([[0.25, 0.5], [0.3, 0.9]]), torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
    known = (torch.randn(2, 4, 32, 32), *gaps)
    arguments = (torch.randn(2, 2, 32, 32), torch.tensor([0.3, 0.0]), *known)
    with torch.inference_mode():
        plain = network(*arguments)
        moved = channels_last(network)(*arguments)
    assert plain.std() > 0 and (plain - moved).abs().max() <= 1e-5 * plain.abs().max()


class Smoothing(nn.Module):
    """A minimal stand-in for a native network."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x, gamma, condition, positions, factor, thickness):
        return self.convolution(x) * gamma[:, None, None, None] + condition.mean(1, keepdim=True)


def test_a_compiled_network_gives_the_same(dataset, small_model, tmp_path):
    """In batches of 4, and of the remaining 2 of a block's 6 tiles."""
    torch.manual_seed(0)
    model = replace(RestorationModel.load(small_model), network=Smoothing().eval())
    plans = []
    for name, compilation in (("plain", None), ("compiled", "reduce-overhead")):
        folder = tmp_path / name
        plans.append(make_plan(dataset, small_model, settings(block=(2, 3, 1)), folder / "plan.json"))
        restore(folder / "plan.json", 1, 1, "cpu", model, 4, compilation)
        stitch(folder / "plan.json", 1, 1)
    for plain, compiled in zip(*map(volumes, plans), strict=True):
        difference = np.abs(plain.astype(np.float64) - compiled)
        assert difference.max() <= (1 if plain.dtype == np.uint8 else 1e-3)


def test_where_nothing_can_be_compiled_it_is_one_sentence():
    from torch._inductor import config

    network = CompiledNetwork(nn.Conv2d(2, 3, 3).eval(), "default")
    sentence = r"^--compile: .* cannot be compiled here .*omit --compile$"
    without = config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
    with without, pytest.raises(ConfigError, match=sentence) as error:
        network(torch.randn(1, 2, 8, 8))
    assert "\n" not in str(error.value)
