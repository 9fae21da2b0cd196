"""The state of a training at a step: its creation, saving and resuming, and the final model.

Conventions
-----------
* `run/state.pt` contains weights, their moving average, the optimizer and the step. A state of other settings
  or data is not resumed from.
* `run/best.pt` is the moving average of the weights at the validation with the highest PSNR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from emdiffuse import __version__
from emdiffuse.config import Model
from emdiffuse.config.shipped import model_folder
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.card import write_card
from emdiffuse.models.description import (
    PUBLISHED_SAMPLER,
    Description,
    NativeSpec,
    NetworkSpec,
    Objective,
    OwnSampler,
    Unet3dSpec,
    UnetSpec,
    read_description,
)
from emdiffuse.models.networks.build import build_network, load_network
from emdiffuse.models.networks.growth import grow
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.networks.precision import autocast_for
from emdiffuse.models.networks.weights import load_weights, save_model
from emdiffuse.models.processes import Process, new_process
from emdiffuse.models.surroundings import Reach
from emdiffuse.patches.cut import PatchStore
from emdiffuse.runtime import checkpoints
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.provenance import Link, SourceFile
from emdiffuse.training.beginning import Begun, what_begun
from emdiffuse.training.blind_spot import blind_spot_of, learned, residual_scale
from emdiffuse.training.outlook import outlook

NATIVE_SAMPLER = OwnSampler(name="unipc", steps=8)
"""Default sampler of a native model: see ``benchmarks/README.md``."""

PLAIN = ("step", "seconds", "best", "stale", "losses", "history")
STATEFUL = ("network", "average", "optimizer", "scaler")


@dataclass
class TrainingState:
    """The complete state of a training at a step.

    Attributes
    ----------
    step : int
        Steps taken.
    seconds : float
        Wall time of these steps.
    best : float
        Highest validation PSNR.
    stale : int
        Number of validations since then.
    losses : list of float
        Losses of the steps since the last validation.
    history : list of dict
        Results of each validation.
    """

    process: Process
    spec: NetworkSpec
    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    scaler: torch.amp.GradScaler
    begun: Begun | None = None
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    stale: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


def new_state(model: Model, patches: PatchStore, device: torch.device) -> TrainingState:
    """Build the network, its moving average and the optimizer."""
    training = model.training
    torch.manual_seed(training.seed)
    spot = blind_spot_of(patches, training)
    scale = patches.facts.residual_scale if spot is None else residual_scale(patches, spot)
    begun_from = training.init_from and model_folder(training.init_from)
    known = read_description(begun_from) if begun_from else None
    begun = known.network if known else None
    if scale == 0 and begun is None:
        raise DataError(f"{patches.path}: every target equals its plain estimate; there is nothing to learn")
    for sentence in learned(patches, training).values():
        logger.info("%s", sentence)
    if patches.facts.noisy and model.network.architecture != "native":
        raise ConfigError("network.architecture: learning from noisy images alone needs the native network")
    spec = network_spec(model, scale, begun, spot)
    network, average = (build_network(spec, model.network.checkpointing) for _ in range(2))
    if begun_from:
        _begin(network, spec, begun_from, begun)
    network, average = network.to(device), average.to(device)
    average.load_state_dict(network.state_dict())
    average.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    process = new_process(network, training, noisy=patches.facts.noisy is not None)
    autocast, scaler = autocast_for(device, training.precision)
    return TrainingState(
        process, spec, network, average, optimizer, autocast, scaler, what_begun(known, spec)
    )


def _begin(network: nn.Module, spec: NetworkSpec, folder: Path, begun: NetworkSpec | None) -> None:
    """Initialize a network with the weights of a model, which may have fewer blocks."""
    if isinstance(spec, NativeSpec) and isinstance(begun, NativeSpec) and begun.blocks < spec.blocks:
        shape = {"conditions", "channels", "multipliers"}
        if spec.model_dump(include=shape) == begun.model_dump(include=shape):
            small = load_network(folder)
            assert isinstance(small, NativeNetwork)
            assert isinstance(network, NativeNetwork)
            grow(small, network)
            return
    load_weights(folder, network)


def network_spec(
    model: Model, residual_scale: float, begun: NetworkSpec | None = None, blind_spot: Reach | None = None
) -> NetworkSpec:
    """Return the network specified by a model's settings.

    A fine-tuned network keeps the residual scale of its starting model, in whose units it predicts, and
    covers the factors and thicknesses of both.
    """
    settings, volumetric = model.network, TASKS[model.task].volumetric
    levels: dict[str, Any] = {} if settings.multipliers is None else {"multipliers": settings.multipliers}
    if settings.architecture == "native":
        factors: list[float] = [*model.factors]
        thickness: list[float] = [*model.thicknesses]
        if isinstance(begun, NativeSpec):
            residual_scale = begun.residual_scale
            factors, thickness = [*factors, *begun.factors], [*thickness, *begun.thickness]
        return NativeSpec(
            **({} if volumetric else {"conditions": 1 + 2 * model.patches.context}),
            blind_spot=blind_spot,
            factors=(min(factors), max(factors)),
            thickness=(min(thickness), max(thickness)),
            channels=settings.channels,
            blocks=settings.blocks,
            residual_scale=residual_scale,
            **levels,
        )
    outputs: Literal[1, 2] = 2 if model.training.loss == "difficulty" else 1
    sizes: dict[str, Any] = {
        "base_channels": settings.channels,
        "blocks": settings.blocks,
        "dropout": settings.dropout,
    }
    if settings.architecture == "unet3d":
        return Unet3dSpec(out_channels=outputs, **sizes, **levels)
    channels = TASKS[model.task].published_channels
    return UnetSpec(in_channels=channels, out_channels=outputs, slice_index=volumetric, **sizes, **levels)


def _learned_before(model: Model) -> tuple[SourceFile, ...]:
    """Return the training sources of the starting model."""
    begun_from = model.training.init_from
    return read_description(model_folder(begun_from)).sources if begun_from else ()


def save(run: Path, identity: str, state: TrainingState) -> None:
    """Save everything needed to resume."""
    content = {name: getattr(state, name) for name in PLAIN}
    parts = {name: getattr(state, name).state_dict() for name in STATEFUL}
    checkpoints.write(run / "state.pt", {"identity": identity, **content, **parts})


def resume(run: Path, identity: str, state: TrainingState) -> None:
    """Resume from the saved state of the same settings and data, if there is one."""
    saved = checkpoints.read(run / "state.pt", identity)
    if saved is None:
        return
    for name in STATEFUL:
        getattr(state, name).load_state_dict(saved[name])
    for name in PLAIN:
        setattr(state, name, saved[name])
    logger.info("the training resumes from step %d", state.step)


def finish(
    experiment: Path,
    made: Link,
    model: Model,
    patches: PatchStore,
    state: TrainingState,
    device: torch.device,
    ended: str,
) -> None:
    """Write the best weights, their description and history; log the assessment of the training."""
    weights = torch.load(experiment / "run" / "best.pt", map_location="cpu", weights_only=True)
    state.average.load_state_dict(weights)
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise DataError(f"{experiment}: the weights are not finite; lower `training.learning_rate`")
    found = outlook(state.history, ended)
    kept = state.begun if found.kept_step == 0 else None
    best, native = experiment / "best", isinstance(state.network, NativeNetwork)
    save_model(
        best,
        state.average,
        Description(
            name=made.name,
            made=made,
            task=model.task,
            factors=kept.factors if kept else model.factors,
            network=kept.spec if kept else state.spec,
            learned_from=patches.facts.noisy,
            objective=Objective(prediction="flow" if native else "epsilon"),
            sampler=NATIVE_SAMPLER if native else PUBLISHED_SAMPLER,
            training={**model.training.model_dump(mode="json"), "ended": found.ended},
            augmentation=model.augmentation.model_dump(mode="json"),
            sources=tuple(dict.fromkeys((*patches.facts.sources, *_learned_before(model)))),
            emdiffuse=__version__,
        ),
    )
    facts = {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "device": str(device),
        **learned(patches, model.training),
        "outlook": found.as_json(),
        "history": state.history,
    }
    write_json(best / "metrics.json", facts)
    write_card(best)
    for sentence in found.sentences:
        logger.info("%s: %s", made.name, sentence)
