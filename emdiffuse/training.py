"""Training: a short loop in which everything that happens at a step follows from (seed, step).

Conventions
-----------
* The order of the data, the augmentation, the noise levels and the noise of step n are drawn by generators
  seeded with (seed, n), so that a training that was killed and goes on does what it would have done.
* `run/state.pt` holds weights, their moving average, the optimizer and the step, written beside its place and
  renamed. A state of other settings or other data is not resumed into; the training begins anew.
* What is kept is the moving average of the weights (EMA), of the validation with the highest PSNR.
* What is learned from a batch, and how the network is then sampled, is the process' (`emdiffuse.processes`).
* A batch is drawn whole, then shared out among processes (`emdiffuse.parallel`) and accumulated parts: their
  numbers change rounding alone.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from emdiffuse import __version__, checkpoints
from emdiffuse.atomic import write_atomically
from emdiffuse.augmentation import augment
from emdiffuse.config import Model, Sampler, Training
from emdiffuse.errors import DataError, EmdiffuseError, StoreError
from emdiffuse.interruption import Interrupted, Stop
from emdiffuse.metrics import psnr, ssim
from emdiffuse.modelcard import write_card
from emdiffuse.networks import build_network
from emdiffuse.networks.native import NativeNetwork, plain_estimate
from emdiffuse.networks.precision import autocast_for
from emdiffuse.networks.weights import PUBLISHED_SAMPLER, load_description, load_weights, save_model
from emdiffuse.parallel import Ranks, joined
from emdiffuse.patches import PatchStore
from emdiffuse.processes import Batch, Process, new_process
from emdiffuse.progress import clock, logger, progress
from emdiffuse.settings import settings_hash
from emdiffuse.tasks import CONDITION_OFFSETS, TASKS

NATIVE_SAMPLER = {"name": "dpm++", "steps": 8}
"""What a native model is sampled with, unless the settings say otherwise: see ``benchmarks/README.md``."""

VALIDATION_PATCHES = 64
PLAIN = ("step", "seconds", "best", "history")
STATEFUL = ("network", "average", "optimizer", "scaler")


@dataclass
class State:
    """All that a training is made of at a step."""

    process: Process
    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    scaler: torch.amp.GradScaler
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    store: Path,
    model: Model,
    name: str,
    experiment: Path,
    device: str = "auto",
    stop: Stop | None = None,
) -> None:
    """Train a model from a patch store, or go on with a training that was interrupted.

    Parameters
    ----------
    store : Path
        Patch store of `patches.cut_patches`.
    model : Model
        Task, factors, network and training settings.
    name : str
        Name of the model, for its description.
    experiment : Path
        ``best/`` gets ``model.safetensors``, ``model.json`` and ``metrics.json``; ``run/`` keeps what a
        resume needs.
    device : str
        "auto", "cpu" or a CUDA device.
    stop : Stop, optional
        Looked at after each step: when a signal has come, the state is saved and the training stops.

    Raises
    ------
    Interrupted
        If it was stopped; the state is saved.
    EmdiffuseError
        If the loss becomes NaN, naming the step; if the model to begin from has another network.
    """
    patches = PatchStore(store)
    run = experiment / "run"
    run.mkdir(parents=True, exist_ok=True)
    with joined(device) as ranks, checkpoints.only_one(run / "lock") if ranks.first else nullcontext():
        ranks.require_divides(model.training.batch)
        identity = settings_hash(model, patches.facts["hash"], __version__, _origin(model))
        state = _new_state(model, patches, ranks.device)
        _resume(run / "state.pt", identity, state)
        if len({step for (step,) in ranks.gather(state.step)}) > 1:
            raise StoreError(f"{run}: the processes find different states; all nodes must share this folder")
        if ranks.first and state.step == 0:
            (run / "stats.jsonl").unlink(missing_ok=True)
        logger.info(
            "training %s on %s, process %d of %d: %d weights, %d training patches, %d validation patches",
            name, ranks.device, ranks.rank + 1, ranks.size,
            sum(p.numel() for p in state.network.parameters()),
            len(patches.training), len(patches.validation),
        )  # fmt: skip
        _loop(state, model, patches, run, identity, ranks, stop or Stop())
        if ranks.first:
            _finish(experiment, name, model, patches, state, ranks.device)
        ranks.wait()


def network_spec(model: Model, residual_scale: float) -> dict[str, Any]:
    """Return what `networks.build_network` makes of a model's settings."""
    settings, volumetric = model.network, TASKS[model.task].volumetric
    spec: dict[str, Any] = {"architecture": settings.architecture, "blocks": settings.blocks}
    if settings.multipliers is not None:
        spec["multipliers"] = list(settings.multipliers)
    if settings.architecture == "native":
        images = {} if volumetric else {"conditions": 1, "slots": 1}
        return {**spec, **images, "channels": settings.channels, "residual_scale": residual_scale}
    return {
        **spec,
        "in_channels": TASKS[model.task].published_channels,
        "out_channels": 2 if model.training.loss == "difficulty" else 1,
        "base_channels": settings.channels,
        "dropout": settings.dropout,
        "slice_index": volumetric,
    }


def _origin(model: Model) -> dict[str, Any] | None:
    """Return the description of the model whose weights are begun from, if there is one."""
    return load_description(model.training.init_from) if model.training.init_from else None


def _new_state(model: Model, patches: PatchStore, device: torch.device) -> State:
    """Build the network, its average and the optimizer."""
    training = model.training
    torch.manual_seed(training.seed)
    origin = _origin(model)
    scale = patches.facts["residual_scale"]
    if origin is not None:
        # the network answers in units of this; keeping it keeps the meaning of the weights
        scale = origin["network"].get("residual_scale", scale)
    spec = network_spec(model, scale)
    network, average = (
        build_network({**spec, "checkpointing": model.network.checkpointing}) for _ in range(2)
    )
    if training.init_from:
        load_weights(training.init_from, network)
    network, average = network.to(device), average.to(device)
    average.load_state_dict(network.state_dict())
    average.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    process = new_process(network, training)
    return State(process, network, average, optimizer, *autocast_for(device, training.precision))


def _loop(
    state: State,
    model: Model,
    patches: PatchStore,
    run: Path,
    identity: str,
    ranks: Ranks,
    stop: Stop,
) -> None:
    """Take steps until the settings' limit of steps or minutes, or until a signal comes."""
    training = model.training
    begin, saved = time.monotonic() - state.seconds, time.monotonic()
    scalars = SummaryWriter(str(run / "tensorboard"), purge_step=state.step) if ranks.first else None
    losses: list[float] = []
    batches = _batches(patches, training, state.step)
    forward = ranks.wrap(state.network)
    steps = range(state.step, training.steps)
    left = 60 * (training.minutes or math.inf) - state.seconds
    shown = progress(steps, training.steps, "training", "step", done=state.step, seconds=left)
    for step in shown if ranks.first else steps:
        share = max(step / training.steps, state.seconds / 60 / (training.minutes or math.inf))
        if share >= 1:
            logger.info("the limit of %g minutes is reached after %d steps", training.minutes, step)
            break
        own = _step(state, forward, model, next(batches), share, ranks)
        told = ranks.gather(own, stop.number, time.monotonic() - begin)
        loss, came = sum(t[0] for t in told) / ranks.size, int(max(t[1] for t in told))
        if not math.isfinite(loss):
            raise EmdiffuseError(
                f"{run}: the loss is {loss} at step {step}, patches "
                f"{_rows(patches, training, step).tolist()}; lower `learning_rate`, or look at those patches"
            )
        losses.append(loss)
        state.step, state.seconds = step + 1, told[0][2]
        if state.step % training.validate_every == 0:
            if scalars:
                _validate(state, patches, run, losses, scalars, ranks.device)
            losses.clear()
        ends = came and state.step < training.steps
        if ranks.first and (ends or time.monotonic() - saved > 60 * training.checkpoint_minutes):
            _save(run / "state.pt", identity, state)
            saved = time.monotonic()
        if ends:
            ranks.wait()  # until it is saved
            name = signal.Signals(came).name
            message = f"{run}: {name} came; the state after step {state.step} is saved: start again to go on"
            raise Interrupted(came, message)
    if scalars:
        if not state.history or state.history[-1]["step"] != state.step:
            _validate(state, patches, run, losses, scalars, ranks.device)
        _save(run / "state.pt", identity, state)
        scalars.close()


def _step(
    state: State,
    forward: nn.Module,
    model: Model,
    batch: tuple[Batch, Tensor],
    share: float,
    ranks: Ranks,
) -> float:
    """Take one optimizer step on a batch, of which this process does its part; return that part's loss."""
    device = ranks.device
    training = model.training
    generator = torch.Generator().manual_seed(_seed(training.seed, state.step, 1))
    inputs, target = augment(*batch, generator)
    arguments, wanted = state.process.example(inputs.to(device), target.to(device), generator)
    for group in state.optimizer.param_groups:
        warm = min(1.0, (state.step + 1) / max(training.warmup, 1))
        group["lr"] = training.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
    state.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(_seed(training.seed, state.step, 3))  # for dropout
    total = 0.0
    own = ranks.part(torch.arange(len(wanted), device=device))
    parts = own.chunk(training.accumulate)
    for part in parts:
        with ranks.exchanging(forward, part is parts[-1]):
            with state.autocast:
                output = forward(*(argument[part] for argument in arguments))
            loss = state.process.loss(output, wanted[part]) * (len(part) / len(own))
            state.scaler.scale(loss).backward()
        total += float(loss.detach())
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), training.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    decay = min(training.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        pairs = zip(state.average.parameters(), state.network.parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - decay)
    return total


def _seed(seed: int, step: int, stream: int) -> int:
    """Return a seed of its own for a step and a purpose."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _rows(patches: PatchStore, training: Training, step: int) -> NDArray[np.int64]:
    """Return the patches of a step: each epoch is a permutation of its own."""
    count = len(patches.training)
    places = step * training.batch + np.arange(training.batch)
    orders = {
        e: np.random.default_rng([training.seed, int(e)]).permutation(count)
        for e in np.unique(places // count)
    }
    rows = [orders[p // count][p % count] for p in places]
    return patches.training[rows]


def _batches(patches: PatchStore, training: Training, step: int) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches from a step on; the next ones are read in a thread while the network works."""

    def read(number: int) -> tuple[Batch, Tensor]:
        batch, target = read_batch(patches, _rows(patches, training, number))
        if torch.cuda.is_available():
            batch, target = Batch(*(tensor.pin_memory() for tensor in batch)), target.pin_memory()
        return batch, target

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, step + i) for i in range(3)]
        while True:
            step += 1
            waiting.append(pool.submit(read, step + 2))
            yield waiting.pop(0).result()


def read_batch(patches: PatchStore, rows: NDArray[np.int64]) -> tuple[Batch, Tensor]:
    """Return the batch of rows, and its target (N, D, H, W), NaN where a slice is absent."""
    condition, target = (torch.from_numpy(values) for values in patches.read(rows))
    factor = torch.from_numpy(patches.factor[rows]).float()
    if condition.shape[1] != len(CONDITION_OFFSETS):
        return Batch.of_images(condition), target
    positions = torch.arange(1, target.shape[1] + 1) / factor[:, None]
    return Batch(condition, positions.where(positions < 1 - 1e-6, torch.nan), factor), target


@torch.inference_mode()
def _validate(
    state: State,
    patches: PatchStore,
    run: Path,
    losses: list[float],
    scalars: SummaryWriter,
    device: torch.device,
) -> None:
    """Compare what is restored with the plain estimate on validation patches; keep the best weights."""
    sampler = Sampler(name="dpm++", steps=1 if isinstance(state.network, NativeNetwork) else 8)
    assert sampler.steps is not None
    wanted = VALIDATION_PATCHES // sampler.steps
    rows = patches.validation[:: max(len(patches.validation) // wanted, 1)][:wanted]
    numbers: dict[str, list[float]] = {
        k: [] for k in ("validation_psnr", "validation_ssim", "plain_psnr", "plain_ssim")
    }
    for row in rows:
        batch, target = read_batch(patches, np.array([row]))
        batch = batch.to(device)

        def white(step: int, row: int = int(row), shape: tuple[int, ...] = batch.shape) -> Tensor:
            generator = torch.Generator().manual_seed(_seed(row, step, 2))
            return torch.randn(shape, generator=generator).to(device)

        with state.autocast:
            restored = state.process.sample(state.average, batch, sampler, white)
        present = ~torch.isnan(target[0, :, 0, 0])
        truth = target[0][present].numpy()
        plain = plain_estimate(batch.condition, batch.positions)
        for name, image in (("validation", restored), ("plain", plain)):
            values = image[0].float().cpu()[present].numpy()
            numbers[f"{name}_psnr"].append(psnr(values, truth, 2.0))
            numbers[f"{name}_ssim"] += [ssim(a, b, 2.0) for a, b in zip(values, truth, strict=True)]
    entry: dict[str, float] = {"step": state.step, "seconds": round(state.seconds, 1)}
    if losses:
        entry["loss"] = float(np.mean(losses))
    entry |= {name: float(np.mean(values)) for name, values in numbers.items()}
    state.history.append(entry)
    with (run / "stats.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    for name, value in entry.items():
        scalars.add_scalar(name, value, state.step)
    logger.info(
        "step %d (%s): validation PSNR %.2f dB (plain %.2f), SSIM %.3f (plain %.3f)",
        state.step, clock(state.seconds), entry["validation_psnr"], entry["plain_psnr"],
        entry["validation_ssim"], entry["plain_ssim"],
    )  # fmt: skip
    if entry["validation_psnr"] > state.best:
        state.best = entry["validation_psnr"]
        checkpoints.write(run / "best.pt", state.average.state_dict())


def _save(path: Path, identity: str, state: State) -> None:
    """Save all that a resume needs."""
    content = {name: getattr(state, name) for name in PLAIN}
    parts = {name: getattr(state, name).state_dict() for name in STATEFUL}
    checkpoints.write(path, {"identity": identity, **content, **parts})


def _resume(path: Path, identity: str, state: State) -> None:
    """Take up a saved state of the same settings and data, if there is one."""
    saved = checkpoints.read(path, identity)
    if saved is None:
        return
    for name in STATEFUL:
        getattr(state, name).load_state_dict(saved[name])
    for name in PLAIN:
        setattr(state, name, saved[name])
    logger.info("the training goes on from step %d", state.step)


def _finish(
    experiment: Path, name: str, model: Model, patches: PatchStore, state: State, device: torch.device
) -> None:
    """Write the best weights, what they are, and how they came about."""
    weights = torch.load(experiment / "run" / "best.pt", map_location="cpu", weights_only=True)
    state.average.load_state_dict(weights)
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise DataError(f"{experiment}: the weights are not finite; lower `training.learning_rate`")
    best, native = experiment / "best", isinstance(state.network, NativeNetwork)
    save_model(
        best,
        state.average,
        {
            "name": name,
            "task": model.task,
            "factors": list(model.factors),
            "network": network_spec(model, getattr(state.network, "residual_scale", 1.0)),
            "objective": {"prediction": "flow" if native else "epsilon"},
            "noise": {"correlation": model.training.noise_correlation},
            "sampler": NATIVE_SAMPLER if native else PUBLISHED_SAMPLER,
            "training": model.training.model_dump(mode="json"),
            "sources": patches.facts["sources"],
            "emdiffuse": __version__,
        },
    )
    facts = {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "device": str(device),
        "history": state.history,
    }
    write_atomically(best / "metrics.json", json.dumps(facts, indent=2))
    write_card(best)
