"""`emdiffuse init`: write a workflow folder for raw data.

Conventions
-----------
* Information missing from the files is taken from the options, or asked for. Without a terminal, an error
  names the option to add: nothing is guessed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from emdiffuse.acquisition.sizes import SQUARE
from emdiffuse.config import validate
from emdiffuse.config.datasets import SIZES
from emdiffuse.project.proposal import GivenModel, Proposal, propose, shipped_for
from emdiffuse.project.survey import Finding, survey
from emdiffuse.project.write import (
    LARGEST_LIST,
    Cluster,
    config_text,
    local_profile,
    sheet_text,
    slurm_profile,
    write_folder,
)
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime import machine
from emdiffuse.runtime.errors import ConfigError, DataError
from emdiffuse.runtime.progress import logger

Ask = Callable[[str, str], str]
"""Function that asks the user a question with a default; an empty default requires an answer."""


@dataclass(frozen=True)
class Wishes:
    """Options of the command line.

    Attributes
    ----------
    raw : tuple of str
        The data.
    sizes : tuple of tuple
        Voxel sizes (z, y, x) in nanometers: one for all, or one for each of `raw`.
    images : bool
        Whether stacks contain separate images.
    model : GivenModel or None
        The model to use.
    train : bool
        Whether to train a model on the data, even if a shipped one could restore them.
    sheet : bool
        Whether to list the data in a sheet, however few they are.
    cluster : Cluster
        Known settings of the cluster.
    """

    raw: tuple[str, ...]
    sizes: tuple[tuple[float, float, float], ...] = ()
    images: bool = False
    model: GivenModel | None = None
    train: bool = False
    sheet: bool = False
    cluster: Cluster = field(default_factory=Cluster)


def initialise(folder: Path, wishes: Wishes, ask: Ask | None = None) -> Proposal:
    """Write a workflow folder.

    Parameters
    ----------
    folder : Path
        Folder to write, created if missing; nothing in it is replaced.
    wishes : Wishes
        Options of the command line.
    ask : callable, optional
        Asks for missing information; without it, missing information is an error.

    Raises
    ------
    DataError
        If data cannot be read.
    ConfigError
        If information is missing, or the folder already contains a workflow.
    """
    found = _look(folder, wishes)
    for one in found:
        logger.info("%s", one)
    found = [_with_square_pixels(_completed(one, wishes, ask)) for one in found]
    proposal = propose(found, wishes.model or (None if wishes.train else shipped_for(found)))
    logger.info("%s", proposal.why)
    sheet = bool(proposal.restored) and (wishes.sheet or len(proposal.restored) > LARGEST_LIST)
    files = {
        "config.yaml": config_text(proposal, sheet),
        "Snakefile": (Path(__file__).parent / "templates" / "Snakefile").read_text(),
        "profiles/local/profile.yaml": local_profile(machine.cores(), len(machine.gpus())),
        "profiles/slurm/profile.yaml": slurm_profile(_cluster(wishes.cluster, ask)),
    }
    if sheet:
        files["datasets.tsv"] = sheet_text(proposal.restored)
    write_folder(folder, files)
    try:
        with contextlib.chdir(folder):
            validate(yaml.safe_load(files["config.yaml"]), str(folder / "config.yaml"))
    except ConfigError:
        for name in files:
            (folder / name).unlink()
        raise
    return proposal


def _look(folder: Path, wishes: Wishes) -> list[Finding]:
    """Inspect all data, and assign the given voxel sizes."""
    if len(wishes.sizes) not in (0, 1, len(wishes.raw)):
        raise ConfigError(
            f"--voxel-size is given {len(wishes.sizes)} times for {len(wishes.raw)} of --raw; give it once "
            "for "
            "all, or once for each"
        )
    found = survey(wishes.raw, folder)
    if not wishes.sizes:
        return found
    if len(wishes.sizes) == 1:
        return [replace(one, size=wishes.sizes[0]) for one in found]
    sized = []
    for path, size in zip(wishes.raw, wishes.sizes, strict=True):
        sources = {one.source for one in survey([path], folder)}
        sized += [replace(one, size=size) for one in found if one.source in sources]
    return sized


def _completed(one: Finding, wishes: Wishes, ask: Ask | None) -> Finding:
    """Determine what the files do not state: whether it is a volume, and the voxel size."""
    if one.kind == "volume" and wishes.images:
        one = replace(one, kind="images")
    elif one.kind == "volume" and ask is not None and one.size[0] is None:
        answer = ask(f"{one.source}: are these slices of one volume (v), or separate images (i)?", "v")
        one = replace(one, kind="images" if answer.lower().startswith("i") else "volume")
    if None not in one.size:
        return one
    if one.kind != "volume" and one.size[1] is not None:
        # separate images have no slice spacing
        return replace(one, size=(one.size[1], one.size[1], one.size[1]))
    if ask is None and one.kind == "images":
        raise DataError(
            f"{one.source}: the file does not state a pixel size; add --voxel-size with the pixel size in "
            "nanometers, such as 8 (`emdiffuse enhance` restores an image without it)"
        )
    if ask is None:
        raise DataError(
            f"{one.source}: the files do not state a voxel size; add --voxel-size Z,Y,X (nanometers: "
            "slice spacing, pixel height and width), or --images if these are separate images"
        )
    return replace(one, size=_asked_size(one, ask))


def _with_square_pixels(one: Finding) -> Finding:
    """Have pixels that are not square resampled to their shorter side."""
    z, y, x = one.size
    assert z is not None and y is not None and x is not None
    if one.kind == "pairs" or abs(y - x) <= SQUARE * y:
        return one
    side = min(y, x)
    logger.info(
        "%s: pixels are %g nm high and %g nm wide; they will be resampled to %g nm", one.source, y, x, side
    )
    return replace(one, size=(side if one.kind == "images" else z, side, side), stretched=True)


def _asked_size(one: Finding, ask: Ask) -> Size:
    """Ask for a voxel size until the answer is valid."""
    what = "slice spacing, pixel height and width" if one.kind == "volume" else "pixel size"
    while True:
        answer = ask(f"{one.source}: voxel size in nanometers ({what}; such as 50,8,8)?", "")
        with contextlib.suppress(ConfigError):
            return parse_size(answer)


def parse_size(text: str) -> tuple[float, float, float]:
    """Parse "Z,Y,X", or one number for a pixel.

    Raises
    ------
    ConfigError
        If it is neither, or not a plausible voxel size.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(SIZES[0] <= number <= SIZES[1] for number in numbers):
        raise ConfigError(f"--voxel-size: '{text}' is not of the form Z,Y,X in nanometers, such as 60,10,10")
    z, y, x = numbers
    return (z, y, x)


def _cluster(known: Cluster, ask: Ask | None) -> Cluster:
    """Complete the settings of the cluster from SLURM, and by asking."""
    there = machine.partitions()
    if not there:
        return known
    with_gpu = [one.name for one in there if one.gpus]
    usual = next((one.name for one in there if one.default), there[0].name)
    partition = known.partition or usual
    gpu_partition = known.gpu_partition or (with_gpu[0] if with_gpu else None)
    if ask is not None and known.partition is None:
        names = ", ".join(one.name for one in there)
        partition = ask(f"Partition for jobs without a GPU ({names})?", usual)
        if with_gpu and known.gpu_partition is None:
            gpu_partition = ask(f"Partition for jobs with a GPU ({', '.join(with_gpu)})?", with_gpu[0])
    return replace(known, partition=partition, gpu_partition=gpu_partition, gpu=gpu_partition is not None)
