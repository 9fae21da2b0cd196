"""Commands before the chain: a workflow folder for data of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emdiffuse.cli.app import Device, app

if TYPE_CHECKING:
    from emdiffuse.project.proposal import GivenModel


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The workflow's folder, to be made.")],
    raw: Annotated[
        list[str],
        typer.Option(help="Data: a file, a folder, a glob or an address; may be repeated.", metavar="PATH"),
    ],
    voxel_size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="Z,Y,X",
            help="Voxel size in nanometers, where files do not say: once for all, or once for each --raw.",
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Stacks hold separate images, not the slices of a volume.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="A model to use: its folder, or the name of one that comes along.")
    ] = None,
    sheet: Annotated[bool, typer.Option("--sheet", help="List the data in datasets.tsv.")] = False,
    partition: Annotated[str | None, typer.Option(help="SLURM's partition for jobs without a GPU.")] = None,
    gpu_partition: Annotated[str | None, typer.Option(help="SLURM's partition for jobs with a GPU.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM's account.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take defaults.")] = False,
) -> None:
    """Write a workflow folder for your data: configuration, Snakefile, and profiles."""
    from emdiffuse.project.initialise import Wishes, initialise, parse_size
    from emdiffuse.project.write import Cluster

    wishes = Wishes(
        raw=tuple(raw),
        sizes=tuple(parse_size(text) for text in voxel_size or ()),
        images=images,
        model=_given(model, folder),
        sheet=sheet,
        cluster=Cluster(partition, gpu_partition, account),
    )
    initialise(folder, wishes, _ask if not yes and sys.stdin.isatty() else None)
    print(f"{folder} is ready. Look at {folder / 'config.yaml'}, then:")
    print(f"  cd {folder}")
    print("  snakemake --profile profiles/local --dry-run   # what would run")
    print("  snakemake --profile profiles/local")


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option(help="Where results are to lie: its disk is timed.")] = Path(),
) -> None:
    """Say what this machine can do, and what to change."""
    from emdiffuse.project.doctor import examine, text

    checks = list(examine(folder))
    print(text(checks))
    if any(check.wrong for check in checks):
        raise typer.Exit(1)


@app.command()
def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, such as config.yaml.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers that share a restoration here; all cores by default.")
    ] = None,
    card: Annotated[
        list[str] | None, typer.Option(help="A graphics card to tell the time of; may be repeated.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Say what a configuration will cost: voxels, network evaluations, time, disk, files and memory."""
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
    """Find a model that was named."""
    from emdiffuse.config.shipped import SHIPPED, model_folder
    from emdiffuse.models.description import read_description
    from emdiffuse.project.proposal import GivenModel

    if model is None:
        return None
    where = model if model in SHIPPED else str(Path(model).resolve())
    return GivenModel(where, read_description(model_folder(model)).task)
