"""Training: a short loop in which everything that happens at a step follows from (seed, step).

Conventions
-----------
* The order of the data, the augmentation, the noise levels and the noise of step n are drawn by generators
  seeded with (seed, n), so that a training that was killed and goes on does what it would have done.
* `run/state.pt` holds weights, their moving average, the optimizer and the step, written beside its place and
  renamed. A state of other settings or other data is not resumed into; the training begins anew.
* What is kept is the moving average of the weights (EMA), of the validation with the highest PSNR.
* Objective: rectified flow (Liu et al. 2022, arXiv 2209.03003) of the residual to linear interpolation; a
  share of each batch is at pure noise, where the network learns the posterior mean.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from emdiffuse import __version__, checkpoints
from emdiffuse.atomic import write_atomically
from emdiffuse.config import Model, Training
from emdiffuse.diffusion.objectives import training_target
from emdiffuse.diffusion.schedules import q_sample
from emdiffuse.errors import DataError, EmdiffuseError
from emdiffuse.inference import correlate, gap_denoiser
from emdiffuse.metrics import psnr, ssim
from emdiffuse.networks.gap import GapNetwork, linear_interpolation
from emdiffuse.networks.precision import autocast_for
from emdiffuse.networks.weights import save_model
from emdiffuse.patches import PatchStore
from emdiffuse.progress import clock, logger, progress
from emdiffuse.settings import settings_hash

VALIDATION_PATCHES = 64
PLAIN = ("step", "seconds", "best", "history")
STATEFUL = ("network", "average", "optimizer", "scaler")


@dataclass
class State:
    """All that a training is made of at a step."""

    network: GapNetwork
    average: GapNetwork
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    scaler: torch.amp.GradScaler
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


def train(store: Path, model: Model, name: str, experiment: Path, device: str = "auto") -> None:
    """Train a model from a patch store, or go on with a training that was interrupted.

    Parameters
    ----------
    store : Path
        Patch store of `patches.cut_patches`.
    model : Model
        Task, factor, network and training settings.
    name : str
        Name of the model, for its description.
    experiment : Path
        ``best/`` gets ``model.safetensors``, ``model.json`` and ``metrics.json``; ``run/`` keeps what a
        resume needs.
    device : str
        "auto", "cpu" or a CUDA device.

    Raises
    ------
    EmdiffuseError
        If the loss becomes NaN; names the step.
    """
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    patches = PatchStore(store)
    run = experiment / "run"
    run.mkdir(parents=True, exist_ok=True)
    with checkpoints.only_one(run / "lock"):
        identity = settings_hash(model, patches.facts["hash"], __version__)
        state = _new_state(model, patches, place)
        _resume(run / "state.pt", identity, state)
        if state.step == 0:
            (run / "stats.jsonl").unlink(missing_ok=True)
        logger.info(
            "training %s on %s: %d weights, %d training patches, %d validation patches",
            name, place, sum(p.numel() for p in state.network.parameters()),
            len(patches.training), len(patches.validation),
        )  # fmt: skip
        _loop(state, model, patches, run, identity, place)
        _finish(experiment, name, model, patches, state, place)


def _new_state(model: Model, patches: PatchStore, device: torch.device) -> State:
    """Build the network, its average and the optimizer."""
    torch.manual_seed(model.training.seed)
    settings = {**model.network.model_dump(), "residual_scale": patches.facts["residual_scale"]}
    network, average = GapNetwork(**settings).to(device), GapNetwork(**settings).to(device)
    average.load_state_dict(network.state_dict())
    average.eval().requires_grad_(False)
    training = model.training
    optimizer = torch.optim.AdamW(
        network.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    return State(network, average, optimizer, *autocast_for(device, training.precision))


def _loop(
    state: State, model: Model, patches: PatchStore, run: Path, identity: str, device: torch.device
) -> None:
    """Take steps until the settings' limit of steps or minutes."""
    training = model.training
    begin, saved = time.monotonic() - state.seconds, time.monotonic()
    scalars = SummaryWriter(str(run / "tensorboard"), purge_step=state.step)
    losses: list[float] = []
    batches = _batches(patches, training, state.step)
    steps = range(state.step, training.steps)
    left = 60 * (training.minutes or math.inf) - state.seconds
    for step in progress(steps, training.steps, "training", "step", done=state.step, seconds=left):
        share = max(step / training.steps, (time.monotonic() - begin) / 60 / (training.minutes or math.inf))
        if share >= 1:
            logger.info("the limit of %g minutes is reached after %d steps", training.minutes, step)
            break
        loss = _step(state, model, next(batches), share, device)
        if not math.isfinite(loss):
            raise EmdiffuseError(
                f"{run}: the loss is {loss} at step {step}, patches "
                f"{_rows(patches, training, step).tolist()}; lower `learning_rate`, or look at those patches"
            )
        losses.append(loss)
        state.step, state.seconds = step + 1, time.monotonic() - begin
        if state.step % training.validate_every == 0:
            _validate(state, model, patches, run, losses, scalars, device)
            losses.clear()
        if time.monotonic() - saved > 60 * training.checkpoint_minutes:
            _save(run / "state.pt", identity, state)
            saved = time.monotonic()
    if not state.history or state.history[-1]["step"] != state.step:
        _validate(state, model, patches, run, losses, scalars, device)
    _save(run / "state.pt", identity, state)
    scalars.close()


def _step(
    state: State,
    model: Model,
    batch: tuple[Tensor, Tensor],
    share: float,
    device: torch.device,
) -> float:
    """Take one optimizer step on a batch; return the loss."""
    training = model.training
    generator = torch.Generator().manual_seed(_seed(training.seed, state.step, 1))
    condition, target = augment(*batch, generator)
    condition, target = condition.to(device, non_blocking=True), target.to(device, non_blocking=True)
    x, gamma, wanted, positions = flow_batch(
        condition, target, state.network.residual_scale, training, generator
    )
    for group in state.optimizer.param_groups:
        warm = min(1.0, (state.step + 1) / max(training.warmup, 1))
        group["lr"] = training.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
    factor = torch.full((len(target),), float(model.factor), device=device)
    with state.autocast:
        output = state.network(x, gamma, condition, positions, factor)
    loss = (output.float() - wanted).square().mean()
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), training.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    decay = min(training.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        pairs = zip(state.average.parameters(), state.network.parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - decay)
    return float(loss.detach())


def augment(condition: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip and transpose gaps at random, and now and then take an outer real slice away.

    Parameters
    ----------
    condition, target : Tensor
        (N, 4, H, W) and (N, D, H, W), H = W.
    generator : torch.Generator
        Where the choices come from.

    Returns
    -------
    tuple of Tensor
        The same shapes. A missing outer slice is replaced by the one next to it, as at the ends of a volume.
    """
    choices = torch.rand((len(condition), 6), generator=generator)
    conditions, targets = [], []
    for c, t, choice in zip(condition, target, choices, strict=True):
        for i, axis in enumerate((0, 1, 2)):
            if choice[i] < 0.5:
                c, t = c.flip(axis), t.flip(axis)
        if choice[3] < 0.5:
            c, t = c.transpose(1, 2), t.transpose(1, 2)
        c = torch.stack([c[1] if choice[4] < 0.08 else c[0], c[1], c[2], c[2] if choice[5] < 0.08 else c[3]])
        conditions.append(c)
        targets.append(t)
    return torch.stack(conditions), torch.stack(targets)


def flow_batch(
    condition: Tensor, target: Tensor, scale: float, training: Training, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw noise levels and noise for a batch.

    Returns
    -------
    tuple of Tensor
        The noisy residual x (N, D, H, W), gamma (N,), the flow that the network should predict (N, D, H, W),
        and the positions (N, D).
    """
    count, depth = target.shape[:2]
    positions = (torch.arange(1, depth + 1, device=target.device) / (depth + 1)).expand(count, -1)
    x0 = (target - linear_interpolation(condition, positions)) / scale
    time_of_flow = torch.sigmoid(torch.randn(count, generator=generator)).to(target.device)
    means = round(training.mean_share * count)
    time_of_flow[:means] = 1.0
    eps = torch.randn(target.shape, generator=generator).to(target.device)
    eps = correlate(eps, positions, training.noise_correlation)
    eps[:means] = 0.0
    gamma = (1 - time_of_flow) ** 2 / ((1 - time_of_flow) ** 2 + time_of_flow**2)
    return q_sample(x0, gamma, eps), gamma, training_target("flow", x0, eps, gamma), positions


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


def _batches(patches: PatchStore, training: Training, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches from a step on; the next ones are read in a thread while the network works."""

    def read(number: int) -> tuple[Tensor, Tensor]:
        condition, target = (
            torch.from_numpy(part) for part in patches.read(_rows(patches, training, number))
        )
        pin = torch.cuda.is_available()
        return (condition.pin_memory(), target.pin_memory()) if pin else (condition, target)

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, step + i) for i in range(3)]
        while True:
            step += 1
            waiting.append(pool.submit(read, step + 2))
            yield waiting.pop(0).result()


@torch.inference_mode()
def _validate(
    state: State,
    model: Model,
    patches: PatchStore,
    run: Path,
    losses: list[float],
    scalars: SummaryWriter,
    device: torch.device,
) -> None:
    """Compare the posterior mean with linear interpolation on validation patches; keep the best weights."""
    rows = patches.validation[:: max(len(patches.validation) // VALIDATION_PATCHES, 1)][:VALIDATION_PATCHES]
    numbers: dict[str, list[float]] = {
        k: [] for k in ("validation_psnr", "validation_ssim", "linear_psnr", "linear_ssim")
    }
    for row in rows:
        condition, target = (torch.from_numpy(part).to(device) for part in patches.read(np.array([row])))
        positions = (torch.arange(1, target.shape[1] + 1, device=device) / (target.shape[1] + 1))[None]
        factor = torch.full((1,), float(model.factor), device=device)
        linear = linear_interpolation(condition, positions)
        denoise = gap_denoiser(state.average, condition, positions, factor)
        mean = linear + state.average.residual_scale * denoise(
            torch.zeros_like(linear), torch.zeros(1, device=device)
        )
        truth = target[0].cpu().numpy()
        for name, image in (("validation", mean), ("linear", linear)):
            values = image[0].float().cpu().numpy()
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
        "step %d (%s): validation PSNR %.2f dB (linear %.2f), SSIM %.3f (linear %.3f)",
        state.step, clock(state.seconds), entry["validation_psnr"], entry["linear_psnr"],
        entry["validation_ssim"], entry["linear_ssim"],
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
    best = experiment / "best"
    save_model(
        best,
        state.average,
        {
            "format": "emdiffuse-model",
            "version": 1,
            "name": name,
            "task": model.task,
            "factor": model.factor,
            "network": {
                "architecture": "gap",
                **model.network.model_dump(mode="json"),
                "residual_scale": patches.facts["residual_scale"],
            },
            "objective": {"prediction": "flow"},
            "noise": {"correlation": model.training.noise_correlation},
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
