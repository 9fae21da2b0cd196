"""Check that the entries of a configuration are consistent: names, held-out data, matching networks.

Every function raises ValueError with one sentence that begins with the key.
"""

from __future__ import annotations

from typing import Any

from emdiffuse.config.datasets import anisotropy_factor
from emdiffuse.config.entries import Entries
from emdiffuse.config.restorations import Restoration
from emdiffuse.config.tasks import TASKS

SHAPE = {"architecture", "channels", "multipliers"}
"""Network keys that must match for weights to fit; a native network may also have more blocks."""


def require_names_differ(config: Entries) -> None:
    """Refuse names that would share a file: on a disk that ignores case, or as logs of restorations."""
    for key, names in (("datasets", config.datasets), ("models", config.models)):
        known: dict[str, str] = {}
        for name in names:
            other = known.setdefault(name.casefold(), name)
            if other != name:
                raise ValueError(
                    f"{key}: '{other}' and '{name}' differ only in case, which some disks ignore; rename one"
                )
    joined: dict[str, Restoration] = {}
    for item in config.restorations:
        first = joined.setdefault(f"{item.dataset}-{item.model}", item)
        if (first.dataset, first.model) != (item.dataset, item.model):
            raise ValueError(
                f"restorations: '{first.dataset}' by '{first.model}' and '{item.dataset}' by '{item.model}' "
                "would share their log files; rename one of them"
            )


def require_model_fits(config: Entries, name: str) -> None:
    """Refuse a model that cannot learn from its datasets, or cannot start from its starting model."""
    model = config.models[name]
    for dataset in model.datasets:
        _known(f"models.{name}.datasets", dataset, config.datasets)
        wants = not TASKS[model.task].volumetric
        if wants != config.datasets[dataset].holds_pairs and model.task != "emdiffuse-n":
            kind = "image pairs" if wants else "volumes"
            raise ValueError(f"models.{name}.datasets: {model.task} learns from {kind}, not '{dataset}'")
    _noisy(config, name)
    _transfer(config, name)


def require_restoration_fits(config: Entries, index: int) -> None:
    """Refuse a restoration that its model cannot perform, or that could not be evaluated fairly."""
    item, key = config.restorations[index], f"restorations.{index}"
    _known(f"{key}.dataset", item.dataset, config.datasets)
    _known(f"{key}.model", item.model, config.models)
    if any((item.dataset, item.model) == (o.dataset, o.model) for o in config.restorations[:index]):
        raise ValueError(f"{key}: '{item.dataset}' with '{item.model}' is listed twice")
    _restorable(config, key, item)
    if item.real_slices is not None:
        _restored_slices(config, f"{key}.real_slices", item, item.real_slices)
    truth = config.truth(item)
    if truth is not None:
        _known(f"{key}.truth", truth, config.datasets)
        _separate(config, key, item, truth)
    if item.second_scan is not None:
        _known(f"{key}.second_scan", item.second_scan, config.datasets)
        task = config.models[item.model].task
        if task != "emdiffuse-n":
            raise ValueError(f"{key}.second_scan: this key is for emdiffuse-n, not {task}; remove it")
        _separate(config, key, item, item.second_scan)
    if item.calibration is not None:
        _calibrated(config, f"{key}.calibration.dataset", item)


def _restorable(config: Entries, key: str, item: Restoration) -> None:
    """Refuse a dataset of the wrong kind, and samples of a model that draws none."""
    if config.datasets[item.dataset].holds_pairs:
        raise ValueError(
            f"{key}.dataset: '{item.dataset}' contains image pairs; give the images as `source`, or set "
            "`images: true` beside `degrade`"
        )
    if config.learns_from_noisy(item.model) and item.sampler.draws:
        raise ValueError(
            f"{key}.sampler: '{item.model}' learns from noisy images alone, so it gives the mean and "
            "draws no samples; remove `samples`, `steps`, `texture` and `sharpen`"
        )
    task = config.models[item.model].task
    if not TASKS[task].volumetric:
        return
    if config.holds_images(item.dataset):
        raise ValueError(f"{key}.dataset: {task} restores a volume, not the images of '{item.dataset}'")
    size = config.voxel_size(item.dataset)
    if size is not None:
        # the slices of an isotropic volume may be repaired, too
        repair = config.datasets[config.origin(item.dataset)].repairs_slices
        anisotropy_factor(size, f"{key}.dataset", isotropic=repair)


def _noisy(config: Entries, name: str) -> None:
    """Refuse mixed ways of learning from noise, and `context` for images without neighbouring slices."""
    model = config.models[name]
    own = [config.datasets[dataset] for dataset in model.datasets]
    scans = [dataset.pairs is not None and bool(dataset.pairs.scans) for dataset in own]
    if any(scans) and not all(dataset.holds_pairs for dataset in own):
        raise ValueError(
            f"models.{name}.datasets: a model cannot learn from both repeated scans (`pairs.scans`) and "
            "single images; train one model for each"
        )
    for dataset, key in zip(own, model.datasets, strict=True):
        separate = dataset.pairs is not None or (dataset.images and not dataset.degrade)
        if model.patches.context and (separate or (dataset.degrade and dataset.degrade.every > 1)):
            raise ValueError(
                f"models.{name}.patches.context: '{key}' contains separate images, which have no "
                "neighbouring slices; remove this key"
            )


def _transfer(config: Entries, name: str) -> None:
    """Refuse a model that starts from itself, directly or indirectly, or from a different network."""
    begun, seen = name, [name]
    while (begun := config.models[begun].training.init_from or "") in config.models:
        if begun in seen:
            raise ValueError(f"models.{name}.training.init_from: '{begun}' would start from itself")
        seen.append(begun)
        if config.models[begun].weights is not None:
            return  # training checks that network when it reads the folder
        models = config.models[name], config.models[begun]
        own, other = (
            (
                TASKS[model.task].volumetric,
                model.patches.context,
                *model.network.model_dump(include=SHAPE).values(),
            )
            for model in models
        )
        more = models[0].network.blocks - models[1].network.blocks
        if own != other or more < 0 or (more and models[0].network.architecture == "unet"):
            raise ValueError(
                f"models.{name}.training.init_from: '{begun}' has a different network; make both the same"
            )


def _known(key: str, name: str, names: dict[str, Any]) -> None:
    if name not in names:
        raise ValueError(f"{key}: there is no '{name}'; known: {', '.join(names)}")


def _separate(config: Entries, key: str, item: Restoration, truth: str) -> None:
    """Refuse to evaluate a model on a volume that it, or a model it starts from, was trained on.

    Two exceptions: vemdiffuse-a may learn from the kept slices of a volume and be evaluated on those left
    out; a model may learn from noisy images if it never saw the clean ones.
    """
    keep = config.datasets[item.dataset].keep_every
    allowed = item.dataset if keep and keep.dataset == truth else None
    models = config.lineage(item.model) + (config.lineage(item.real_slices) if item.real_slices else [])
    learned = [
        (name, config.learns_from_noisy(model)) for model in models for name in config.models[model].datasets
    ]
    trained = {config.origin(name) for name, noisy in learned if name != (item.dataset if noisy else allowed)}
    sources = {config.datasets[name].source for name in trained} - {None}
    # raw data: noisy images that were learned from cannot serve as ground truth
    shown = {config.datasets[name].source for name, _ in learned} - {None}
    for name in (item.dataset, truth):
        source = config.datasets[config.origin(name)].source
        if config.origin(name) in trained or source in (shown if name == truth else sources):
            model = " or ".join(f"'{own}'" for own in (item.model, item.real_slices) if own)
            raise ValueError(
                f"{key}: model {model} was trained on '{config.origin(name)}' and cannot be evaluated on it"
            )


def _restored_slices(config: Entries, key: str, item: Restoration, model: str) -> None:
    """Refuse real slices that are not restored, or not on the grid of the dataset."""
    _known(key, model, config.models)
    if not TASKS[config.models[item.model].task].volumetric:
        raise ValueError(
            f"{key}: {config.models[item.model].task} already restores every slice; remove this key"
        )
    if config.models[model].task != "emdiffuse-n":
        raise ValueError(f"{key}: '{model}' is not an emdiffuse-n model; name a denoiser")
    if not any((other.dataset, other.model) == (item.dataset, model) for other in config.restorations):
        raise ValueError(f"{key}: '{item.dataset}' is not restored by '{model}'; add that to `restorations`")


def _calibrated(config: Entries, key: str, item: Restoration) -> None:
    """Refuse to calibrate on the same dataset, on one without truth, or on one restored differently."""
    assert item.calibration is not None
    other = config.calibrated_on(item)
    if other is None or (other.second_scan or config.truth(other)) is None:
        raise ValueError(
            f"{key}: '{item.calibration.dataset}' must be restored by '{item.model}' too, and have a "
            "`truth` or a `second_scan`"
        )
    if config.origin(other.dataset) == config.origin(item.dataset):
        raise ValueError(f"{key}: '{other.dataset}' is the dataset being restored; calibrate on other data")
    if other.sampler.model_copy(update={"seed": item.sampler.seed}) != item.sampler:
        raise ValueError(f"{key}: '{other.dataset}' is restored with a different `sampler`; use the same")
    if other.real_slices is not None:
        raise ValueError(f"{key}: '{other.dataset}' is restored with `real_slices`; remove it there")
