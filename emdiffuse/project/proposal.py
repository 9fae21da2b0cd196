"""Propose how to restore data: with which model, and what it learns from.

Conventions
-----------
* Isotropic volumes are training data, or are restored slice by slice; anisotropic ones are restored. Pairs
  are training data, images are restored.
* Images alone are assumed to be noisy: a denoiser learns from them and restores them. If they are too small
  to learn from, a shipped model restores them.
* A *given* model is used unchanged: its folder, or the name of a shipped one. If none is named and the data
  contain nothing to learn from, a shipped model is proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from emdiffuse.config import MAXIMUM_FACTOR, MINIMUM_FACTOR
from emdiffuse.config.shipped import SHIPPED
from emdiffuse.config.tasks import TASKS
from emdiffuse.project.survey import Finding
from emdiffuse.runtime.errors import ConfigError

PATCH, MARGIN = 64, 16
"""Side of a patch, and distance between training and validation patches, in pixels."""


@dataclass(frozen=True)
class GivenModel:
    """An existing model.

    Attributes
    ----------
    weights : str
        Its name in the configuration.
    task : str
        Its task.
    """

    weights: str
    task: str


@dataclass(frozen=True)
class Learned:
    """A model to train.

    Attributes
    ----------
    name, task : str
        Name and task.
    datasets : tuple of str
        Training data.
    factors : tuple of int
        Anisotropy factors; empty for images.
    noisy : bool
        Whether it learns from noisy images alone, without clean ones.
    """

    name: str
    task: str
    datasets: tuple[str, ...]
    factors: tuple[int, ...] = ()
    noisy: bool = False


@dataclass(frozen=True)
class Proposal:
    """A proposed configuration.

    Attributes
    ----------
    model : GivenModel or Learned
        The model.
    restored : tuple of Finding
        Data to restore.
    learned : tuple of Finding
        Data that are only used for training.
    thinned : tuple of Finding
        Isotropic volumes that are thinned, restored, and compared with the original.
    factor : int
        Every `factor`-th slice of these is kept.
    why : str
        One sentence that explains the choice.
    """

    model: GivenModel | Learned
    restored: tuple[Finding, ...]
    learned: tuple[Finding, ...] = ()
    thinned: tuple[Finding, ...] = ()
    factor: int = 0
    why: str = ""

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.model.name if isinstance(self.model, Learned) else "restorer"


def propose(found: Sequence[Finding], given: GivenModel | None = None, factor: int = 6) -> Proposal:
    """Choose a model, and the data that it restores.

    Parameters
    ----------
    found : sequence of Finding
        The data; the voxel sizes of volumes must be known.
    given : GivenModel, optional
        The model to use.
    factor : int
        How volumes are thinned if all of them are isotropic.

    Raises
    ------
    ConfigError
        If there is no suitable model, or nothing to restore; states what to add.
    """
    for volume in (one for one in found if one.kind == "volume"):
        if not volume.isotropic and not MINIMUM_FACTOR <= volume.ratio <= MAXIMUM_FACTOR:
            raise ConfigError(
                f"{volume.source}: voxels are {volume.ratio:g} times as long as wide, but must be cubes or "
                f"{MINIMUM_FACTOR} to {MAXIMUM_FACTOR} times as long; correct --voxel-size, or omit the "
                "volume"
            )
    if given is not None:
        return _by_given(found, given)
    pairs = tuple(one for one in found if one.kind == "pairs")
    images = tuple(one for one in found if one.kind == "images")
    thick = tuple(one for one in found if one.kind == "volume" and not one.isotropic)
    cubes = tuple(one for one in found if one.kind == "volume" and one.isotropic)
    if pairs:
        return _from_pairs(pairs, images or thick or cubes)
    if thick:
        return _of_gaps(thick, cubes)
    if len(cubes) > 1:
        model = Learned("gaps", "vemdiffuse-i", tuple(one.name for one in cubes[:-1]), (factor,))
        why = f"{cubes[-1].name} is thinned to every {factor}th slice, restored, and compared with itself"
        return Proposal(model, (), cubes[:-1], cubes[-1:], factor, why)
    if cubes:
        raise ConfigError(
            f"{cubes[0].source}: an isotropic volume to learn from, but nothing to restore; add an "
            "anisotropic one with another --raw, or a second isotropic one to evaluate on"
        )
    return _from_noisy(images)


def shipped_for(found: Sequence[Finding]) -> GivenModel | None:
    """Return the shipped model for data without anything to learn from.

    None if there are image pairs, isotropic volumes, or noisy images that are large enough to learn from.
    """
    if any(one.kind == "pairs" or (one.kind == "volume" and one.isotropic) for one in found):
        return None
    if any(one.kind == "volume" for one in found):
        return GivenModel("vemdiffuse", SHIPPED["vemdiffuse"])
    return None if _learnable(found) else GivenModel("emdiffuse-n", SHIPPED["emdiffuse-n"])


def _learnable(images: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the images that are large enough for training patches and separate validation patches."""
    apart = 2 * PATCH + MARGIN
    return tuple(
        one
        for one in images
        if one.shape[2] >= PATCH and one.shape[1] >= (PATCH if one.shape[0] > 1 else apart)
    )


def _from_noisy(images: tuple[Finding, ...]) -> Proposal:
    """Propose a denoiser that learns from noisy images alone."""
    learned = _learnable(images)
    if not learned:
        _, height, width = images[0].shape
        raise ConfigError(
            f"{images[0].source}: {height} x {width} pixels are too few to learn from; name a model with "
            "--model, such as emdiffuse-n, or add a folder of image pairs (noisy and clean) with another "
            "--raw"
        )
    model = Learned("denoise", "emdiffuse-n", tuple(one.name for one in learned), noisy=True)
    return Proposal(
        model, images, why="there are no clean images, so denoise learns from the noisy images alone"
    )


def _by_given(found: Sequence[Finding], given: GivenModel) -> Proposal:
    """Propose to restore all data that the given model can restore."""
    volumetric = TASKS[given.task].volumetric
    fit = tuple(
        one
        for one in found
        if (one.kind == "volume" and not (volumetric and one.isotropic))
        or (one.kind == "images" and not volumetric)
    )
    if not fit:
        wanted = "an anisotropic volume" if volumetric else "images or a volume"
        raise ConfigError(
            f"--model {given.weights}: this model restores {wanted}, but --raw has none; add one"
        )
    return Proposal(given, fit, why=f"all are restored by {given.weights} ({TASKS[given.task].title})")


def _from_pairs(pairs: tuple[Finding, ...], restored: tuple[Finding, ...]) -> Proposal:
    """Propose to learn from pairs, to restore images or the slices of volumes."""
    if not restored:
        raise ConfigError(
            f"{pairs[0].source}: image pairs to learn from, but nothing to restore; add images or a "
            "volume with another --raw"
        )
    task = "emdiffuse-r" if pairs[0].scale == 2 else "emdiffuse-n"
    name = "sharpen" if task == "emdiffuse-r" else "denoise"
    model = Learned(name, task, tuple(one.name for one in pairs))
    return Proposal(model, restored, pairs, why=f"{name} learns from the pairs ({TASKS[task].title})")


def _of_gaps(thick: tuple[Finding, ...], cubes: tuple[Finding, ...]) -> Proposal:
    """Propose to fill the gaps of anisotropic volumes, learned from isotropic ones or their own planes."""
    around = {edge(one.ratio) for one in thick for edge in (floor, ceil)}
    factors = tuple(sorted(value for value in around if MINIMUM_FACTOR <= value <= MAXIMUM_FACTOR))
    if cubes:
        model = Learned("gaps", "vemdiffuse-i", tuple(one.name for one in cubes), factors)
        return Proposal(model, thick, cubes, why="gaps learns to fill gaps from isotropic volumes")
    model = Learned("gaps", "vemdiffuse-a", tuple(one.name for one in thick), factors)
    return Proposal(
        model,
        thick,
        why="there is no isotropic volume, so gaps learns from the lateral planes of the volumes themselves",
    )
