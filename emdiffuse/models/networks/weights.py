"""Models on disk, and the reading of published checkpoints.

Conventions
-----------
* A model is a folder with ``model.safetensors`` (the weights) and ``model.json`` (its description: all that
  is needed to rebuild and to run the network). Each is written beside its place and renamed, the description
  last, so that a folder with a description is whole.
* Nothing that is read is executed: weights are safetensors, and a checkpoint is read with
  ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emdiffuse.config.tasks import TASKS
from emdiffuse.models.networks.unet import UNet
from emdiffuse.runtime.errors import EmdiffuseError

WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"
FORMAT, VERSION = "emdiffuse-model", 1

SCHEDULE_BUFFERS = (
    "gammas",
    "sqrt_recip_gammas",
    "sqrt_recipm1_gammas",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
"""What a published checkpoint holds beside the network: its noise schedule, which is known."""

PUBLISHED_SCHEDULE = {"name": "linear", "beta_start": 1e-6, "beta_end": 1e-2, "steps": 2000}
"""Levels that the published networks are trained at (see `emdiffuse.diffusion.schedules.linear_gammas`)."""

PUBLISHED_GAMMAS = (4.3859782361332086e-5, 1.0 - 1e-4)
"""Noisiest level of that schedule, and the least noisy one at which the published process calls networks."""


class ModelError(EmdiffuseError):
    """A model or checkpoint that is missing, damaged or of another kind; names its file."""


PUBLISHED_SAMPLER = {"name": "ddim", "steps": 8}
"""What a published network is sampled with, unless the settings say otherwise: the fewest calls that were as
good as its own process by every measure (``benchmarks/README.md``)."""


def save_model(directory: Path | str, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a model, whole or not at all.

    Parameters
    ----------
    directory : path
        Folder of the model; made if it is missing.
    network : Module
        Its state dict is written as it is, on whatever device it lies.
    description : dict
        JSON data with at least ``network``, the argument of `networks.build.build_network`; `FORMAT` and
        `VERSION` are added.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    text = json.dumps({"format": FORMAT, "version": VERSION, **description}, indent=2) + "\n"
    new_weights = directory / f".{WEIGHTS_FILE}.{os.getpid()}"
    new_text = directory / f".{DESCRIPTION_FILE}.{os.getpid()}"
    try:
        save_file(weights, new_weights)
        new_text.write_text(text)
        new_weights.replace(directory / WEIGHTS_FILE)
        new_text.replace(directory / DESCRIPTION_FILE)
    finally:
        new_weights.unlink(missing_ok=True)
        new_text.unlink(missing_ok=True)


def fingerprint(directory: Path | str) -> str:
    """Return the SHA-256 of a model's weights.

    Raises
    ------
    ModelError
        If they cannot be read.
    """
    path = Path(directory) / WEIGHTS_FILE
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def load_description(directory: Path | str) -> dict[str, Any]:
    """Read ``model.json``.

    Parameters
    ----------
    directory : path
        Folder of the model.

    Returns
    -------
    dict

    Raises
    ------
    ModelError
        If the file is missing, is no JSON, or describes no model of this version.
    """
    path = Path(directory) / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_text())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: was it cut off?") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelError(f"{path} does not describe a model of emdiffuse")
    if description.get("version") != VERSION:
        raise ModelError(f"{path} has version {description.get('version')}; this release reads {VERSION}")
    if not isinstance(description.get("network"), dict):
        raise ModelError(f"{path} names no network")
    return description


def load_weights(directory: Path | str, network: nn.Module) -> None:
    """Fill a network with the weights of a model; every weight is used and none is missing.

    Parameters
    ----------
    directory : path
        Folder of the model.
    network : Module
        Changed in place.

    Raises
    ------
    ModelError
        If the file is missing, cut off or no safetensors, or holds other weights than the network's.
    """
    path = Path(directory) / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}") from error
    _fill(network, weights, path)


def import_published(path: Path | str, task: str) -> tuple[UNet, dict[str, Any]]:
    """Read a published checkpoint of EMDiffuse.

    Parameters
    ----------
    path : path
        A ``.pth`` file: a state dict, possibly under the prefix ``denoise_fn.`` with the buffers of the noise
        schedule beside it; the averaged weights (``_ema``) have the same form.
    task : str
        A key of `emdiffuse.config.tasks.TASKS`.

    Returns
    -------
    network : UNet
        In eval mode, on the CPU.
    description : dict
        For `save_model`: the network, what it predicts and the levels it was trained at, the default sampler,
        and the file that it came from.

    Raises
    ------
    ModelError
        If the file cannot be read or holds something else, or weights are missing, left over or of another
        shape; the sentence lists which.
    """
    path = Path(path)
    if task not in TASKS:
        raise ModelError(f"{task!r} is no task; the tasks are {', '.join(TASKS)}")
    weights = {
        name.removeprefix("denoise_fn."): tensor
        for name, tensor in _read_checkpoint(path).items()
        if name not in SCHEDULE_BUFFERS
    }
    kwargs: dict[str, Any] = {"in_channels": TASKS[task].published_channels}
    if TASKS[task].volumetric:
        kwargs["slice_index"] = True
    network = UNet(**kwargs)
    _fill(network, weights, path)
    description = {
        "task": task,
        "network": {"architecture": "unet", **kwargs},
        "objective": {"prediction": "epsilon", "schedule": PUBLISHED_SCHEDULE, "clip": [-1.0, 1.0]},
        "sampler": PUBLISHED_SAMPLER,
        "sources": [{"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}],
    }
    return network.eval(), description


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not a checkpoint that holds weights alone, or it is cut off") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(f"{path} is not a state dict: it holds more, or other things, than named weights")
    return state


def _fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    faults = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "not used": sorted(weights.keys() - wanted.keys()),
        "of another shape": sorted(
            f"{name} {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted.keys() & weights.keys()
            if weights[name].shape != wanted[name].shape
        ),
    }
    if any(faults.values()):
        listed = "; ".join(
            f"{len(names)} {fault}, such as {names[0]}" for fault, names in faults.items() if names
        )
        raise ModelError(
            f"{path} does not hold the weights of this network ({listed}); the task and `network` must be "
            "those that it was trained with"
        )
    network.load_state_dict(weights)
