"""Export for other programs: a graph of the one-evaluation mean, and a BioImage Model Zoo package.

Conventions
-----------
* The exported quantity is the *posterior mean in one evaluation* of a native model. Sampling, tiling and the
  choice of real slices are not part of the graph.
* Images are (N, C, H, W), float32, in [-1, 1], where -1 and 1 are the 0.5 and 99.5 percentiles of a dataset.
  A gap's channels are the real slices at `tasks.CONDITION_OFFSETS`, and its output's the slices of the gap.
* H and W are multiples of the network's stride (before enlarging, of half of it for super-resolution).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emdiffuse.config.tasks import CONDITION_OFFSETS, TASKS
from emdiffuse.models.card import CARD_FILE, card_text
from emdiffuse.models.description import read_description
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.networks.export import export_network
from emdiffuse.models.networks.native import NativeNetwork, plain_estimate
from emdiffuse.runtime.atomic import replaced_file, scratch
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.runtime.outputs import require_free, sign_zip

SIDE = 64
"""Height and width of the test image in a package, and minimum image size of a package."""

LARGEST_SIDE = 8192
"""Maximum height and width of the images of a graph."""

LOW, HIGH = 0.5, 99.5
"""Percentiles of an image that a package maps to -1 and 1; emdiffuse uses those of a dataset."""


class PosteriorMean(nn.Module):
    """A native network with everything but the image fixed, which returns the mean in one evaluation.

    Parameters
    ----------
    network : NativeNetwork
        In eval mode.
    factor : int
        Anisotropy factor; 1 for images.
    scale : int
        Output pixels per input pixel, along y and x.
    """

    positions: Tensor

    def __init__(self, network: NativeNetwork, factor: int = 1, scale: int = 1) -> None:
        super().__init__()
        self.network, self.factor, self.scale = network, factor, scale
        positions = torch.arange(1, factor) / factor if factor > 1 else torch.tensor([0.5])
        self.register_buffer("positions", positions)

    def forward(self, condition: Tensor) -> Tensor:
        """Restore (N, C, H, W) to (N, D, scale * H, scale * W)."""
        if self.scale > 1:  # like `resampling.enlarge`
            condition = F.interpolate(condition, scale_factor=self.scale, mode="bicubic", antialias=True)
        pure = torch.zeros_like(condition[:, 0, 0, 0])
        positions = self.positions.expand(condition.shape[0], -1)
        base = plain_estimate(condition, positions, self.network.blind_spot)
        flow = self.network(torch.zeros_like(base), pure, condition, positions, pure + self.factor, pure)
        mean: Tensor = base - self.network.residual_scale * flow
        return mean


def load_mean(model: Path, factor: int | None = None) -> PosteriorMean:
    """Open a model as its one-evaluation mean.

    Parameters
    ----------
    model : Path
        Folder of a native model.
    factor : int, optional
        Anisotropy factor, for a volume model with several.

    Raises
    ------
    ModelError
        If the folder holds no model.
    ConfigError
        If the model is not native, or the factor is missing or not one that it was trained for.
    """
    description = read_description(model)
    network = load_network(model)
    if not isinstance(network, NativeNetwork):
        raise ConfigError(
            f"{model}: only native models can be exported; a published network needs many evaluations per "
            "image"
        )
    task = TASKS[description.task]
    if not task.volumetric:
        if factor is not None:
            raise ConfigError(f"--factor: {model} restores images; omit it")
        return PosteriorMean(network, 1, task.scale).eval()
    factors = list(description.factors)
    if factor is None and len(factors) > 1:
        raise ConfigError(f"--factor: {model} was trained for {factors}; choose the one to export")
    factor = factors[0] if factor is None else factor
    if not min(factors) <= factor <= max(factors):
        raise ConfigError(f"--factor: {model} was trained for {factors}, not {factor}")
    return PosteriorMean(network, factor).eval()


def export_torch(
    model: Path, out: Path, factor: int | None = None, side: int = 256, overwrite: bool = False
) -> None:
    """Write the one-evaluation mean as a `torch.export` graph (.pt2), for a fixed image size.

    Parameters
    ----------
    model, factor
        See `load_mean`.
    out : Path
        File to write; ``torch.export.load(out).module()`` takes one condition.
    side : int
        Height and width of the condition.
    overwrite : bool
        Whether to replace a file of that name that emdiffuse did not write.

    Raises
    ------
    OutputError
        If such a file exists, or it is in the model's folder.
    ConfigError
        As `load_mean`, or if the side is not a multiple of the network's stride.
    """
    require_free(out, [model], overwrite)
    mean = load_mean(model, factor)
    if not 1 <= side <= LARGEST_SIDE or side * mean.scale % mean.network.stride:
        raise ConfigError(
            f"--side: {side} is not a multiple of {mean.network.stride // mean.scale} up to {LARGEST_SIDE}"
        )
    graph = export_network(mean, example(mean, side))
    with replaced_file(out) as partial:
        partial.write_bytes(_serialised(torch.export.save, graph))
        sign_zip(partial)


def _serialised(save: Callable[[Any, io.BytesIO], None], graph: Any) -> bytes:
    """Serialize a graph in memory, because torch's file writer kills the process on a full disk."""
    buffer = io.BytesIO()
    save(graph, buffer)
    return buffer.getvalue()


def example(mean: PosteriorMean, side: int = SIDE) -> Tensor:
    """Return an example condition (1, C, side, side): smooth noise in [-1, 1]."""
    channels = len(CONDITION_OFFSETS) if mean.factor > 1 else 1
    coarse = torch.rand((1, channels, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, (side, side), mode="bilinear")


def export_bioimageio(
    model: Path, out: Path, factor: int | None = None, license_id: str = "MIT", overwrite: bool = False
) -> None:
    """Write the one-evaluation mean as a BioImage Model Zoo package (a ZIP with TorchScript weights).

    Parameters
    ----------
    model, factor
        See `load_mean`.
    out : Path
        ``.zip`` file to write; ``bioimageio test`` checks it.
    license_id : str
        SPDX identifier of the licence.
    overwrite : bool
        Whether to replace a file of that name that emdiffuse did not write.

    Raises
    ------
    OutputError
        If such a file exists, or it is in the model's folder.
    ConfigError
        As `load_mean`, or if bioimageio.spec is not installed or does not accept the package.
    """
    require_free(out, [model], overwrite)
    if find_spec("bioimageio") is None or find_spec("bioimageio.spec") is None:
        raise ConfigError(
            "--format bioimageio needs bioimageio.spec; run pip install 'emdiffuse[bioimageio]'"
        )
    from bioimageio.spec import save_bioimageio_package
    from pydantic import ValidationError

    mean = load_mean(model, factor)
    condition = example(mean)
    low, high = np.percentile(condition, [LOW, HIGH])
    with torch.no_grad(), warnings.catch_warnings():
        # the zoo supports no newer graph format; fixed branches on the number of channels are intended
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        restored = mean((condition - low) / (high - low) * 2 - 1)
        graph = _serialised(torch.jit.save, torch.jit.trace(mean, condition))
    with scratch(out.absolute()) as folder:
        (folder / "weights.pt").write_bytes(graph)
        np.save(folder / "test_input.npy", condition.numpy())
        np.save(folder / "test_output.npy", restored.numpy())
        (folder / "cover.png").write_bytes(_cover(condition, restored))
        card = card_text(read_description(model), None) if not (model / CARD_FILE).exists() else ""
        (folder / CARD_FILE).write_text(card or (model / CARD_FILE).read_text())
        try:
            described = _describe(model, mean, folder, license_id)
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"][:1] == ("license",):
                raise ConfigError(
                    f"--license: {license_id!r} is not an SPDX identifier such as MIT or CC-BY-4.0"
                ) from None
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"{out}: bioimageio.spec refused the package: {where}: {first['msg']}"
            ) from None
        with replaced_file(out) as partial:
            save_bioimageio_package(described, output_path=partial)
            sign_zip(partial)


def _describe(model: Path, mean: PosteriorMean, folder: Path, license_id: str) -> Any:
    """Return the bioimageio.spec description of the package in `folder`."""
    from bioimageio.spec.common import FileDescr
    from bioimageio.spec.model import v0_5

    description = read_description(model)
    task = TASKS[description.task]
    step = mean.network.stride // mean.scale
    size = v0_5.ParameterizedSize(min=SIDE, step=step)
    inputs = [f"slice {offset:+d}" for offset in CONDITION_OFFSETS] if task.volumetric else ["image"]
    outputs = [f"slice {i} of the gap" for i in range(1, mean.factor)] if task.volumetric else ["restored"]

    def described(file: str) -> Any:
        return FileDescr(source=folder / file)

    def space(axis: str) -> Any:
        reference = v0_5.SizeReference(tensor_id="input", axis_id=axis)
        return v0_5.SpaceOutputAxis(id=axis, size=reference, scale=1 / mean.scale)

    unit = [
        v0_5.ScaleRangeDescr(kwargs=v0_5.ScaleRangeKwargs(min_percentile=LOW, max_percentile=HIGH)),
        v0_5.ScaleLinearDescr(kwargs=v0_5.ScaleLinearKwargs(gain=2.0, offset=-1.0)),
    ]
    return v0_5.ModelDescr(
        name=f"emdiffuse {description.name or description.task}",
        description=f"EMDiffuse, {task.title}: the posterior mean in one network evaluation.",
        authors=[v0_5.Author(name="made with emdiffuse")],
        cite=[v0_5.CiteEntry(text="Lu et al., Nature Communications 2024", doi="10.1038/s41467-024-49125-z")],
        license=license_id,
        documentation=described(CARD_FILE),
        covers=[described("cover.png")],
        tags=["electron-microscopy", "image-restoration", "diffusion", description.task],
        inputs=[
            v0_5.InputTensorDescr(
                id="input",
                axes=[
                    v0_5.BatchAxis(),
                    v0_5.ChannelAxis(channel_names=inputs),
                    v0_5.SpaceInputAxis(id="y", size=size),
                    v0_5.SpaceInputAxis(id="x", size=size),
                ],
                test_tensor=described("test_input.npy"),
                preprocessing=unit,
            )
        ],
        outputs=[
            v0_5.OutputTensorDescr(
                id="output",
                description="In [-1, 1], the range of the scaled input.",
                axes=[
                    v0_5.BatchAxis(),
                    v0_5.ChannelAxis(channel_names=outputs),
                    space("y"),
                    space("x"),
                ],
                test_tensor=described("test_output.npy"),
            )
        ],
        weights=v0_5.WeightsDescr(
            torchscript=v0_5.TorchscriptWeightsDescr(
                source=folder / "weights.pt", pytorch_version=torch.__version__.split("+")[0]
            )
        ),
    )


def _cover(condition: Tensor, restored: Tensor) -> bytes:
    """Draw the test image and its restoration as a PNG with the zoo's 2:1 aspect ratio."""
    from matplotlib import image

    pictures = [F.interpolate(values[:, :1], (256, 256), mode="nearest") for values in (condition, restored)]
    pixels = ((torch.cat(pictures, 3)[0, 0] + 1) / 2).clamp(0, 1).numpy()
    buffer = io.BytesIO()
    image.imsave(buffer, pixels, cmap="gray", vmin=0, vmax=1, format="png")
    return buffer.getvalue()
