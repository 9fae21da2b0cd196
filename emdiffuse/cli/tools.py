"""Commands beside the chain: models, and the configuration."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emdiffuse.cli.app import Device, Overwrite, app, model_named
from emdiffuse.runtime.errors import ConfigError

if TYPE_CHECKING:
    from emdiffuse.config import Sampler
    from emdiffuse.config.reading import Reading
    from emdiffuse.enhance.one_file import Enhancement

Model = Annotated[
    Path,
    typer.Option(
        parser=model_named,
        help="A shipped model (`emdiffuse models`), or a folder such as experiments/gap6/best.",
    ),
]
Factor = Annotated[
    str | None, typer.Option(help="Distance of slices in pixels, of a volume: 6, or 45/8.", metavar="F")
]
VoxelSize = Annotated[
    str | None, typer.Option(help="Voxel size in nanometers, where the file does not say.", metavar="Z,Y,X")
]
Thickness = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Share of the distance of a volume's slices that each integrates over; 1: serial sections.",
    ),
]
Override = Annotated[
    bool, typer.Option("--override", help="Believe `--voxel-size` or `--factor`, whatever the file says.")
]
Series = Annotated[
    str | None, typer.Option(help="Which image of a file that holds several: its number, from 0, or name.")
]
Channel = Annotated[str | None, typer.Option(help="Which channel: its number, from 0, or name.")]
Timepoint = Annotated[int | None, typer.Option(min=0, help="Which time point, from 0.")]
Level = Annotated[int, typer.Option(min=0, help="Which level of a pyramid; 0 is the finest.")]
Axes = Annotated[
    str | None, typer.Option(help="Order of the axes as stored, such as xyz, where the file does not say.")
]
Crop = Annotated[
    str | None,
    typer.Option(
        help="A box of the file, in its voxels, such as z=10:50,y=0:884.", metavar="AXIS=FIRST:LAST,..."
    ),
]
Raw = Annotated[
    str | None,
    typer.Option(
        help="Shape and type of a file of bare pixels, such as 100,768,1024,uint16.", metavar="Z,Y,X,TYPE"
    ),
]
DataBar = Annotated[
    str, typer.Option(help="Rows of the microscope's data bar at the bottom; 0: none; auto: found.")
]
Steps = Annotated[int | None, typer.Option(help="Network calls a sample; the model's own by default.")]
Samples = Annotated[
    int,
    typer.Option(
        help="Samples, whose spread is the uncertainty, which 2 or more write. Restored is the mean."
    ),
]
Texture = Annotated[
    float | None,
    typer.Option(help="From 0 to 1: how much of a sample's texture is added to the mean.", metavar="T"),
]
Ensemble = Annotated[
    int, typer.Option(help="8: average the mean over flips and turns, at 8 times the calls.", metavar="1|8")
]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]


class Format(StrEnum):
    """What a model, or a volume, is exported as."""

    bioimageio = "bioimageio"
    torch = "torch"
    precomputed = "precomputed"


@app.command()
def enhance(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file, a folder of numbered slices, or a store.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A .tif, or an .ome.zarr.")],
    model: Model = Path("emdiffuse-n"),
    factor: Factor = None,
    voxel_size: VoxelSize = None,
    thickness: Thickness = 0.0,
    steps: Steps = None,
    samples: Samples = 1,
    texture: Texture = None,
    ensemble: Ensemble = 1,
    seed: Seed = 0,
    uncertainty: Annotated[
        Path | None,
        typer.Option(help="TIFF for the standard deviation over the samples; beside the output by default."),
    ] = None,
    override: Override = False,
    series: Series = None,
    channel: Channel = None,
    timepoint: Timepoint = None,
    level: Level = 0,
    axes: Axes = None,
    crop: Crop = None,
    raw: Raw = None,
    data_bar: DataBar = "auto",
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Restore one image or volume, without a workflow."""
    from emdiffuse.enhance.one_file import enhance as run
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    reading = _reading(series, channel, timepoint, level, axes, crop, raw, data_bar)
    sampler = _sampler(steps, samples, texture, ensemble, seed)
    how = _enhancement(model, factor, voxel_size, thickness, override, reading, sampler, device)
    run(source, output, how, uncertainty, overwrite=overwrite)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Where TIFFs come.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the restored TIFFs.")],
    factor: Factor = None,
    voxel_size: VoxelSize = None,
    thickness: Thickness = 0.0,
    steps: Steps = None,
    samples: Samples = 1,
    texture: Texture = None,
    ensemble: Ensemble = 1,
    seed: Seed = 0,
    settle: Annotated[
        float, typer.Option(help="Seconds without a change after which a file is complete.")
    ] = 5,
    patience: Annotated[
        float, typer.Option(help="Seconds after which an unreadable file is set aside.")
    ] = 60,
    once: Annotated[bool, typer.Option(help="End when all that is there is restored or set aside.")] = False,
    override: Override = False,
    series: Series = None,
    channel: Channel = None,
    timepoint: Timepoint = None,
    level: Level = 0,
    axes: Axes = None,
    crop: Crop = None,
    raw: Raw = None,
    data_bar: DataBar = "auto",
    device: Device = "auto",
) -> None:
    """Restore each image that comes into a folder; Ctrl-C ends it."""
    from emdiffuse.enhance.watch import watch as run
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    reading = _reading(series, channel, timepoint, level, axes, crop, raw, data_bar)
    sampler = _sampler(steps, samples, texture, ensemble, seed)
    how = _enhancement(model, factor, voxel_size, thickness, override, reading, sampler, device)
    run(folder, out, how, once, settle, patience)


def _sampler(steps: int | None, samples: int, texture: float | None, ensemble: int, seed: int) -> Sampler:
    from emdiffuse.config import Sampler
    from emdiffuse.config.settings import parse

    options = {"steps": steps, "samples": samples, "texture": texture, "ensemble": ensemble, "seed": seed}
    return parse(Sampler, options, "options")


def _enhancement(
    model: Path,
    factor: str | None,
    voxel_size: str | None,
    thickness: float,
    override: bool,
    reading: Reading,
    sampler: Sampler,
    device: str,
) -> Enhancement:
    """Check what was said, and put it together."""
    from emdiffuse.enhance.one_file import Enhancement

    ratio = None
    if factor is not None:
        try:
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}|/[0-9]{1,9})?", factor):
                raise ValueError  # of "1e99999999" all digits would be worked out
            ratio = Fraction(factor)
            if not 0 < ratio < 10**6:
                raise ValueError
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"--factor: '{factor}' is not a number such as 6, 5.5 or 45/8") from None
    size = None
    if voxel_size is not None:
        try:
            z, y, x = (float(part) for part in voxel_size.split(","))
        except ValueError:
            raise ConfigError(
                f"--voxel-size: '{voxel_size}' is not of the form Z,Y,X, such as 60,10,10"
            ) from None
        if not all(0 < side < math.inf for side in (z, y, x)):
            raise ConfigError(f"--voxel-size: {voxel_size} must be three numbers above zero")
        size = (z, y, x)
    return Enhancement(model, sampler, ratio, size, override, thickness, reading, device)


def _reading(
    series: str | None,
    channel: str | None,
    timepoint: int | None,
    level: int,
    axes: str | None,
    crop: str | None,
    raw: str | None,
    data_bar: str,
) -> Reading:
    """Check what was said of how a file is read, and put it together."""
    from emdiffuse.config.reading import Reading
    from emdiffuse.config.settings import parse

    box = None
    if crop is not None:
        sides = re.findall(r"([zyx])=(\d+):(\d+)(?:,|$)", crop)
        if not sides or ",".join(f"{a}={b}:{c}" for a, b, c in sides) != crop:
            raise ConfigError(f"--crop: '{crop}' is not of the form z=FIRST:LAST,y=FIRST:LAST,x=FIRST:LAST")
        box = {axis: (int(first), int(last)) for axis, first, last in sides}
    pixels = None
    if raw is not None:
        *shape, dtype = raw.split(",")
        if not all(n.strip().isdecimal() for n in shape):
            raise ConfigError(f"--raw: '{raw}' is not of the form Z,Y,X,TYPE, such as 100,768,1024,uint16")
        pixels = {"shape": [int(n) for n in shape], "dtype": dtype.strip()}
    values = {
        "series": series,
        "channel": channel,
        "timepoint": timepoint,
        "level": level,
        "axes": axes,
        "crop": box,
        "raw": pixels,
        "data_bar": int(data_bar) if data_bar.isdecimal() else data_bar,
    }
    return parse(Reading, values, "options")


@app.command()
def align(
    moving: Annotated[Path, typer.Argument(help="The image to be warped: noisy, or of low resolution.")],
    fixed: Annotated[Path, typer.Argument(help="The image of the same field that it is aligned to.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="TIFF for the warped image.")],
    scale: Annotated[
        int, typer.Option(min=1, max=2, help="Pixels of FIXED, along a side, that are one of MOVING.")
    ] = 1,
    weights: Annotated[
        str, typer.Option(help="Of the optical flow (RAFT): shipped, torchvision, or a path.")
    ] = "shipped",
    overwrite: Overwrite = False,
) -> None:
    """Register one image to another; flow, mask and quality are written beside it."""
    from emdiffuse.registration.align import align as run

    run(moving, fixed, out, scale, weights, overwrite)


@app.command()
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
    minutes: Annotated[float, typer.Option(min=0, help="Wall time; a second start goes on.")] = 45,
    batch: Annotated[int, typer.Option(min=1, help="Crops a step.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of weights and samples.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train the optical flow (RAFT) on micrographs of your own, under synthetic deformations."""
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


@app.command()
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


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            parser=model_named,
            help="A model: shipped, or its folder. Or an OME-Zarr volume.",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="A .zip (bioimageio), .pt2 (torch) or folder (precomputed).")],
    format: Annotated[
        Format, typer.Option(help="Of a model: BioImage Model Zoo, or a graph. Of a volume: precomputed.")
    ],
    factor: Annotated[
        int | None, typer.Option(help="Anisotropy factor, where a model knows several.")
    ] = None,
    license: Annotated[str, typer.Option(help="SPDX identifier of the package's licence.")] = "MIT",
    side: Annotated[int, typer.Option(help="Height and width of the images that a graph takes.")] = 256,
    overwrite: Overwrite = False,
) -> None:
    """Write a model's one-call mean, or a volume, for other programs."""
    from emdiffuse.models import sharing
    from emdiffuse.precomputed import export_precomputed

    if format is Format.precomputed:
        export_precomputed(source, out)
    elif format is Format.bioimageio:
        sharing.export_bioimageio(source, out, factor, license, overwrite)
    else:
        sharing.export_torch(source, out, factor, side, overwrite)


@app.command()
def provenance(
    path: Annotated[Path, typer.Argument(help="A store, the folder of a model, or a JSON file of a result.")],
) -> None:
    """Print how a store, model or result was made: stages, their settings, and checksums of raw files."""
    from emdiffuse.stores.provenance import read_link

    print(read_link(path).told())


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration, as YAML, for editors that complete and check keys."""
    import yaml

    from emdiffuse.config import json_schema

    print("# Generated by `emdiffuse schema`.")
    print(yaml.safe_dump(json_schema(), sort_keys=False, width=110), end="")


@app.command()
def progress(
    results: Annotated[Path, typer.Argument(help="Folder of the results.")] = Path("results"),
) -> None:
    """Say how far the restorations are, over all their workers: blocks done, voxels a second, time left."""
    from emdiffuse.restoration import overview

    print(overview.table(overview.states(results)))


@app.command()
def view(
    path: Path,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 0,
    napari: Annotated[bool, typer.Option("--napari", help="Open napari instead of serving.")] = False,
) -> None:
    """Look at an OME-Zarr volume: serve it, and print a link to Neuroglancer; or open it in napari."""
    from emdiffuse import viewing

    if napari:
        viewing.view_in_napari(path)
    else:
        viewing.view(path, host, port)
