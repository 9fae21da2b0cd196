"""Adapt a model to a volume of the user's own, without any truth: acquire, cut, fine-tune, keep the best.

Conventions
-----------
* The volume teaches in two ways (`patches.gaps`): by its lateral planes, as vemdiffuse-a, and by its own
  slices, of which every second one is left out and restored between its neighbours. Thick slices teach in the
  first way alone. Slices are as thick, and as noisy, as they are found.
* A part of the volume, its far end along y, is never learned from. The model to begin from is scored on it
  first, and the best state by it is kept, that model itself where nothing is better (`training.outlook`).
* The stages work in a folder beside the model (``.NAME.adapting``), which stays when they are interrupted or
  killed: the same command resumes. It is removed when the model is there.
* The model takes its place as a whole folder, by renaming: whenever the work is killed, what lies at `out` is
  the earlier model, nothing, or the new one.
* What the configuration can say does the same: `settings_for` returns it.
* A denoiser is adapted where it learned from noisy images itself: it predicts hidden pixels, and by those of
  the part that is held out the two are compared (`training.blind_spot`).
"""

from __future__ import annotations

import shutil
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.config import (
    MAXIMUM_FACTOR,
    MINIMUM_FACTOR,
    Augmentation,
    Model,
    Network,
    Patches,
    Training,
    anisotropy_factor,
)
from emdiffuse.config.settings import Section, parse
from emdiffuse.config.sources import parse_source
from emdiffuse.config.tasks import TASKS
from emdiffuse.enhance.one_file import Enhancement, plain_name, speaking_of, voxel_size
from emdiffuse.models.card import CARD_FILE
from emdiffuse.models.description import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    Description,
    NativeSpec,
    read_description,
)
from emdiffuse.models.networks.weights import require_place
from emdiffuse.patches.cut import cut_patches
from emdiffuse.patches.gaps import left_out_factor, window
from emdiffuse.patches.origins import training_length
from emdiffuse.readers import open_source
from emdiffuse.runtime.checkpoints import only_one
from emdiffuse.runtime.devices import place_of
from emdiffuse.runtime.errors import ConfigError, DataError, OutputError
from emdiffuse.runtime.outputs import MARKER, is_own_file, mark, require_own_folder
from emdiffuse.runtime.progress import logger
from emdiffuse.training.launch import TrainingJob, train_here

SIDES = (64, 48, 32, 16)
"""Sizes of a patch, of which the largest that fits is taken."""
PATCHES = 4000
"""Patches that are cut: more than ten minutes of a core can look at."""
MOST_STEPS = 100_000
FILES = (WEIGHTS_FILE, DESCRIPTION_FILE, "metrics.json", "batch.png", CARD_FILE)
"""What is left of the training: the files of a model."""


def adapt(
    source: Path | str,
    out: Path,
    how: Enhancement,
    minutes: float = 10,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Fine-tune a model on a volume of the user's own, which has no truth.

    Parameters
    ----------
    source : Path or str
        The volume, of whatever format can be acquired.
    out : Path
        Folder for the model: ``model.safetensors``, ``model.json``, ``metrics.json``, ``batch.png``, card.
    how : Enhancement
        Model to begin from, voxel size or factor, thickness of slices, which part of the file is meant.
    minutes : float
        Wall time of the training, scoring included; reading and cutting come on top.
    seed : int
        Of the order of patches and of the noise.
    overwrite : bool
        Whether files of these names in `out` that this program did not write are replaced.

    Raises
    ------
    Interrupted
        If a signal came; the state is saved, and the same call resumes.
    OutputError
        If the folder contains foreign files, or is an input.
    ConfigError
        If the model cannot learn without truth.
    DataError
        If the volume cannot be used, or is too small to hold a part of it back.
    """
    description = read_description(how.model)
    _require_adaptable(how.model, description)
    place_of(how.device)  # before the work begins
    images = not TASKS[description.task].volumetric
    slices = open_source(str(source), reading=how.reading, images=images)
    inputs = [Path(parse_source(str(source)).place), *slices.files, how.model]
    _require_free(out, inputs, overwrite)
    size, _ = voxel_size(slices, how, volumetric=not images)
    if images:
        model = settings_of_images(description, slices.shape, how, minutes, seed)
    else:
        factor = anisotropy_factor(size, str(source))
        model = settings_for(description, factor, slices.shape, how, minutes, seed)
    work = out.with_name(f".{out.name}.adapting")
    _take_up(work)
    name = plain_name(Path(source).stem, "volume")
    volume, store = work / "input.ome.zarr", work / "patches.zarr"
    with only_one(work / "lock"), speaking_of({volume: source}):
        acquire(
            str(source),
            size,
            volume,
            name,
            images=images and description.context == 0,
            reading=how.reading,
            override=True,  # what the file tells is in `size` already
            thickness=0.0 if images else how.thickness,
        )
        cut_patches([volume], model, store)
        train_here(TrainingJob(store, model, plain_name(out.name, "adapted"), work / "model", how.device))
        if out.exists():
            out.replace(work / "earlier")
        (work / "model" / "best").replace(out)
        logger.info("%s: use it by `--model %s`", out, out)
        shutil.rmtree(work, ignore_errors=True)


def _require_free(out: Path, inputs: list[Path], overwrite: bool) -> None:
    """Refuse a folder with anything but an earlier model of this program's: it is replaced as a whole."""
    require_place(out, inputs, overwrite)
    if not out.is_dir():
        if out.exists():
            raise OutputError(f"{out}: a file is in the way; move it, or choose another output")
        return
    ours = overwrite or is_own_file(out / DESCRIPTION_FILE)
    for file in sorted(out.iterdir()):
        if not (ours and file.name in FILES):
            raise OutputError(
                f"{file}: this file is not part of a model that emdiffuse made; move it, or choose another "
                "output"
            )


def _take_up(work: Path) -> None:
    """Make the folder of the work, or take up the one that an interrupted start left."""
    if not (work / MARKER).is_file():
        require_own_folder(work)
    work.mkdir(parents=True, exist_ok=True)
    mark(work)


def _require_adaptable(folder: Path, description: Description) -> None:
    """Refuse models that cannot learn from the data alone, or not be compared with what learned so."""
    if TASKS[description.task].volumetric or description.learned_from == "hidden pixels":
        return
    if description.task == "emdiffuse-n":
        raise ConfigError(
            f"--model {folder}: it learned from clean images, so that noisy ones alone cannot tell whether "
            "another is better; give a model that learned from noisy images (`task: emdiffuse-n` in a "
            "configuration), or fine-tune this one on pairs (`init_from`)"
        )
    raise ConfigError(
        f"--model {folder}: {description.task} cannot be adapted without truth; fine-tune it on pairs "
        "(`init_from` in a configuration)"
    )


def settings_for(
    description: Description,
    factor: Fraction,
    shape: tuple[int, int, int],
    how: Enhancement,
    minutes: float,
    seed: int = 0,
) -> Model:
    """Return the settings of the fine-tuning, as a configuration could say them.

    Parameters
    ----------
    description : Description
        The model to begin from.
    factor : Fraction
        Anisotropy factor of the volume.
    shape : tuple of int
        Its shape (z, y, x).
    how : Enhancement
        Folder of the model, and thickness of slices.
    minutes : float
        Wall time.
    seed : int
        Seed.

    Raises
    ------
    DataError
        If the volume is too small.
    """
    factors = sorted({f for f in (floor(factor), ceil(factor)) if MINIMUM_FACTOR <= f <= MAXIMUM_FACTOR})
    spec = description.network
    if not isinstance(spec, NativeSpec):
        factors = [round(factor)]
    network = Network(
        architecture=spec.architecture,
        channels=spec.channels if isinstance(spec, NativeSpec) else spec.base_channels,
        multipliers=spec.multipliers,
        blocks=spec.blocks,
    )
    length = 3 * max(factors) + ceil(window(max(factors), how.thickness))
    size = _size(shape, length, max(factors))
    twice = left_out_factor(float(factor))
    knows = isinstance(spec, NativeSpec) and twice is not None and twice <= spec.factors[1]
    thin = window(float(factor), how.thickness) == 1
    values = {
        "task": "vemdiffuse-a",
        "datasets": ("volume",),
        "factor": tuple(factors),
        "thickness": how.thickness,
        "patches": Patches(size=size, limit=PATCHES, left_out_slices=knows and thin, seed=seed),
        "augmentation": Augmentation(gain=0.3, brightness_jump=0.03),
        "network": network,
        "training": _training(how, minutes, seed, mean_share=0.75),
    }
    return _model(values)


def settings_of_images(
    description: Description,
    shape: tuple[int, int, int],
    how: Enhancement,
    minutes: float,
    seed: int = 0,
) -> Model:
    """Return the settings of fine-tuning a denoiser that learned from noisy images on others; see `adapt`."""
    spec = description.network
    assert isinstance(spec, NativeSpec)
    values = {
        "task": "emdiffuse-n",
        "datasets": ("volume",),
        "patches": Patches(size=_size(shape, 1, 16), limit=PATCHES, context=description.context, seed=seed),
        "network": Network(channels=spec.channels, multipliers=spec.multipliers, blocks=spec.blocks),
        "training": _training(how, minutes, seed, blind_spot=spec.blind_spot),
    }
    return _model(values)


def _training(how: Enhancement, minutes: float, seed: int, **others: Any) -> Training:
    return Training(
        steps=MOST_STEPS,
        minutes=minutes,
        learning_rate=3e-4,
        warmup=50,
        ema=0.99,
        validate_every=50,
        checkpoint_minutes=0.5,
        patience=None,  # the time is the user's
        init_from=str(how.model),
        seed=seed,
        **others,
    )


def _model(values: dict[str, Any]) -> Model:
    return parse(Model, {k: v.model_dump() if isinstance(v, Section) else v for k, v in values.items()})


def _size(shape: tuple[int, int, int], length: int, largest: int) -> int:
    """Return the largest size of a patch that fits, beside a part that is held back."""
    _, height, width = shape
    for size in SIDES:
        end, _ = training_length(height, Patches().validation, max(length, size), largest)
        if end >= size and width >= size:
            return size
    raise DataError(
        f"{height} x {width} pixels are too few to learn from and to hold a part back, at gaps of {length} "
        "pixels; give a larger part of the volume"
    )
