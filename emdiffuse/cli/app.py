"""The application, options shared by all commands, and the reporting of mistakes."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from emdiffuse.config.shipped import model_folder
from emdiffuse.runtime.disks import as_mistake
from emdiffuse.runtime.progress import fail, logger, setup

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Restore electron micrographs with diffusion models, one command per stage.",
)


# What the list of commands shows together.
START, STAGES, TOOLS = "Start here", "Stages of the workflow, in order", "More tools"


def folder(text: str) -> Path:
    """Return a folder, given by itself or by the zarr.json or model.json in it."""
    path = Path(text)
    return path.parent if path.name in ("zarr.json", "model.json") else path


def model_named(text: str) -> Path:
    """Return the folder of a model, given by its path or the name of a shipped model."""
    return model_folder(folder(text))


# Rules pass the zarr.json of a store and the model.json of a model; users name the folder.
Store = Annotated[Path, typer.Argument(parser=folder)]
Stores = Annotated[list[Path], typer.Argument(parser=folder)]
ModelFolder = Annotated[Path, typer.Argument(parser=model_named)]
Settings = Annotated[str, typer.Option(help="Section of the configuration, as JSON or YAML.")]
Device = Annotated[str, typer.Option(help="auto, cpu, a CUDA device such as cuda:0, or mps (Apple).")]
Share = Annotated[
    str, typer.Option(metavar="I-of-N", help="This worker's number, and the number of workers, e.g. 1-of-4.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files of the same name that emdiffuse did not write.")
]
Done = Annotated[Path | None, typer.Option(help="File to write when this worker's share is done.")]


def _version(asked: bool) -> None:
    if asked:
        from emdiffuse import __version__

        print(f"emdiffuse {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
    log: Annotated[Path | None, typer.Option(help="Also write the messages to this file.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for numerical work; all cores by default.")
    ] = None,
) -> None:
    """Restore electron micrographs with diffusion models, from raw files to evaluated OME-Zarr."""
    setup(log)
    # spinning threads slow each other down severely when cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[variable] = str(threads)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Exit as after Ctrl-C, so that unfinished files are removed; ignore a second request."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _in_a_thread(failure: threading.ExceptHookArgs) -> None:
    """Report a machine error in a library's thread, such as a full disk in that of TensorBoard."""
    mistake = failure.exc_value and as_mistake(failure.exc_value)
    if mistake:
        logger.warning("%s", mistake)
    else:
        threading.__excepthook__(failure)


def main() -> None:
    """Run the command line."""
    # What imports create lives until the end; searching it for garbage, last at exit, costs 0.4 s with torch.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    signal.signal(signal.SIGTERM, _end)
    threading.excepthook = _in_a_thread
    try:
        app()
    except Exception as error:
        mistake = as_mistake(error)
        if mistake is None:
            raise
        fail(mistake)
        sys.exit(mistake.exit_code)
