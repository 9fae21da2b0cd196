"""Validation: restoration of held-out patches, in numbers and images.

Conventions
-----------
* A native network is validated by its posterior mean in one evaluation, the published one by 8 evaluations on
  fewer patches; both beside the plain estimate (the input, or linear interpolation).
* Without clean images there is no PSNR against a truth: instead the mean squared error against hidden noisy
  pixels, or against the second scan, is measured (`validation_loss`, `plain_loss`). Both include the noise
  variance, which no model can remove; they compare models on the same pixels.
* Metrics refer to [-1, 1], a range of 2. Images are uint8, with -1 black and 1 white.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emdiffuse.config import Sampler
from emdiffuse.evaluation.metrics import psnr, ssim
from emdiffuse.models.description import PUBLISHED_SAMPLER, OwnSampler
from emdiffuse.models.draws import Draws
from emdiffuse.models.networks.native import NativeNetwork, plain_estimate
from emdiffuse.models.processes import Batch, NativeProcess
from emdiffuse.patches.cut import PatchStore
from emdiffuse.runtime import checkpoints
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.json_files import as_json_line
from emdiffuse.runtime.progress import clock, logger
from emdiffuse.training.blind_spot import hide
from emdiffuse.training.feed import HIDING, VALIDATING, read_batch, seed_of
from emdiffuse.training.outlook import score
from emdiffuse.training.state import TrainingState

if TYPE_CHECKING:  # only installed for training
    from torch.utils.tensorboard import SummaryWriter

PATCHES = 64
"""Number of patches restored, or of network evaluations, per validation."""
SHOWN = 6
"""Number of examples in an image."""

Picture = NDArray[np.uint8]


def validate(
    state: TrainingState,
    patches: PatchStore,
    run: Path,
    board: SummaryWriter,
    device: torch.device,
) -> None:
    """Restore validation patches, record the results, and keep the best weights.

    Parameters
    ----------
    state : TrainingState
        The state, whose `history`, `best` and `stale` are updated.
    patches : PatchStore
        The patches.
    run : Path
        Folder to write ``stats.jsonl`` (one line per validation) and ``best.pt`` (the best weights) to.
    board : SummaryWriter
        TensorBoard writer, for numbers and an image.
    device : torch.device
        Device of the network.
    """
    numbers, picture = _measure(state, patches, device)
    entry: dict[str, float] = {"step": state.step, "seconds": round(state.seconds, 1)}
    if state.losses:
        entry["loss"] = float(np.mean(state.losses))
    entry |= numbers
    state.history.append(entry)
    write_atomically(run / "stats.jsonl", "".join(map(as_json_line, state.history)))
    for name, value in entry.items():
        board.add_scalar(name, value, state.step)
    board.add_image("validation: condition, plain, restored, target", picture, state.step, dataformats="HW")
    logger.info("step %d (%s): validation %s", state.step, clock(state.seconds), _said(entry))
    state.stale += 1
    if score(entry) > state.best:
        state.best, state.stale = score(entry), 0
        checkpoints.write(run / "best.pt", state.average.state_dict())


def _said(entry: dict[str, float]) -> str:
    """Return the results of a validation in words."""
    if "validation_psnr" not in entry:
        return (
            f"error {entry['validation_loss']:.5f} against noisy pixels, noise included (plain "
            f"{entry['plain_loss']:.5f})"
        )
    return (
        f"PSNR {entry['validation_psnr']:.2f} dB (plain {entry['plain_psnr']:.2f}), SSIM "
        f"{entry['validation_ssim']:.3f} (plain {entry['plain_ssim']:.3f})"
    )


def _measure(
    state: TrainingState, patches: PatchStore, device: torch.device
) -> tuple[dict[str, float], Picture]:
    """Measure against the truth, or against noisy pixels."""
    measure = _measure_truth if patches.facts.measured else _measure_noisy
    return measure(state, patches, device)


@torch.inference_mode()
def _measure_noisy(
    state: TrainingState, patches: PatchStore, device: torch.device
) -> tuple[dict[str, float], Picture]:
    """Return the mean squared error against noisy pixels of the restoration and the plain estimate."""
    assert isinstance(state.process, NativeProcess)
    spot = state.process.blind_spot
    rows = patches.validation[:: max(len(patches.validation) // PATCHES, 1)][:PATCHES]
    errors: dict[str, list[float]] = {"validation_loss": [], "plain_loss": []}
    shown: list[list[NDArray[np.float32]]] = []
    for row in rows:
        batch, target = read_batch(patches, np.array([row]))
        noisy = target[0, 0].numpy()
        if spot is not None:
            hiding = Draws(seed_of(int(row), 0, HIDING), 1)
            condition, target = hide(batch.condition, target, spot, hiding.uniform)
            batch = batch._replace(condition=condition)
        batch, hidden = batch.to(device), ~target.isnan()
        with state.autocast:
            restored = state.process.sample(state.average, batch, Sampler(steps=1), _no_noise)
        images = {"plain": state.process.plain(batch), "validation": restored}
        images = {name: image.float().cpu() for name, image in images.items()}
        for name, image in images.items():
            errors[f"{name}_loss"].append(float((image - target)[hidden].square().mean()))
        if len(shown) < SHOWN:
            known = batch.condition[0, batch.condition.shape[1] // 2].cpu().numpy()
            shown.append([known, *(image[0, 0].numpy() for image in images.values()), noisy])
    return {name: float(np.mean(values)) for name, values in errors.items()}, montage(shown)


def _no_noise(step: int) -> Tensor:
    raise AssertionError("the posterior mean in one evaluation draws no noise")


@torch.inference_mode()
def _measure_truth(
    state: TrainingState, patches: PatchStore, device: torch.device
) -> tuple[dict[str, float], Picture]:
    """Return mean PSNR and SSIM of the restoration and the plain estimate, and an image of the former."""
    few = OwnSampler(name="dpm++", steps=1) if isinstance(state.network, NativeNetwork) else PUBLISHED_SAMPLER
    sampler = Sampler(name=few.name, steps=few.steps)
    assert sampler.steps is not None
    wanted = PATCHES // sampler.steps
    rows = patches.validation[:: max(len(patches.validation) // wanted, 1)][:wanted]
    numbers: dict[str, list[float]] = {
        k: [] for k in ("validation_psnr", "validation_ssim", "plain_psnr", "plain_ssim")
    }
    shown: list[list[NDArray[np.float32]]] = []
    for row in rows:
        batch, target = read_batch(patches, np.array([row]))
        batch = batch.to(device)

        def white(step: int, row: int = int(row), shape: tuple[int, ...] = batch.shape) -> Tensor:
            generator = torch.Generator().manual_seed(seed_of(row, step, VALIDATING))
            return torch.randn(shape, generator=generator).to(device)

        with state.autocast:
            restored = state.process.sample(state.average, batch, sampler, white)
        present = ~torch.isnan(target[0, :, 0, 0])
        truth = target[0][present].numpy()
        spot = state.process.blind_spot if isinstance(state.process, NativeProcess) else None
        plain = plain_estimate(batch.condition, batch.positions, spot)
        found = {"plain": plain, "validation": restored}
        images = {name: image[0].float().cpu()[present].numpy() for name, image in found.items()}
        for name, values in images.items():
            numbers[f"{name}_psnr"].append(psnr(values, truth, 2.0))
            numbers[f"{name}_ssim"] += [ssim(a, b, 2.0) for a, b in zip(values, truth, strict=True)]
        if len(shown) < SHOWN:
            middle = len(truth) // 2
            known = batch.condition[0, len(batch.condition[0]) // 2].cpu().numpy()
            shown.append([known, *(values[middle] for values in images.values()), truth[middle]])
    return {name: float(np.mean(values)) for name, values in numbers.items()}, montage(shown)


def batch_picture(batch: Batch, target: Tensor) -> Picture:
    """Draw examples as the network sees them, one per row: the condition, then the middle of the target.

    With hidden pixels, the target is black elsewhere.
    """
    depths = (~target.isnan()).any(3).any(2).sum(1).tolist()
    rows = [
        [*known, wanted[depth // 2].nan_to_num(-1.0).numpy()]
        for known, wanted, depth in zip(batch.condition.numpy(), target, depths, strict=True)
    ]
    return montage(rows[:SHOWN])


def montage(rows: list[list[NDArray[np.float32]]], edge: int = 2) -> Picture:
    """Arrange images (H, W) in [-1, 1] in rows, separated by white edges."""
    framed = [
        np.concatenate([np.pad(image, edge, constant_values=1.0) for image in row], axis=1) for row in rows
    ]
    shades: Picture = np.rint((np.clip(np.concatenate(framed), -1, 1) + 1) * 127.5).astype(np.uint8)
    return shades
