"""Trainings that kill themselves at a chosen point; a module without the tests' imports."""

import os
import signal
from pathlib import Path

import torch

from emdiffuse.config import Model
from emdiffuse.enhance import adapt
from emdiffuse.enhance.one_file import Enhancement
from emdiffuse.training import train as training


def train_and_die(store: Path, experiment: Path, model: Model, step: int, saving: bool) -> None:
    """Train, and be killed before a step, or while writing the state after a number of steps."""
    torch.set_num_threads(1)
    place, name = (torch, "save") if saving else (training, "_update")
    known = getattr(place, name)

    def kill(state, *more):
        if (state.get("step") if saving else state.step) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        known(state, *more)

    setattr(place, name, kill)
    training.train(store, model, "m", experiment, "cpu")


def adapt_and_die(source: Path, out: Path, model: Path, place: str) -> None:
    """Adapt a model in six steps, and be killed before a stage or a step, or before a folder is renamed."""
    torch.set_num_threads(1)
    adapt.MOST_STEPS = 6

    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if place in ("acquire", "cut_patches", "train_here"):
        setattr(adapt, place, kill)
    elif place == "removal":
        remove = adapt.shutil.rmtree
        adapt.shutil.rmtree = lambda path, **more: (remove(path, **more), path.name == "model" and kill())
    elif place == "step 3":
        update = training._update
        training._update = lambda state, *more: kill() if state.step == 3 else update(state, *more)
    else:
        replace = Path.replace

        def renamed(self: Path, target: Path) -> Path:
            return kill() if str(target).endswith(place) else replace(self, target)

        Path.replace = renamed  # type: ignore[method-assign]
    adapt.adapt(source, out, Enhancement(model, voxel_size=(60, 10, 10), device="cpu"))
