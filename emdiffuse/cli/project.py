"""Commands that prepare a run: init, doctor and estimate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emdiffuse.cli.app import START, Device, app

if TYPE_CHECKING:
    from emdiffuse.project.proposal import GivenModel


@app.command(rich_help_panel=START)
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create for the workflow.")],
    raw: Annotated[
        list[str],
        typer.Option(help="Data: a file, a folder, a pattern or a URL; may be repeated.", metavar="PATH"),
    ],
    voxel_size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="Z,Y,X",
            help="Voxel size in nanometers, if the files do not state it: once for all, or once per --raw.",
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Stacks contain separate images, not the slices of a volume.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="A model to use: its folder, or the name of a shipped one.")
    ] = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="Train a model on the data, even if a shipped one could restore them."),
    ] = False,
    sheet: Annotated[bool, typer.Option("--sheet", help="List the data in datasets.tsv.")] = False,
    partition: Annotated[str | None, typer.Option(help="SLURM partition for jobs without a GPU.")] = None,
    gpu_partition: Annotated[str | None, typer.Option(help="SLURM partition for jobs with a GPU.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask no questions; use the defaults.")] = False,
) -> None:
    """Write a workflow folder for your data: configuration, Snakefile, and profiles."""
    from emdiffuse.project.initialise import Wishes, initialise, parse_size
    from emdiffuse.project.write import Cluster

    wishes = Wishes(
        raw=tuple(raw),
        sizes=tuple(parse_size(text) for text in voxel_size or ()),
        images=images,
        model=_given(model, folder),
        train=train,
        sheet=sheet,
        cluster=Cluster(partition, gpu_partition, account),
    )
    initialise(folder, wishes, _ask if not yes and sys.stdin and sys.stdin.isatty() else None)
    print(f"{folder} is ready. Check {folder / 'config.yaml'}, then run:")
    print(f"  cd {folder}")
    print("  snakemake --profile profiles/local --dry-run   # what would run")
    print("  snakemake --profile profiles/local")


@app.command(rich_help_panel=START)
def doctor(
    folder: Annotated[
        Path, typer.Option(help="Folder for the results; the speed of its disk is measured.")
    ] = Path(),
) -> None:
    """Report what this machine can do, and what to change."""
    from emdiffuse.project.doctor import examine, text

    checks = list(examine(folder))
    print(text(checks))
    if any(check.wrong for check in checks):
        raise typer.Exit(1)


@app.command(rich_help_panel=START)
def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, such as config.yaml.")],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers that share a restoration on this machine; default: all cores."),
    ] = None,
    card: Annotated[
        list[str] | None, typer.Option(help="A graphics card to estimate the time for; may be repeated.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Estimate what a configuration will cost: voxels, network evaluations, time, disk, files and memory."""
    from emdiffuse.config import read_config
    from emdiffuse.project import costs
    from emdiffuse.project.estimate import estimate as count
    from emdiffuse.project.speed import measure
    from emdiffuse.runtime import machine

    cards = costs.checked_cards(card)
    counted = count(read_config(config))
    shared = workers or machine.cores()
    print(costs.text(counted, lambda model, slices: measure(model, slices, device), shared, cards))


def _ask(question: str, default: str) -> str:
    return str(typer.prompt(question, default=default or None, err=True))


def _given(model: str | None, folder: Path) -> GivenModel | None:
    """Return the model that the user named, if any."""
    from emdiffuse.config.shipped import SHIPPED, model_folder
    from emdiffuse.models.description import read_description
    from emdiffuse.project.proposal import GivenModel

    if model is None:
        return None
    where = model if model in SHIPPED else str(Path(model).resolve())
    return GivenModel(where, read_description(model_folder(model)).task)
