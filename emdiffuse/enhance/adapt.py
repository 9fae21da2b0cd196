"""Fine-tune a model on the user's own volume, without ground truth: acquire, cut, train, keep the best.

Conventions
-----------
* The model learns in two ways (`patches.gaps`): from the lateral planes, like vemdiffuse-a, and from the
  volume's slices, of which every second one is left out and predicted from its neighbours. Thick slices allow
  only the first way. The thickness and noise of slices are taken as they are.
* The far end of the volume along y is held out. The starting model is scored on it first, and the state with
  the best score is kept, which is the starting model itself if nothing is better (`training.outlook`).
* The stages work in a folder beside the model (``.NAME.adapting``), which remains after an interruption or a
  kill, so that the same command resumes. It is removed when the model is complete.
* The model folder is moved into place by renaming: whenever the work is killed, `out` is the earlier model,
  missing, or the new one.
* A configuration can do the same: `settings_for` returns its settings.
* A denoiser can be adapted if it learned from noisy images itself: it predicts hidden pixels, and models are
  compared on those of the held-out part (`training.blind_spot`).
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
from emdiffuse.stores.neighbours import require_several
from emdiffuse.training.launch import TrainingJob, train_here

SIDES = (64, 48, 32, 16)
"""Candidate patch sizes; the largest that fits is used."""
PATCHES = 4000
"""Maximum number of patches: more than one core uses in ten minutes."""
MOST_STEPS = 100_000
FILES = (WEIGHTS_FILE, DESCRIPTION_FILE, "metrics.json", "batch.png", CARD_FILE)
"""Files of the training that are kept: those of a model."""


def adapt(
    source: Path | str,
    out: Path,
    how: Enhancement,
    minutes: float = 10,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Fine-tune a model on the user's own volume, without ground truth.

    Parameters
    ----------
    source : Path or str
        The volume, in any supported format.
    out : Path
        Folder for the model: ``model.safetensors``, ``model.json``, ``metrics.json``, ``batch.png``, card.
    how : Enhancement
        Starting model, voxel size or factor, slice thickness, and part of the file to read.
    minutes : float
        Wall time of the training, including scoring, but not reading and cutting.
    seed : int
        Random seed of the order of patches and of the noise.
    overwrite : bool
        Whether to replace files of these names in `out` that emdiffuse did not write.

    Raises
    ------
    Interrupted
        If interrupted by a signal; the state is saved, and the same call resumes.
    OutputError
        If the folder contains foreign files, or is an input.
    ConfigError
        If the model cannot learn without ground truth.
    DataError
        If the volume cannot be used, or is too small to hold out a part.
    """
    description = read_description(how.model)
    _require_adaptable(how.model, description)
    place_of(how.device)  # check before the work begins
    images = not TASKS[description.task].volumetric
    slices = open_source(str(source), reading=how.reading, images=images)
    if description.context:
        require_several(slices.shape[0], source)
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
            override=True,  # `size` already includes the file's metadata
            thickness=0.0 if images else how.thickness,
        )
        cut_patches([volume], model, store)
        train_here(TrainingJob(store, model, plain_name(out.name, "adapted"), work / "model", how.device))
        if out.exists():
            shutil.rmtree(work / "earlier", ignore_errors=True)  # of a run killed below
            out.replace(work / "earlier")
        (work / "model" / "best").replace(out)
        logger.info("%s: use it with `--model %s`", out, out)
        work.replace(_done(work))  # under this name no half-removed store is reused
        _remove(_done(work))


def _require_free(out: Path, inputs: list[Path], overwrite: bool) -> None:
    """Refuse a folder with anything but an earlier emdiffuse model, since it is replaced as a whole."""
    require_place(out, inputs, overwrite)
    if not out.is_dir():
        if out.exists():
            raise OutputError(f"{out}: a file is in the way; move it, or choose another output")
        return
    ours = overwrite or is_own_file(out / DESCRIPTION_FILE)
    for file in sorted(out.iterdir()):
        if not (ours and file.name in FILES):
            raise OutputError(
                f"{file}: this file is not part of a model written by emdiffuse; move it, or choose another "
                "output"
            )


def _done(work: Path) -> Path:
    """Return the name under which a work folder is removed."""
    return work.with_name(f"{work.name}-done")


def _remove(folder: Path) -> None:
    """Remove a folder of this program, marker last, so that remains of a kill are recognised as its own."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    shutil.rmtree(folder)


def _take_up(work: Path) -> None:
    """Create the work folder, or reuse the one left by an interrupted run."""
    if (_done(work) / MARKER).is_file():
        _remove(_done(work))
    if not (work / MARKER).is_file():
        require_own_folder(work)
    work.mkdir(parents=True, exist_ok=True)
    mark(work)


def _require_adaptable(folder: Path, description: Description) -> None:
    """Refuse models that cannot learn from the data alone, or cannot be compared with the result."""
    if TASKS[description.task].volumetric or description.learned_from == "hidden pixels":
        return
    if description.task == "emdiffuse-n":
        raise ConfigError(
            f"--model {folder}: this model learned from clean images, so noisy images alone cannot show "
            "whether another is better; give a model that learned from noisy images (`task: emdiffuse-n` in "
            "a "
            "configuration), or fine-tune this one on pairs (`init_from`)"
        )
    raise ConfigError(
        f"--model {folder}: {description.task} cannot be adapted without ground truth; fine-tune it on pairs "
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
    """Return the settings of the fine-tuning, in the form of a configuration.

    Parameters
    ----------
    description : Description
        The starting model.
    factor : Fraction
        Anisotropy factor of the volume.
    shape : tuple of int
        Shape (z, y, x) of the volume.
    how : Enhancement
        Folder of the model, and slice thickness.
    minutes : float
        Wall time of the training.
    seed : int
        Random seed.

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
        "patches": Patches(size=size, limit=PATCHES, left_out_slices=knows and thin),
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
    """Return the settings for fine-tuning a self-supervised denoiser on other noisy images; see `adapt`."""
    spec = description.network
    assert isinstance(spec, NativeSpec)
    values = {
        "task": "emdiffuse-n",
        "datasets": ("volume",),
        "patches": Patches(size=_size(shape, 1, 16), limit=PATCHES, context=description.context),
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
        patience=None,  # the user sets the time
        init_from=str(how.model),
        seed=seed,
        **others,
    )


def _model(values: dict[str, Any]) -> Model:
    return parse(Model, {k: v.model_dump() if isinstance(v, Section) else v for k, v in values.items()})


def _size(shape: tuple[int, int, int], length: int, largest: int) -> int:
    """Return the largest patch size that fits beside the held-out part."""
    _, height, width = shape
    for size in SIDES:
        end, _ = training_length(height, Patches().validation, max(length, size), largest)
        if end >= size and width >= size:
            return size
    raise DataError(
        f"{height} x {width} pixels are too few to train on and hold out a part, at gaps of {length} "
        "pixels; give a larger part of the volume"
    )
