"""Reading and writing of model weights, and reading of published checkpoints.

Conventions
-----------
* A model is a folder with ``model.safetensors`` (the weights) and ``model.json`` (`models.description`). Both
  are written atomically, the description last, so that a folder with a description is complete.
* Nothing that is read is executed: weights are safetensors, and checkpoints are read with
  ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import (
    DESCRIPTION_FILE,
    PUBLISHED_SCHEDULE,
    WEIGHTS_FILE,
    Description,
    Objective,
    UnetSpec,
)
from emdiffuse.models.networks.unet import UNet
from emdiffuse.models.numbers import not_numbers, require_numbers
from emdiffuse.runtime.atomic import replaced_file
from emdiffuse.runtime.errors import ModelError
from emdiffuse.runtime.outputs import PROGRAM, is_own_file, require_free
from emdiffuse.stores.provenance import SourceFile, file_sha256

SCHEDULE_BUFFERS = (
    "gammas",
    "sqrt_recip_gammas",
    "sqrt_recipm1_gammas",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
"""Entries of a published checkpoint besides the network: its known noise schedule."""


def save_model(directory: Path | str, network: nn.Module, description: Description) -> None:
    """Write a model atomically.

    Parameters
    ----------
    directory : path
        Folder of the model, created if missing.
    network : Module
        The network, on any device; its state dict is written.
    description : Description
        Description of the model.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    text = description.model_dump_json(indent=2, exclude_none=True) + "\n"
    with replaced_file(directory / DESCRIPTION_FILE) as new_text:  # renamed last
        new_text.write_text(text)
        with replaced_file(directory / WEIGHTS_FILE) as new_weights:
            save_file(weights, new_weights, metadata={"program": PROGRAM})


def require_place(
    directory: Path, inputs: Iterable[Path] = (), overwrite: bool = False, card: str = "README.md"
) -> None:
    """Refuse a folder in which a model's files would replace an input or foreign files.

    Raises
    ------
    OutputError
        Names the file.
    """
    inputs = list(inputs)
    ours = is_own_file(directory / DESCRIPTION_FILE)  # the files beside it are then ours too
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE, card):
        require_free(directory / name, inputs, overwrite or ours)


def load_weights(directory: Path | str, network: nn.Module) -> None:
    """Load the weights of a model into a network; all must be used, and none may be missing.

    Parameters
    ----------
    directory : path
        Folder of the model.
    network : Module
        The network, modified in place.

    Raises
    ------
    ModelError
        If the file is missing, truncated or not safetensors, or its weights do not match the network or are
        not finite.
    """
    path = Path(directory) / WEIGHTS_FILE
    with _readable(path):
        weights = load_file(path)
    require_numbers(path)
    _fill(network, weights, path)


def require_weights(directory: Path | str, network: nn.Module) -> None:
    """Check names and shapes of a model's weights against a network, which may be on the device "meta".

    Only the header of the file is read, before the network of the description is allocated, so that an edited
    description cannot exhaust the memory.

    Raises
    ------
    ModelError
        As `load_weights`.
    """
    path = Path(directory) / WEIGHTS_FILE
    with _readable(path), safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    _require_shapes(network, shapes, path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors in reading weights into one sentence."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", path) from error
    except SafetensorError as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}", path) from error


def import_published(path: Path | str, task: str) -> tuple[UNet, Description]:
    """Read a published EMDiffuse checkpoint.

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
    description : Description
        Network, prediction, training levels and source file.

    Raises
    ------
    ModelError
        If the file cannot be read or is not a checkpoint, or weights are missing, superfluous or of another
        shape; lists which.
    """
    path = Path(path)
    if task not in TASKS:
        raise ModelError(f"{task!r} is not a task; the tasks are {', '.join(TASKS)}")
    weights = {
        name.removeprefix("denoise_fn."): tensor
        for name, tensor in _read_checkpoint(path).items()
        if name not in SCHEDULE_BUFFERS
    }
    spec = UnetSpec(in_channels=TASKS[task].published_channels, slice_index=TASKS[task].volumetric)
    network = UNet(**spec.model_dump(exclude={"architecture"}))
    _fill(network, weights, path)
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise not_numbers(path, name, f"of type {tensor.dtype}")
        if not tensor.isfinite().all():
            raise not_numbers(path, name, "NaN or infinite in places")
    description = Description(
        task=task,
        network=spec,
        objective=Objective(prediction="epsilon", schedule=PUBLISHED_SCHEDULE, clip=(-1.0, 1.0)),
        sources=(SourceFile(path=path.name, sha256=file_sha256(path)),),
    )
    return network.eval(), description


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise ModelError(f"{path} is not a regular file; give a checkpoint or a model folder", path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", path) from error
    except MemoryError:
        raise
    except Exception as error:  # a foreign file can raise anything
        raise ModelError(
            f"{path} is not a checkpoint that contains only weights, or it is truncated", path
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(f"{path} is not a state dict: it contains more than named weights", path)
    return state


def _fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    _require_shapes(network, {name: tuple(tensor.shape) for name, tensor in weights.items()}, path)
    network.load_state_dict(weights)


def _require_shapes(network: nn.Module, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse weights that are missing, superfluous, or of another shape than the network's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    faults = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "not used": sorted(shapes.keys() - wanted.keys()),
        "with another shape": sorted(
            f"{name} {shapes[name]} instead of {wanted[name]}"
            for name in wanted.keys() & shapes.keys()
            if shapes[name] != wanted[name]
        ),
    }
    if any(faults.values()):
        listed = "; ".join(
            f"{len(names)} {fault}, such as {names[0]}" for fault, names in faults.items() if names
        )
        raise ModelError(
            f"{path} does not contain the weights of this network ({listed}); use the task and `network` of "
            "its training",
            path,
        )
