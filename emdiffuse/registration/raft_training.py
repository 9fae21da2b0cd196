"""Train RAFT on electron micrographs with synthetic smooth deformations.

Conventions
-----------
* A sample is cut from one place of a source: ``moving`` directly (rotated, mirrored, scaled at random),
  ``fixed`` through a smooth random flow, so that ``moving(p + flow(p))`` is ``fixed(p)`` exactly.
  Both are interpolated once, and degraded separately: blur, contrast, noise, mostly stronger in one of them.
* A source is a stack (z, y, x), with planes taken along any axis, or a pair of images (y, x) of the
  same field, with their own noise.
* The last eighth of each source (along y; along z for a thick stack) is used only for validation.
* Progress is the fraction of the wall time used; it sets the learning rate (one cycle) and the size of the
  deformations.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.optical_flow import raft_small

from emdiffuse.readers import open_source
from emdiffuse.registration.raft import UPDATES, as_input
from emdiffuse.registration.warping import normalised
from emdiffuse.runtime import checkpoints
from emdiffuse.runtime.atomic import replaced_file
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.runtime.outputs import PROGRAM, require_free
from emdiffuse.runtime.progress import logger

VALIDATION_SAMPLES = 24
THICK = 64
"""Minimum number of slices of a volume, in which planes are taken along all three axes."""
REPORT_SECONDS = 120.0
Image = NDArray[np.float32]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """Settings of RAFT training.

    Attributes
    ----------
    minutes : float
        Wall time.
    size, batch : int
        Height and width of a crop in pixels, at least 128; and crops per step.
    updates : int
        Flow iterations in training.
    rate : float
        Peak learning rate of AdamW.
    ema : float
        Decay of the moving average of the weights, which is the result.
    gamma : float
        Weight of an iteration relative to the next one in the sequence loss.
    seed : int
        Random seed of weights and crops.
    """

    minutes: float = 45.0
    size: int = 128
    batch: int = 4
    updates: int = 4
    rate: float = 6e-4
    ema: float = 0.995
    gamma: float = 0.8
    seed: int = 0


@dataclass(frozen=True)
class Micrographs:
    """A stack (z, y, x), or a pair of images (y, x) of one field with independent noise."""

    images: tuple[NDArray[Any], ...]

    def split(self) -> tuple[Micrographs, Micrographs]:
        """Return the training and the validation part."""
        axis = 0 if self.images[0].ndim == 2 or len(self.images[0]) >= THICK else 1
        cut = self.images[0].shape[axis] * 7 // 8
        parts = [np.split(image, [cut], axis) for image in self.images]
        return Micrographs(tuple(part[0] for part in parts)), Micrographs(tuple(part[1] for part in parts))

    def draw(self, rng: np.random.Generator) -> list[Image]:
        """Return moving and fixed image before deformation: one plane twice, or the pair in either order."""
        if len(self.images) == 2:
            return [self.images[i].astype(np.float32) for i in rng.permutation(2)]
        stack = self.images[0]
        axis = int(rng.integers(3)) if min(stack.shape) >= THICK else 0
        plane = np.take(stack, rng.integers(stack.shape[axis]), axis).astype(np.float32)
        return [plane, plane]


def smooth_flow(rng: np.random.Generator, size: int, amplitude: float, wavelength: float) -> Image:
    """Return a smooth random flow (2, size, size) with a largest component of `amplitude` pixels.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    size : int
        Height and width.
    amplitude : float
        Largest component, in pixels.
    wavelength : float
        Distance, in pixels, between the random knots of the cubic interpolation.
    """
    knots = int(np.ceil(size / wavelength)) + 3
    enlarged = round(knots * wavelength)
    y, x = (rng.random(2) * (enlarged - size)).astype(int)
    parts = [
        cv2.resize(rng.standard_normal((knots, knots)), (enlarged, enlarged), interpolation=cv2.INTER_CUBIC)
        for _ in range(2)
    ]
    flow = np.stack([np.asarray(part)[y : y + size, x : x + size] for part in parts])
    return np.asarray(flow * amplitude / np.abs(flow).max(), np.float32)


def sample(
    rng: np.random.Generator, source: Micrographs, size: int, strength: float
) -> tuple[Image, Image, Image]:
    """Return (moving, fixed, flow) cut from a source: normalised images (size, size), flow (2, size, size).

    Parameters
    ----------
    rng : Generator
        Source of chance.
    source : Micrographs
        Source of the sample.
    size : int
        Height and width.
    strength : float
        Factor of the displacements; 1 means mostly up to 8 pixels, in some up to 15.
    """
    planes = source.draw(rng)
    angle, scale = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(0.5), np.log(1.2)))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[0] *= rng.choice([-1, 1])
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij"))
    flow = _flow(rng, grid, strength)
    extent = scale * size / 2
    centre = np.array([rng.uniform(min(extent, n / 2), max(n - extent, n / 2)) for n in planes[0].shape])
    crops = []
    strong = rng.integers(2)
    for index, (plane, places) in enumerate(zip(planes, (grid, grid + flow), strict=True)):
        y, x = (np.einsum("ij,jyx->iyx", turn, places) + centre[:, None, None]).astype(np.float32)
        crop = cv2.remap(plane, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        as_it_is = len(source.images) == 2 and rng.random() < 0.7
        level = 0.0 if as_it_is else rng.uniform(0, 1.4 if index == strong else 0.3)
        crops.append(normalised(degraded(rng, np.asarray(crop, np.float32), level)))
    return crops[0], crops[1], flow


def _flow(rng: np.random.Generator, grid: NDArray[np.float64], strength: float) -> Image:
    """Return a random flow, the sum of a smooth and a small affine one."""
    wavelength = rng.uniform(24, 90)
    largest = rng.uniform(0, 8) if rng.random() < 0.85 else rng.uniform(8, 15)
    flow = smooth_flow(rng, grid.shape[1], strength * min(largest, wavelength / 4), wavelength)
    linear = np.einsum("ij,jyx->iyx", rng.uniform(-0.02, 0.02, (2, 2)), grid)
    shift = rng.uniform(-2, 2, 2)[:, None, None]
    return np.asarray(flow + strength * (linear + shift), np.float32)


def degraded(rng: np.random.Generator, image: Image, level: float) -> Image:
    """Return a simulated second scan of an image: blurred, with other contrast and noise.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    image : ndarray
        (y, x).
    level : float
        Standard deviation of the noise, in standard deviations of the image; in half of the cases it grows
        with intensity, and in half it is correlated between neighbours.
    """
    image = (image - image.mean()) / max(float(image.std()), 1e-3)
    if rng.random() < 0.5:
        image = _blurred(image, rng.uniform(0.3, 1.3))
    if rng.random() < 0.3:
        bend = rng.uniform(0.05, 0.5)
        image = np.sinh(image * bend) / bend
    noise = rng.standard_normal(image.shape).astype(np.float32)
    if rng.random() < 0.5:
        noise = _blurred(noise, rng.uniform(0.4, 0.9))
        noise /= noise.std()
    if rng.random() < 0.5:
        noise = noise * np.sqrt(np.clip(1 + 0.4 * image, 0.1, None))
    return np.asarray(image + level * noise, np.float32)


def _blurred(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def sequence_loss(flows: Sequence[Tensor], truth: Tensor, gamma: float) -> Tensor:
    """Return the absolute error over all iterations, weighting later ones more (Teed & Deng 2020)."""
    errors = [(flow - truth).abs().mean() for flow in flows]
    return torch.stack([gamma**age * error for age, error in enumerate(reversed(errors))]).sum()


@dataclass
class _Training:
    """A training in progress."""

    recipe: Recipe
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: Weights
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.recipe.minutes)

    def advance(self, sources: Sequence[Micrographs]) -> None:
        """Take one step."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, 1, self.step))
        strength = min(1.0, 0.25 + 2.25 * self.progress)  # full strength after a third of the time
        moving, fixed, truth = _batch(rng, sources, recipe, strength)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate * _one_cycle(self.progress)
        flows = self.network(fixed, moving, num_flow_updates=recipe.updates)
        loss = sequence_loss(flows, truth, recipe.gamma)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.step += 1
        decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)

    def save(self, path: Path, identity: str) -> None:
        """Write the state to resume from."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        facts = {"average": self.average, "step": self.step, "seconds": self.seconds, "identity": identity}
        checkpoints.write(path, {**state, **facts})

    def restore(self, saved: dict[str, Any]) -> None:
        """Resume from a saved state."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average, self.step, self.seconds = saved["average"], saved["step"], saved["seconds"]


def train_raft(
    sources: Sequence[Micrographs],
    out: Path,
    recipe: Recipe,
    inputs: Iterable[Path] = (),
    overwrite: bool = False,
) -> None:
    """Train `raft_small` from scratch, or resume an interrupted training.

    Parameters
    ----------
    sources : sequence of Micrographs
        Stacks and pairs.
    out : Path
        Weights to write: safetensors in float16. The state to resume from is kept beside them until the end.
    recipe : Recipe
        Settings.
    inputs : iterable of Path
        Files of the sources, which `out` must not replace.
    overwrite : bool
        Whether to replace a file of that name that emdiffuse did not write.

    Raises
    ------
    OutputError
        If such a file exists, or `out` is an input.
    ConfigError
        If there is nothing to train on, or `out` is not a safetensors file.
    """
    if not sources:
        raise ConfigError("train-raft: there are no images to train on; give --stack or --pair")
    if out.suffix != ".safetensors":
        raise ConfigError(
            f"{out}: weights are written as safetensors; choose a name that ends in .safetensors"
        )
    if not 0 <= recipe.minutes < math.inf:
        raise ConfigError(f"--minutes: {recipe.minutes:g} is not a duration; give 0 or more minutes")
    require_free(out, inputs, overwrite)
    torch.manual_seed(recipe.seed)
    parts = [source.split() for source in sources]
    shapes = [[image.shape for image in source.images] for source in sources]
    identity = hashlib.sha256(json.dumps([asdict(recipe), shapes]).encode()).hexdigest()
    network = raft_small(weights=None)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=1e-5)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    training = _Training(recipe, network, optimizer, average)
    state = out.with_name(f".{out.name}.training")
    out.parent.mkdir(parents=True, exist_ok=True)
    if (saved := checkpoints.read(state, identity)) is not None:
        training.restore(saved)
    began, reported = time.monotonic() - training.seconds, training.seconds
    while training.progress < 1:
        training.advance([part for part, _ in parts])
        training.seconds = time.monotonic() - began
        if training.seconds - reported >= REPORT_SECONDS or training.progress >= 1:
            reported = training.seconds
            training.save(state, identity)
            error, still = validate(training.average, [part for _, part in parts], recipe)
            logger.info(
                "step %d, %.0f min: loss %.3f; validation: error %.3f px, %.3f px without registration",
                *(training.step, training.seconds / 60, np.mean(training.losses), error, still),
            )
            training.losses.clear()
    _write(out, training.average)
    state.unlink(missing_ok=True)


def _write(out: Path, weights: Weights) -> None:
    """Write weights in float16."""
    half = {name: value.half().contiguous() for name, value in weights.items()}
    with replaced_file(out) as partial:
        save_file(half, partial, metadata={"program": PROGRAM, "network": "raft_small"})


def _one_cycle(progress: float) -> float:
    """Return the learning-rate factor: linear rise over a twentieth, then cosine decay."""
    if progress < 0.05:
        return 0.1 + 0.9 * progress / 0.05
    return 0.005 + 0.995 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)) / 2


def _batch(
    rng: np.random.Generator, sources: Sequence[Micrographs], recipe: Recipe, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch (moving, fixed, flow); the flow is (n, 2, y, x) with components (x, y)."""
    chosen = [sources[int(rng.integers(len(sources)))] for _ in range(recipe.batch)]
    drawn = [sample(rng, source, recipe.size, strength) for source in chosen]
    moving, fixed, flow = (np.stack(part) for part in zip(*drawn, strict=True))
    return as_input(moving), as_input(fixed), torch.from_numpy(flow[:, ::-1].copy())


def validate(weights: Weights, sources: Sequence[Micrographs], recipe: Recipe) -> tuple[float, float]:
    """Return the mean end-point error on a fixed set of samples, and that without registration."""
    network = raft_small(weights=None).eval()
    network.load_state_dict(weights)
    rng = np.random.default_rng((recipe.seed, 2))
    found = []
    with torch.inference_mode():
        for _ in range(-(-VALIDATION_SAMPLES // recipe.batch)):
            moving, fixed, truth = _batch(rng, sources, recipe, 1.0)
            flow = network(fixed, moving, num_flow_updates=UPDATES)[-1]
            found.append([(flow - truth).norm(dim=1).mean().item(), truth.norm(dim=1).mean().item()])
    error, still = np.mean(found, axis=0)
    return float(error), float(still)


def read_sources(stacks: Sequence[Path], pairs: Sequence[tuple[Path, Path]]) -> list[Micrographs]:
    """Read stacks, and pairs of images of one field.

    Raises
    ------
    DataError
        If a source cannot be used.
    """
    sources = [Micrographs((_read_stack(path),)) for path in stacks]
    for moving, fixed in pairs:
        images = _read_stack(moving)[0], _read_stack(fixed)[0]
        if images[0].shape != images[1].shape:
            raise DataError(f"{moving}: its size differs from that of {fixed}; give registered pairs")
        sources.append(Micrographs(images))
    return sources


def _read_stack(path: Path) -> NDArray[Any]:
    slices = open_source(str(path))
    return np.concatenate([slices.read(z, z + 1) for z in range(slices.shape[0])])
