"""One thin command per stage of the pipeline, in order."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from emdiffuse.cli.app import STAGES, Device, Done, ModelFolder, Settings, Share, Store, Stores, app, folder
from emdiffuse.runtime.errors import ConfigError

Lpips = Annotated[
    Path | None, typer.Option(help="AlexNet weights of torchvision (.pth): also measure LPIPS.")
]


class Launcher(StrEnum):
    """Where a training runs."""

    local = "local"
    submitit = "submitit"


class Precision(StrEnum):
    """Numerical precision of a network."""

    auto = "auto"
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Compilation(StrEnum):
    """Modes of torch.compile."""

    default = "default"
    reduce_overhead = "reduce-overhead"
    max_autotune = "max-autotune"


@app.command(rich_help_panel=STAGES)
def acquire(name: str, out: Store, settings: Settings) -> None:
    """Convert a raw volume of any supported format, or image pairs, to OME-Zarr."""
    from emdiffuse.acquisition.acquire import acquire as acquire_volume
    from emdiffuse.acquisition.image_pairs import acquire_pairs
    from emdiffuse.config import Dataset
    from emdiffuse.config.settings import parse

    dataset = parse(Dataset, settings, f"datasets.{name}")
    if dataset.derived is not None:
        raise ConfigError(f"datasets.{name}: only raw data can be acquired; see `keep-every` and `degrade`")
    size = dataset.voxel_size.nanometers if dataset.voxel_size is not None else None
    override = dataset.voxel_size is not None and dataset.voxel_size.override
    pairs = dataset.pairs
    if pairs is not None and size is not None:
        acquire_pairs(
            pairs.folder,
            size,
            out,
            name,
            pairs.pattern,
            pairs.keep_going,
            pairs.scale,
            dataset.invert,
            override,
            pairs.scans,
        )
    elif dataset.source is not None:
        acquire_volume(
            dataset.source,
            size,
            out,
            name,
            dataset.images,
            repair=dataset.repairs_slices,
            stripes=dataset.repairs_stripes,
            invert=dataset.invert,
            reading=dataset.reading,
            override=override,
            thickness=dataset.slice_thickness,
        )


@app.command(rich_help_panel=STAGES)
def keep_every(
    volume: Store,
    factor: int,
    name: str,
    out: Store,
    thickness: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the slice spacing that each slice averages over.")
    ] = 0.0,
) -> None:
    """Make an anisotropic volume from an isotropic one by keeping every n-th slice."""
    from emdiffuse.acquisition.acquire import keep_every as run

    run(volume, factor, out, name, thickness)


@app.command(rich_help_panel=STAGES)
def degrade(
    volume: Store,
    name: str,
    out: Store,
    settings: Settings,
    images: Annotated[
        bool, typer.Option("--images", help="Write only the degraded images, not pairs.")
    ] = False,
) -> None:
    """Make image pairs, degraded and clean, from the slices of a clean volume."""
    from emdiffuse.acquisition.degradation import degrade as run
    from emdiffuse.config import Degrade
    from emdiffuse.config.settings import parse

    run(volume, parse(Degrade, settings, f"datasets.{name}.degrade"), out, name, images)


@app.command(rich_help_panel=STAGES)
def register(volume: Store, out: Store, quality: Path, figure: Path, settings: Settings) -> None:
    """Register image pairs, or check that the slices of a volume are aligned."""
    from emdiffuse.acquisition.checksums import require_unchanged
    from emdiffuse.config import Alignment
    from emdiffuse.config.settings import parse
    from emdiffuse.registration.register import register as run

    require_unchanged(volume)
    run(volume, parse(Alignment, settings, "alignment"), out, quality, figure)


@app.command(rich_help_panel=STAGES)
def patches(volumes: Stores, out: Annotated[Path, typer.Option(parser=folder)], settings: Settings) -> None:
    """Cut training patches from registered volumes into a store."""
    from emdiffuse.config import Model
    from emdiffuse.config.settings import parse
    from emdiffuse.patches.cut import cut_patches

    cut_patches(volumes, parse(Model, settings, "model"), out)


@app.command(rich_help_panel=STAGES)
def train(
    store: Store,
    name: str,
    experiment: Path,
    settings: Settings,
    device: Device = "auto",
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes on this machine that share a batch: one per GPU.")
    ] = 1,
    launcher: Annotated[Launcher, typer.Option(help="Train here, or as a SLURM job.")] = Launcher.local,
    resources: Annotated[
        str, typer.Option(help="Resources of the job, as JSON: partition, gpus, ...")
    ] = "{}",
) -> None:
    """Train a model from a patch store, or resume an interrupted training."""
    from emdiffuse.config import Model
    from emdiffuse.config.settings import parse
    from emdiffuse.training import launch, submission

    work = launch.TrainingJob(store, parse(Model, settings, f"models.{name}"), name, experiment, device)
    if launcher is Launcher.local:
        launch.train_here(work, processes)
    else:
        submission.train_on_slurm(work, parse(submission.Resources, resources, "--resources"))


@app.command(rich_help_panel=STAGES)
def plan(
    dataset: Store,
    model: ModelFolder,
    out: Path,
    settings: Settings,
    calibration: Annotated[
        Path | None, typer.Option(help="Output of `calibrate`: also write intervals.")
    ] = None,
) -> None:
    """Plan the restoration of a volume: tiles, blocks, settings and their hash."""
    from emdiffuse.config import Restoration
    from emdiffuse.config.settings import parse
    from emdiffuse.restoration.planning import make_plan

    make_plan(dataset, model, parse(Restoration, settings, "restoration"), out, calibration)


@app.command(rich_help_panel=STAGES)
def restore(
    plan: Annotated[Path, typer.Argument(help="The plan.json that `plan` wrote.")],
    worker: Share = "1-of-1",
    done: Done = None,
    device: Device = "auto",
    batch: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="Tiles per network call. auto: as many as fit into GPU memory, at most a block "
            "(`tiling.block`); one on a CPU. Halved if a GPU runs out of memory.",
        ),
    ] = "auto",
    compilation: Annotated[
        Compilation | None,
        typer.Option(
            "--compile",
            help="Compile the network first (torch.compile), which takes minutes. reduce-overhead: also "
            "replay each call as a CUDA graph; max-autotune: also try several kernels. Needs a C++ compiler.",
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Numerical precision of the network. auto: half precision on a GPU.")
    ] = Precision.auto,
) -> None:
    """Restore a worker's share of a plan's blocks; finished blocks are skipped.

    Batch size and compilation change the volume only by rounding.
    """
    from emdiffuse.restoration.plan import read_plan
    from emdiffuse.restoration.tiles import restore as run
    from emdiffuse.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    run(plan, *_share(worker), device, batch=_batch(batch), compilation=compilation, precision=precision)
    _mark(done, read_plan(plan).hash)


@app.command(rich_help_panel=STAGES)
def stitch(plan: Path, worker: Share = "1-of-1", done: Done = None) -> None:
    """Blend a worker's share of the restored volume from the tiles."""
    from emdiffuse.restoration.plan import read_plan
    from emdiffuse.restoration.stitch import stitch as run
    from emdiffuse.runtime.allocator import return_freed_memory

    return_freed_memory()
    run(plan, *_share(worker))
    _mark(done, read_plan(plan).hash)


@app.command(rich_help_panel=STAGES)
def pyramid(plan: Path) -> None:
    """Add coarser levels to the restored volume, and finish it."""
    from emdiffuse.restoration.stitch import pyramid as run
    from emdiffuse.runtime.allocator import return_freed_memory

    return_freed_memory()
    run(plan)


@app.command(rich_help_panel=STAGES)
def verify(
    store: Annotated[Path, typer.Argument(help="A store in results/, or the plan.json of a restoration.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Have the next run of the workflow recompute lost parts.")
    ] = False,
) -> None:
    """Read every chunk and all metadata of a store or a restored volume, and list what is missing or damaged.

    Exits with 1 if something is lost, unless repaired. Without --repair nothing is changed.
    """
    from emdiffuse.restoration.verify import plan_of, verify_restoration
    from emdiffuse.stores.verification import verify_store

    plan = plan_of(store)
    if plan is not None:
        verify_restoration(plan, repair)
    else:
        verify_store(store, repair)


@app.command(rich_help_panel=STAGES)
def calibrate(
    restored: Store,
    dataset: Store,
    truth: Store,
    out: Path,
    settings: Settings,
    second_scan: Annotated[
        bool, typer.Option("--second-scan", help="TRUTH is a second noisy scan of the same fields.")
    ] = False,
) -> None:
    """Calibrate the width of intervals that contain the truth, on data that the model has not seen."""
    from emdiffuse.config import Calibration
    from emdiffuse.config.settings import parse
    from emdiffuse.evaluation.calibration import calibrate as run

    run(restored, dataset, truth, out, parse(Calibration, settings, "calibration"), second_scan)


@app.command(rich_help_panel=STAGES)
def baselines(
    dataset: Store,
    truth: Store,
    out: Path,
    task: Annotated[
        str, typer.Option(help="Task of the models that restore the dataset, such as vemdiffuse-i.")
    ],
    lpips: Lpips = None,
) -> None:
    """Measure classical methods against ground truth, once for all restorations of a dataset."""
    from emdiffuse.config.tasks import TASKS
    from emdiffuse.evaluation.evaluate import measure_baselines as run

    if task not in TASKS:
        raise ConfigError(f"--task: there is no '{task}'; known: {', '.join(TASKS)}")
    run(dataset, truth, task, out, lpips)


@app.command(rich_help_panel=STAGES)
def evaluate(
    restored: Store,
    dataset: Store,
    truth: Store,
    out: Path,
    baselines: Annotated[
        Path | None,
        typer.Option(help="Output of `emdiffuse baselines`; measured here by default."),
    ] = None,
    lpips: Lpips = None,
) -> None:
    """Evaluate a restored volume against ground truth, beside classical methods on the same voxels."""
    from emdiffuse.evaluation.evaluate import evaluate as run

    run(restored, dataset, truth, out, baselines, lpips)


@app.command(rich_help_panel=STAGES)
def report(results: Path, experiments: Path, out: Path, settings: Settings) -> None:
    """Write the report: one HTML file with images, tables and parameters."""
    from emdiffuse.config import Config
    from emdiffuse.config.settings import parse
    from emdiffuse.report.write import write_report

    write_report(parse(Config, settings), results, experiments, out)


def _share(text: str) -> tuple[int, int]:
    """Parse "I-of-N"."""
    worker, _, workers = text.partition("-of-")
    if not (worker.isdecimal() and workers.isdecimal() and 1 <= int(worker) <= int(workers)):
        raise ConfigError(f"--worker: '{text}' is not of the form I-of-N with 1 <= I <= N, such as 1-of-4")
    return int(worker), int(workers)


def _batch(text: str) -> int | None:
    """Parse "auto" (None), or a number of tiles."""
    if text == "auto":
        return None
    if not (text.isdecimal() and int(text) > 0):
        raise ConfigError(f"--batch: '{text}' is neither auto nor a number of tiles, such as 4")
    return int(text)


def _mark(path: Path | None, content: str) -> None:
    from emdiffuse.runtime.atomic import write_atomically

    if path is not None:
        write_atomically(path, f"{content}\n")
