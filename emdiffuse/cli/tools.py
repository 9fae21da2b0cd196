"""Commands beside the pipeline: single files, models, volumes, and the configuration."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emdiffuse.cli.app import START, TOOLS, Overwrite, app, model_named
from emdiffuse.cli.options import enhancement_options, with_options
from emdiffuse.runtime.errors import ConfigError

if TYPE_CHECKING:
    from emdiffuse.enhance.one_file import Enhancement


class Format(StrEnum):
    """Export format of a model or a volume."""

    bioimageio = "bioimageio"
    torch = "torch"
    precomputed = "precomputed"


@app.command(rich_help_panel=START)
@with_options(how=enhancement_options)
def enhance(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file, a folder of numbered slices, or a store.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File to write: .tif or .ome.zarr.")],
    how: "Enhancement",
    uncertainty: Annotated[
        Path | None,
        typer.Option(help="TIFF for the standard deviation over the samples; beside the output by default."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Restore one image or volume, without a workflow."""
    from emdiffuse.enhance.one_file import enhance as run
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    run(source, output, how, uncertainty, overwrite=overwrite)


@app.command(rich_help_panel=START)
@with_options(how=enhancement_options)
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that the microscope writes TIFFs to.")],
    out: Annotated[Path, typer.Option(help="Folder for the restored TIFFs.")],
    how: "Enhancement",
    settle: Annotated[
        float, typer.Option(help="Seconds without a change after which a file counts as complete.")
    ] = 5,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds after which an unreadable file is skipped, with the reason in OUT/failed."
        ),
    ] = 60,
    once: Annotated[bool, typer.Option(help="Stop when every file is restored or skipped.")] = False,
) -> None:
    """Restore each image that arrives in a folder, until Ctrl-C."""
    from emdiffuse.enhance.watch import watch as run
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    run(folder, out, how, once, settle, patience)


@app.command(rich_help_panel=TOOLS)
def align(
    moving: Annotated[Path, typer.Argument(help="The image to warp: noisy, or of low resolution.")],
    fixed: Annotated[Path, typer.Argument(help="The image of the same field to align it to.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="TIFF for the warped image.")],
    scale: Annotated[int, typer.Option(min=1, max=2, help="Pixel size of MOVING in pixels of FIXED.")] = 1,
    weights: Annotated[
        str, typer.Option(help="Weights of the optical flow (RAFT): shipped, torchvision, or a path.")
    ] = "shipped",
    overwrite: Overwrite = False,
) -> None:
    """Register one image to another; flow, mask and quality are written beside it."""
    from emdiffuse.registration.align import align as run

    run(moving, fixed, out, scale, weights, overwrite)


@app.command(rich_help_panel=TOOLS)
def train_raft(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Weights to write (.safetensors).")],
    stack: Annotated[
        list[Path] | None, typer.Option(help="A TIFF of a volume or of separate images; may be repeated.")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            help="Registered TIFFs of one field, as NOISY,CLEAN; may be repeated.", metavar="NOISY,CLEAN"
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Training time; a restart resumes.")] = 45,
    batch: Annotated[int, typer.Option(min=1, help="Crops per step.")] = 4,
    seed: Annotated[int, typer.Option(help="Random seed of weights and crops.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train the optical flow (RAFT) on your own micrographs, with synthetic deformations."""
    from emdiffuse.registration.raft_training import Recipe, read_sources
    from emdiffuse.registration.raft_training import train_raft as run
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    pairs = []
    for text in pair or []:
        noisy, _, clean = text.partition(",")
        if not clean:
            raise ConfigError(f"--pair: '{text}' is not of the form NOISY,CLEAN")
        pairs.append((Path(noisy), Path(clean)))
    inputs = [*(stack or []), *(path for both in pairs for path in both)]
    recipe = Recipe(minutes=minutes, batch=batch, seed=seed)
    run(read_sources(stack or [], pairs), out, recipe, inputs, overwrite)


@app.command(rich_help_panel=TOOLS)
def import_weights(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            parser=model_named,
            help="A published checkpoint (.pth), a shipped model, or a model's folder.",
        ),
    ],
    task: Annotated[str, typer.Option(help="emdiffuse-n, emdiffuse-r, vemdiffuse-i or vemdiffuse-a.")],
    out: Annotated[Path, typer.Option(help="Folder to write, such as experiments/published/best.")],
    overwrite: Overwrite = False,
) -> None:
    """Read a published EMDiffuse checkpoint, or a model trained elsewhere, into a model folder."""
    from emdiffuse.models.importing import import_model

    import_model(source, task, out, overwrite)


@app.command(rich_help_panel=TOOLS)
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            parser=model_named,
            help="A shipped model, a model folder, or an OME-Zarr volume.",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="A .zip (bioimageio), .pt2 (torch) or folder (precomputed).")],
    format: Annotated[
        Format,
        typer.Option(help="For a model: BioImage Model Zoo, or a PyTorch graph. For a volume: precomputed."),
    ],
    factor: Annotated[int | None, typer.Option(help="Anisotropy factor, if the model has several.")] = None,
    license: Annotated[str, typer.Option(help="SPDX identifier of the licence.")] = "MIT",
    side: Annotated[int, typer.Option(help="Image size of the graph.")] = 256,
    overwrite: Overwrite = False,
) -> None:
    """Write a model's posterior mean, or a volume, for other programs."""
    from emdiffuse.models import sharing
    from emdiffuse.viewing.precomputed import export_precomputed

    if format is Format.precomputed:
        export_precomputed(source, out)
    elif format is Format.bioimageio:
        sharing.export_bioimageio(source, out, factor, license, overwrite)
    else:
        sharing.export_torch(source, out, factor, side, overwrite)


@app.command(rich_help_panel=TOOLS)
def provenance(
    path: Annotated[Path, typer.Argument(help="A store, a model folder, or the JSON file of a result.")],
) -> None:
    """Print how a store, model or result was made: stages, settings, and checksums of raw files."""
    from emdiffuse.stores.provenance import read_link

    print(read_link(path).told())


@app.command(rich_help_panel=TOOLS)
def schema() -> None:
    """Print the JSON schema of the configuration, as YAML, for editors that complete and check keys."""
    import yaml

    from emdiffuse.config import json_schema

    print("# Generated by `emdiffuse schema`.")
    print(yaml.safe_dump(json_schema(), sort_keys=False, width=110), end="")


@app.command(rich_help_panel=START)
def progress(
    results: Annotated[Path, typer.Argument(help="Results folder.")] = Path("results"),
) -> None:
    """Show the progress of all restorations: blocks done, voxels per second, time left."""
    from emdiffuse.restoration import overview

    print(overview.table(overview.states(results)))


@app.command(rich_help_panel=START)
def view(
    path: Path,
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 for a free one.")] = 0,
    napari: Annotated[bool, typer.Option("--napari", help="Open napari instead of serving.")] = False,
) -> None:
    """View an OME-Zarr volume: serve it and print a link to Neuroglancer, or open it in napari."""
    from emdiffuse import viewing

    if napari:
        viewing.view_in_napari(path)
    else:
        viewing.view(path, host, port)
