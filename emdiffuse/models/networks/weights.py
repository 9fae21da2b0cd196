"""The weights of models on disk, and the reading of published checkpoints.

Conventions
-----------
* A model is a folder with ``model.safetensors`` (the weights) and ``model.json`` (`models.description`). Each
  is written beside its place and renamed, the description last, so that a folder with a description is whole.
* Nothing that is read is executed: weights are safetensors, and a checkpoint is read with
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
"""What a published checkpoint holds beside the network: its noise schedule, which is known."""


def save_model(directory: Path | str, network: nn.Module, description: Description) -> None:
    """Write a model, whole or not at all.

    Parameters
    ----------
    directory : path
        Folder of the model; made if it is missing.
    network : Module
        Its state dict is written as it is, on whatever device it lies.
    description : Description
        What it is.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    text = description.model_dump_json(indent=2, exclude_none=True) + "\n"
    with replaced_file(directory / DESCRIPTION_FILE) as new_text:  # which takes its place last
        new_text.write_text(text)
        with replaced_file(directory / WEIGHTS_FILE) as new_weights:
            save_file(weights, new_weights, metadata={"program": PROGRAM})


def require_place(
    directory: Path, inputs: Iterable[Path] = (), overwrite: bool = False, card: str = "README.md"
) -> None:
    """Refuse a folder where a model's files would replace an input, or foreign files.

    Raises
    ------
    OutputError
        If it is so; names the file.
    """
    inputs = list(inputs)
    ours = is_own_file(directory / DESCRIPTION_FILE)  # and then so are those beside it
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE, card):
        require_free(directory / name, inputs, overwrite or ours)


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
        If the file is missing, cut off or no safetensors, or holds other weights than the network's, or some
        that are no finite numbers.
    """
    path = Path(directory) / WEIGHTS_FILE
    with _readable(path):
        weights = load_file(path)
    require_numbers(path)
    _fill(network, weights, path)


def require_weights(directory: Path | str, network: nn.Module) -> None:
    """Check names and shapes of a model's weights against a network, which may lie on the device "meta".

    Only the head of the file is read: what a description asks for is allocated after this, so that an edited
    one cannot fill the memory.

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
    """Turn what goes wrong in reading weights into one sentence."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", path) from error
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}", path) from error


def import_published(path: Path | str, task: str) -> tuple[UNet, Description]:
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
    description : Description
        The network, what it predicts and the levels it was trained at, and the file that it came from.

    Raises
    ------
    ModelError
        If the file cannot be read or holds something else, or weights are missing, left over or of another
        shape; the sentence lists which.
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
        raise ModelError(f"{path} is not a regular file; give a checkpoint, or the folder of a model", path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", path) from error
    except MemoryError:
        raise
    except Exception as error:  # of whatever stands in a file of unknown origin
        raise ModelError(
            f"{path} is not a checkpoint that holds weights alone, or it is cut off", path
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(
            f"{path} is not a state dict: it holds more, or other things, than named weights", path
        )
    return state


def _fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    _require_shapes(network, {name: tuple(tensor.shape) for name, tensor in weights.items()}, path)
    network.load_state_dict(weights)


def _require_shapes(network: nn.Module, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse weights that are missing, left over, or of another shape than a network's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    faults = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "not used": sorted(shapes.keys() - wanted.keys()),
        "of another shape": sorted(
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
            f"{path} does not hold the weights of this network ({listed}); the task and `network` must be "
            "those that it was trained with",
            path,
        )
