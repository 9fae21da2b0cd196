"""The command `emdiffuse adapt`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emdiffuse.cli.app import START, Overwrite, app
from emdiffuse.cli.options import volume_options, with_options

if TYPE_CHECKING:
    from emdiffuse.enhance.one_file import Enhancement


@app.command(rich_help_panel=START)
@with_options(how=volume_options)
def adapt(
    *,
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="A file, a folder of numbered slices, or a store.")
    ],
    out: Annotated[Path, typer.Option(metavar="MODEL", help="Folder for the adapted model.")],
    how: "Enhancement",
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Training time; a restart resumes with the remaining time.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a model on your own volume, without ground truth.

    On a held-out part of the volume, the result never scores worse than the starting model.
    """
    from emdiffuse.enhance.adapt import adapt as run
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    run(volume, out, how, minutes, seed, overwrite)
