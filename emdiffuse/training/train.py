"""Training: a short loop in which everything at a step depends only on (seed, step).

Conventions
-----------
* The data order, augmentation, noise levels and noise of step n are drawn by generators seeded with (seed,
  n), so that a killed and resumed training gives the same result.
* The diffusion process (`models.processes`) defines the loss of a batch, and the sampling.
* A batch is divided among processes (`training.parallel`), and each part into accumulated ones: their numbers
  only affect rounding.
* `feed` provides the examples of a step, `state` saves and resumes, `validation` measures.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emdiffuse.config import Model, Training
from emdiffuse.config.shipped import model_folder
from emdiffuse.models.draws import Draws
from emdiffuse.models.networks.weights import require_place
from emdiffuse.models.processes import Batch
from emdiffuse.patches.cut import ORIGIN_COLUMNS, PatchStore
from emdiffuse.runtime import checkpoints
from emdiffuse.runtime.atomic import replaced_file
from emdiffuse.runtime.errors import DataError, EmdiffuseError, StoreError
from emdiffuse.runtime.extras import require
from emdiffuse.runtime.interruption import Interrupted, Stop
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.progress import logger, progress
from emdiffuse.stores.facts import require_made
from emdiffuse.training.beginning import knowing
from emdiffuse.training.feed import DRAWING, DROPPING, batch_rows, batches, draw_batch, seed_of
from emdiffuse.training.identity import training_link
from emdiffuse.training.outlook import Timing
from emdiffuse.training.parallel import Ranks, joined
from emdiffuse.training.state import TrainingState, finish, new_state, resume, save
from emdiffuse.training.validation import batch_picture, validate

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped."""


def train(
    store: Path,
    model: Model,
    name: str,
    experiment: Path,
    device: str = "auto",
    stop: Stop | None = None,
) -> None:
    """Train a model from a patch store, or resume an interrupted training.

    In fine-tuning, the starting model is scored first, and its weights are kept if nothing better on the
    held-out part is learned.

    Parameters
    ----------
    store : Path
        Patch store of `patches.cut_patches`.
    model : Model
        Task, factors, network and training settings.
    name : str
        Name of the model, for its description.
    experiment : Path
        Folder to write: ``best/`` with ``model.safetensors``, ``model.json``, ``metrics.json`` and
        ``batch.png``; ``run/`` with the state to resume from.
    device : str
        "auto", "cpu" or a CUDA device.
    stop : Stop, optional
        Checked after each step: after a signal, the state is saved and the training stops.

    Raises
    ------
    Interrupted
        If stopped by a signal; the state is saved.
    DataError
        If the patches were cut for another task, other factors or another thickness.
    EmdiffuseError
        If the loss becomes NaN, naming the step; or if the starting model has another network.
    """
    patches = PatchStore(store)
    require_cut_for(patches, model)
    begun = model.training.init_from
    require_place(experiment / "best", [store, *([model_folder(begun)] if begun else [])])
    run = experiment / "run"
    run.mkdir(parents=True, exist_ok=True)
    with joined(device) as ranks, checkpoints.only_one(run / "lock") if ranks.first else nullcontext():
        ranks.require_divides(model.training.batch)
        made = training_link(model, name, require_made(patches.facts, store))
        identity = made.hash
        state = new_state(model, patches, ranks.device)
        resume(run, identity, state)
        if len({step for (step,) in ranks.gather(state.step)}) > 1:
            raise StoreError(f"{run}: the processes found different states; all nodes must share this folder")
        logger.info(
            "training %s on %s, process %d of %d: %d weights, %d training patches, %d validation patches",
            name, ranks.device, ranks.rank + 1, ranks.size,
            sum(p.numel() for p in state.network.parameters()),
            len(patches.training), len(patches.validation),
        )  # fmt: skip
        ended = _loop(state, model, patches, run, identity, ranks, stop or Stop())
        if ranks.first:
            examples = draw_batch(patches, model, 0, np.arange(model.training.batch))
            with replaced_file(experiment / "best" / "batch.png") as partial:
                partial.write_bytes(imagecodecs.png_encode(batch_picture(*examples)))
            finish(experiment, made, model, patches, state, ranks.device, ended)
        ranks.wait()


def require_cut_for(patches: PatchStore, model: Model) -> None:
    """Refuse patches of other gaps, because a model must have seen what it claims to be trained for.

    Raises
    ------
    DataError
        If the store was cut for another task, other factors or another thickness.
    """
    cut = require_made(patches.facts, patches.path).settings
    wanted = {"task": model.task, "factors": [*model.factors], "thicknesses": [*model.thicknesses]}
    for key, value in wanted.items():
        if key in cut and cut[key] != value:
            raise DataError(
                f"{patches.path}: cut for {key} {cut[key]}, but the model needs {value}; "
                "cut them again with `emdiffuse patches`"
            )


def _loop(
    state: TrainingState,
    model: Model,
    patches: PatchStore,
    run: Path,
    identity: str,
    ranks: Ranks,
    stop: Stop,
) -> str:
    """Take steps until a limit of the settings is reached, and return which; or until a signal arrives."""
    require("tensorboard", "workflow", "Training")
    from torch.utils.tensorboard import SummaryWriter

    training = model.training
    board = SummaryWriter(str(run / "tensorboard"), purge_step=state.step) if ranks.first else None
    if board and state.begun and not state.history:
        with knowing(state.average, state.begun.spec):
            validate(state, patches, run, board, ranks.device)  # the score to beat
    begin, saved = time.monotonic() - state.seconds, time.monotonic()
    own = ranks.part(training.batch)
    examples = batches(patches, model, own, state.step, ranks.device)
    forward = ranks.wrap(state.network)
    limit = training.steps
    ended = f"all {limit} steps were completed"
    steps = range(state.step, limit)
    left = 60 * (training.minutes or math.inf) - state.seconds
    shown = progress(steps, limit, "training", "step", done=state.step, seconds=left)
    timing = Timing(training, limit, state.step, state.seconds)
    for step in shown if ranks.first else steps:
        share = max(step / limit, state.seconds / 60 / (training.minutes or math.inf))
        if reason := _enough(state, training, share):
            ended = f"{reason} after {step} steps"
            break
        part = _backward(state, forward, training, next(examples), own, ranks)
        told = ranks.gather(part, stop.number, time.monotonic() - begin)
        loss, came = sum(t[0] for t in told) / ranks.size, int(max(t[1] for t in told))
        if not math.isfinite(loss):
            _fail(state, model, patches, run, identity, ranks, loss)
        _update(state, training, share)
        state.losses.append(loss)
        state.step, state.seconds = step + 1, told[0][2]
        if ranks.first and (sentence := timing.after(state.step)):
            logger.info("%s", sentence)
        if state.step % training.validate_every == 0:
            if board:
                validate(state, patches, run, board, ranks.device)
            state.losses.clear()
            state.stale = int(ranks.gather(state.stale)[0][0])
        ends = came and state.step < limit
        if ranks.first and (ends or time.monotonic() - saved > 60 * training.checkpoint_minutes):
            save(run, identity, state)
            saved = time.monotonic()
        if ends:
            ranks.wait()  # until it is saved
            name = signal.Signals(came).name
            message = (
                f"{run}: received {name}; the state after step {state.step} is saved; start again to resume"
            )
            raise Interrupted(came, message)
    if board:
        if not state.history or state.history[-1]["step"] != state.step:
            validate(state, patches, run, board, ranks.device)
        save(run, identity, state)
        board.close()
    return ended


def _enough(state: TrainingState, training: Training, share: float) -> str | None:
    """Return why a training stops before its last step, or None."""
    if share >= 1:
        return f"the limit of {training.minutes:g} minutes was reached"
    if training.patience and state.stale >= training.patience:
        return f"{state.stale} validations in a row were no better than {state.best:.2f} dB (`patience`)"
    return None


def _backward(
    state: TrainingState,
    forward: nn.Module,
    training: Training,
    examples: tuple[Batch, Tensor],
    own: NDArray[np.int64],
    ranks: Ranks,
) -> float:
    """Compute the gradients of this process's part of a batch, averaged over processes; return its loss."""
    inputs, target = examples[0].to(ranks.device), examples[1].to(ranks.device)
    device = ranks.device if ranks.device.type == "cuda" else "cpu"
    draws = Draws(seed_of(training.seed, state.step, DRAWING), training.batch, torch.from_numpy(own), device)
    arguments, wanted = state.process.example(inputs, target, draws)
    state.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(seed_of(training.seed, state.step, DROPPING))
    total = 0.0
    parts = torch.arange(len(wanted), device=ranks.device).chunk(training.accumulate)
    for part in parts:
        with ranks.exchanging(forward, part is parts[-1]):
            with state.autocast:
                output = forward(*(argument[part] for argument in arguments))
            loss = state.process.loss(output, wanted[part]) * (len(part) / len(wanted))
            state.scaler.scale(loss).backward()
        total += float(loss.detach())
    return total


def _update(state: TrainingState, training: Training, share: float) -> None:
    """Take an optimizer step, at the learning rate for this fraction of the whole training."""
    warm = min(1.0, (state.step + 1) / max(training.warmup, 1))
    for group in state.optimizer.param_groups:
        group["lr"] = training.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), LARGEST_GRADIENT)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    decay = min(training.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        pairs = zip(state.average.parameters(), state.network.parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - decay)


def _fail(
    state: TrainingState,
    model: Model,
    patches: PatchStore,
    run: Path,
    identity: str,
    ranks: Ranks,
    loss: float,
) -> None:
    """Save the state before a step whose loss is not finite, list the patches of its batch, and raise."""
    batch = run / "failed_batch.json"
    if ranks.first:
        save(run, identity, state)
        rows = patches.origins[batch_rows(patches, model.training, state.step)]
        names = [patches.facts.datasets[row[0]] for row in rows.tolist()]
        origins = [
            {**dict(zip(ORIGIN_COLUMNS, row, strict=True)), "dataset": name}
            for row, name in zip(rows.tolist(), names, strict=True)
        ]
        write_json(batch, {"step": state.step, "loss": str(loss), "patches": origins})
    ranks.wait()  # until it is saved
    raise EmdiffuseError(
        f"{run}: the loss is {loss} at step {state.step}; the state before it is saved; lower "
        f"`learning_rate`, or check the patches of this batch, whose origins are in {batch}"
    )
