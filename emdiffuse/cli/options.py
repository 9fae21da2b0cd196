"""Options shared by several commands, each defined once, and their conversion to records."""

import functools
import re
from collections.abc import Callable
from fractions import Fraction
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emdiffuse.cli.app import Device, model_named
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
    str | None,
    typer.Option(help="Anisotropy of a volume, slice spacing over pixel size: 6, or 45/8.", metavar="F"),
]
VoxelSize = Annotated[
    str | None, typer.Option(help="Voxel size in nanometers, if the file does not state it.", metavar="Z,Y,X")
]
Thickness = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Fraction of the slice spacing that each slice of a volume averages over; 1: serial sections.",
    ),
]
Override = Annotated[
    bool, typer.Option("--override", help="Trust `--voxel-size` or `--factor` over the file.")
]
Series = Annotated[
    str | None, typer.Option(help="Which image of a file that contains several: its number, from 0, or name.")
]
Channel = Annotated[str | None, typer.Option(help="Which channel: its number, from 0, or name.")]
Timepoint = Annotated[int | None, typer.Option(min=0, help="Which time point, from 0.")]
Level = Annotated[int, typer.Option(min=0, help="Which level of a pyramid; 0 is the finest.")]
Axes = Annotated[
    str | None,
    typer.Option(help="Order of the axes as stored, such as xyz, if the file does not state it."),
]
Crop = Annotated[
    str | None,
    typer.Option(
        help="Part of the file to read, in voxels, such as z=10:50,y=0:884.", metavar="AXIS=FIRST:LAST,..."
    ),
]
Raw = Annotated[
    str | None,
    typer.Option(
        help="Shape and data type of a headerless file, such as 100,768,1024,uint16.", metavar="Z,Y,X,TYPE"
    ),
]
DataBar = Annotated[
    str, typer.Option(help="Height of the microscope's data bar in rows; 0: none; auto: detect it.")
]
Step = Annotated[
    int | None,
    typer.Option(
        min=1, help="Step between the numbers of neighbouring slices in a folder; default: detected."
    ),
]
MissingChunks = Annotated[
    str, typer.Option(help="fill: read missing chunks of a store as its fill value.", metavar="refuse|fill")
]
Nan = Annotated[str, typer.Option(help="mask: NaN marks voxels without data.", metavar="refuse|mask")]
SquarePixels = Annotated[
    bool, typer.Option("--square-pixels", help="Resample pixels that are not square to their shorter side.")
]
Steps = Annotated[int | None, typer.Option(help="Network evaluations per sample; default: the model's own.")]
Samples = Annotated[
    int,
    typer.Option(
        help="Number of samples. The result is their mean; with 2 or more, their spread is written too."
    ),
]
Texture = Annotated[
    float | None,
    typer.Option(
        help="How much of a sample's texture the result has: 0 is the mean, 1 a sample.", metavar="T"
    ),
]
Sharpen = Annotated[
    float,
    typer.Option(help="Sharpen the mean, from 0 to 1: closer to the truth than --texture.", metavar="T"),
]
Ensemble = Annotated[
    int, typer.Option(help="8: average over flips and rotations, at 8 times the cost.", metavar="1|8")
]
Seed = Annotated[int, typer.Option(help="Random seed of the noise.")]


def with_options(**groups: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace parameters of a command by groups of options.

    Typer reads a command's options from its signature, so a parameter cannot be a record of options. Here
    each named parameter is replaced by the parameters of a function that converts their values to the record.
    Groups can be nested.

    Parameters
    ----------
    **groups
        For each parameter of the command to replace, the function whose parameters are its options.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        parameters: list[Parameter] = []
        for parameter in signature(command).parameters.values():
            group = groups.get(parameter.name)
            parameters += [parameter] if group is None else signature(group).parameters.values()

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            for name, group in groups.items():
                values[name] = group(**{option: values.pop(option) for option in signature(group).parameters})
            return command(**values)

        keyword = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__signature__ = signature(command).replace(parameters=keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def sampler_options(
    steps: Steps = None,
    samples: Samples = 1,
    texture: Texture = None,
    sharpen: Sharpen = 0.0,
    ensemble: Ensemble = 1,
    seed: Seed = 0,
) -> "Sampler":
    """Return how the network is run."""
    from emdiffuse.config import Sampler
    from emdiffuse.config.settings import parse

    options = {
        "steps": steps, "samples": samples, "texture": texture, "sharpen": sharpen, "ensemble": ensemble,
        "seed": seed,
    }  # fmt: skip
    return parse(Sampler, options, "options")


def reading_options(
    series: Series = None,
    channel: Channel = None,
    timepoint: Timepoint = None,
    level: Level = 0,
    axes: Axes = None,
    crop: Crop = None,
    raw: Raw = None,
    step: Step = None,
    data_bar: DataBar = "auto",
    missing_chunks: MissingChunks = "refuse",
    nan: Nan = "refuse",
    square_pixels: SquarePixels = False,
) -> "Reading":
    """Return which part of a file is read, and how."""
    from emdiffuse.config.reading import Reading
    from emdiffuse.config.settings import parse

    values = {
        "series": series,
        "channel": channel,
        "timepoint": timepoint,
        "level": level,
        "axes": axes,
        "crop": None if crop is None else _box(crop),
        "raw": None if raw is None else _pixels(raw),
        "step": step,
        "data_bar": int(data_bar) if data_bar.isdecimal() else data_bar,
        "missing_chunks": missing_chunks,
        "nan": nan,
        "square_pixels": square_pixels,
    }
    return parse(Reading, values, "options")


@with_options(sampler=sampler_options, reading=reading_options)
def enhancement_options(
    *,
    model: Model = Path("emdiffuse-n"),
    factor: Factor = None,
    voxel_size: VoxelSize = None,
    thickness: Thickness = 0.0,
    override: Override = False,
    sampler: "Sampler",
    reading: "Reading",
    device: Device = "auto",
) -> "Enhancement":
    """Return how a file is restored: with which model, and metadata that the file lacks."""
    return enhancement_of(model, factor, voxel_size, thickness, override, sampler, reading, device)


@with_options(reading=reading_options)
def volume_options(
    *,
    model: Model = Path("vemdiffuse"),
    factor: Factor = None,
    voxel_size: VoxelSize = None,
    thickness: Thickness = 0.0,
    override: Override = False,
    reading: "Reading",
    device: Device = "auto",
) -> "Enhancement":
    """Return which model a volume is used with, and metadata that the file lacks; without a sampler."""
    from emdiffuse.config import Sampler

    return enhancement_of(model, factor, voxel_size, thickness, override, Sampler(), reading, device)


def enhancement_of(
    model: Path,
    factor: str | None,
    voxel_size: str | None,
    thickness: float,
    override: bool,
    sampler: "Sampler",
    reading: "Reading",
    device: str,
) -> "Enhancement":
    """Parse the options into one record."""
    from emdiffuse.enhance.one_file import Enhancement

    ratio = None if factor is None else _ratio(factor)
    size = None if voxel_size is None else _voxel_size(voxel_size)
    return Enhancement(model, sampler, ratio, size, override, thickness, reading, device)


def _ratio(factor: str) -> Fraction:
    try:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}|/[0-9]{1,9})?", factor):
            raise ValueError  # Fraction would expand every digit of "1e99999999"
        ratio = Fraction(factor)
        if not 0 < ratio < 10**6:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--factor: '{factor}' is not a number such as 6, 5.5 or 45/8") from None
    return ratio


def _voxel_size(text: str) -> tuple[float, float, float]:
    from emdiffuse.config.datasets import SIZES

    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--voxel-size: '{text}' is not of the form Z,Y,X, such as 60,10,10") from None
    if not all(SIZES[0] <= side <= SIZES[1] for side in (z, y, x)):
        raise ConfigError(f"--voxel-size: {text} must be three numbers above zero, in nanometers")
    return z, y, x


def _box(crop: str) -> dict[str, tuple[int, int]]:
    sides = re.findall(r"([zyx])=(\d+):(\d+)(?:,|$)", crop)
    if not sides or ",".join(f"{a}={b}:{c}" for a, b, c in sides) != crop:
        raise ConfigError(f"--crop: '{crop}' is not of the form z=FIRST:LAST,y=FIRST:LAST,x=FIRST:LAST")
    return {axis: (int(first), int(last)) for axis, first, last in sides}


def _pixels(raw: str) -> dict[str, Any]:
    *shape, dtype = raw.split(",")
    if not all(n.strip().isdecimal() for n in shape):
        raise ConfigError(f"--raw: '{raw}' is not of the form Z,Y,X,TYPE, such as 100,768,1024,uint16")
    return {"shape": [int(n) for n in shape], "dtype": dtype.strip()}
