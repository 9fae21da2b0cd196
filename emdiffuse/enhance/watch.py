"""Restore each image that a microscope writes to a folder.

Conventions
-----------
* An image ``FOLDER/x.tif`` becomes ``OUT/x.tif`` (and ``x.png`` becomes ``x.png.tif``) with the modification
  time of its input: an output with another time belongs to an older input, and is recomputed. So the folders
  themselves show what is done, and an interrupted watch resumes.
* An image is restored once it has not changed for `settle` seconds. One that cannot be read after `patience`
  seconds is set aside: the reason is written to ``OUT/failed/x.tif.txt``; the image itself is not touched,
  and is retried when it changes.
* No image, whatever it makes libraries do, ends a watch: it is set aside. Machine failures (a full disk, an
  unresponsive share) are reported and retried.
* A file in ``OUT`` that emdiffuse did not write is never replaced: its image is set aside.
* Folders are polled, since network shares send no notifications. One watch at a time writes to
  an output folder, which holds the results of one model and one set of settings.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from emdiffuse.enhance.one_file import Enhancement, enhance
from emdiffuse.models.description import model_link
from emdiffuse.models.inference import RestorationModel
from emdiffuse.readers import READABLE, SUFFIXES, open_source
from emdiffuse.runtime.atomic import remove_leftovers, scratch, short, write_atomically
from emdiffuse.runtime.devices import place_of
from emdiffuse.runtime.disks import FULL
from emdiffuse.runtime.errors import (
    AccessError,
    ConfigError,
    DataError,
    EmdiffuseError,
    StoreError,
    printable,
)
from emdiffuse.runtime.locks import lock
from emdiffuse.runtime.outputs import is_own_file, require_free
from emdiffuse.runtime.progress import clock, logger
from emdiffuse.stores.provenance import made_by

SETTINGS = ".emdiffuse-watch"
UNCERTAINTY = "uncertainty"
"""Folder in the output for the spread of the samples, if there are several."""
PAUSE = 30
"""Seconds until work is retried after a machine failure."""
OF_THE_MACHINE = (*FULL, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS, errno.ESTALE)
COARSEST_TIME = 2.0
"""Time resolution in seconds of the coarsest file systems (FAT, some network shares)."""


@dataclass(frozen=True)
class Seen:
    """State of an image when last seen.

    Attributes
    ----------
    size, modified
        Size in bytes, and modification time in nanoseconds.
    since : float
        When this state was first seen (`time.monotonic`).
    """

    size: int
    modified: int
    since: float


def watch(
    folder: Path,
    out: Path,
    how: Enhancement,
    once: bool = False,
    settle: float = 5.0,
    patience: float = 60.0,
    poll: float = 1.0,
) -> None:
    """Restore the images of a folder, and new ones as they arrive, until interrupted.

    Parameters
    ----------
    folder, out : Path
        Folder of incoming images, and folder of restored ones.
    how : Enhancement
        Model and settings.
    once : bool
        Whether to stop when every image is restored or set aside.
    settle, patience, poll : float
        Seconds without a change after which an image is restored; seconds after which an unreadable one is
        set aside; and seconds between polls.

    Raises
    ------
    ConfigError
        If the folder does not exist, `out` is the same folder or is used by another watch, or a time is
        invalid.
    AccessError, OSError
        With `once`, if the machine fails.
    StoreError
        If `out` contains results of another model or other settings, or the model changes meanwhile.
    """
    for option, seconds in (("--settle", settle), ("--patience", patience)):
        if not 0 <= seconds < math.inf:
            raise ConfigError(f"{option}: {seconds:g} is not a duration; give 0 or more seconds")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder to watch; check the path")
    if out.resolve() == folder.resolve():
        raise ConfigError(f"{out}: outputs would be treated as inputs; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    identity = _identity(how)
    counts = {"restored": 0, "set aside": 0}
    with _alone(out, identity), _ended_by_signals():
        model = RestorationModel.load(how.model, place_of(how.device))

        def require_same() -> None:
            if _identity(how) != identity:
                raise StoreError(f"{how.model}: changed while in use; start again")

        logger.info("watching %s; stop with Ctrl-C", folder)
        seen: dict[str, Seen] = {}
        try:
            while True:
                try:
                    seen = _look(folder, seen)
                except OSError as error:
                    _wait(error, once)
                    continue
                todo = [
                    name
                    for name in sorted(seen, key=lambda n: seen[n].modified)
                    if not _done(out, name, seen[name])
                ]
                ready = [name for name in todo if time.monotonic() - seen[name].since >= settle]
                for name in ready:
                    require_same()
                    try:
                        result = _take(folder, out, name, seen[name], how, model, patience, require_same)
                    except (AccessError, OSError) as error:
                        _wait(error, once)
                        break
                    if result:
                        counts[result] += 1
                if once and not todo:
                    break
                if not ready or len(ready) == len(todo):
                    time.sleep(poll)
        except KeyboardInterrupt:
            logger.info("stopped")
        logger.info("%s", ", ".join(f"{count} {what}" for what, count in counts.items()))


def _wait(error: Exception, once: bool) -> None:
    """Report a machine failure and wait; raise it if waiting is pointless."""
    if once:
        raise error
    logger.warning("%s; retrying in %d seconds", error, PAUSE)
    time.sleep(PAUSE)


def _identity(how: Enhancement) -> str:
    """Return the hash of everything that affects the result for an image."""
    settings = {
        "sampler": how.sampler.model_dump(mode="json"),
        "factor": str(how.factor),
        "voxel_size": how.voxel_size,
        "override": how.override,
        "thickness": how.thickness,
        "reading": how.reading.model_dump(mode="json"),
    }
    return made_by("enhance", "", settings, model_link(how.model)).hash


@contextlib.contextmanager
def _alone(out: Path, identity: str) -> Iterator[None]:
    """Lock the output folder, and mark whose results it contains."""
    path = out / SETTINGS
    with path.open("a+") as file:
        try:
            lock(file, "watching")
        except BlockingIOError:
            raise ConfigError(
                f"{out}: another watch writes here; stop it, or choose another folder"
            ) from None
        file.seek(0)
        if (held := file.read().strip()) and held != identity:
            raise StoreError(
                f"{out}: contains results of another model or other settings; choose another folder"
            )
        if not held:
            file.write(identity + "\n")
            file.flush()
        try:
            remove_leftovers(out)  # of a killed watch
            yield
        finally:
            remove_leftovers(out)  # of this watch, if its own cleanup was interrupted


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make SIGTERM act like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _look(folder: Path, before: dict[str, Seen]) -> dict[str, Seen]:
    """Return the images of a folder; unchanged ones keep the time when first seen."""
    now = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(READABLE):
                continue
            with contextlib.suppress(OSError):  # deleted meanwhile
                if entry.is_file():
                    facts = entry.stat()
                    now[entry.name] = Seen(facts.st_size, facts.st_mtime_ns, time.monotonic())
    for name, seen in now.items():
        old = before.get(name)
        if old is not None and (old.size, old.modified) == (seen.size, seen.modified):
            now[name] = old
    return now


def _done(out: Path, name: str, seen: Seen) -> bool:
    """Return whether the current version of an image was restored or set aside."""
    for path in (out / output_name(name), failure_of(out, name)):
        with contextlib.suppress(OSError):
            facts = path.stat()
            same = abs(facts.st_mtime_ns - seen.modified) < COARSEST_TIME * 1e9
            if same and (path.parent != out or _is_own(path, facts.st_mtime_ns, facts.st_size)):
                return True
    return False


def output_name(name: str) -> str:
    """Return the output name of an image: a TIFF keeps its name, others have ``.tif`` appended.

    A TIFF whose name is the output name of another image (``x.png.tif`` and ``x.png``) also gets ``.tif``.
    """
    path = Path(name.lower())
    return name if path.suffix in SUFFIXES and not path.stem.endswith(READABLE) else f"{name}.tif"


@cache
def _is_own(path: Path, modified: int, size: int) -> bool:
    """Return whether emdiffuse wrote an image, cached per state of the file."""
    return is_own_file(path)


def failure_of(out: Path, name: str) -> Path:
    """Return the file with the reason why an image was set aside; too long names are hashed."""
    return out / "failed" / f"{short(name)}.txt"


def _take(
    folder: Path,
    out: Path,
    name: str,
    seen: Seen,
    how: Enhancement,
    model: RestorationModel,
    patience: float,
    require_same: Callable[[], None],
) -> str | None:
    """Restore an image or set it aside; return which, or None if it is not yet complete.

    Raises
    ------
    AccessError, OSError
        If the machine fails, for instance because of a full disk.
    """
    start = time.monotonic()
    failure = failure_of(out, name)
    try:
        try:
            open_source(str(folder / name), reading=how.reading)
        except DataError:
            if time.monotonic() - seen.since < patience and (folder / name).exists():
                return None
            raise
        restored = out / output_name(name)
        require_free(restored, [folder / name], overwrite=None)
        with scratch(restored) as work:
            made = work / f"made{restored.suffix}"
            spread = work / f"spread{restored.suffix}" if how.sampler.samples > 1 else None
            enhance(folder / name, made, how, spread, model)
            if spread is not None:
                place = out / UNCERTAINTY / restored.name
                require_free(place, [folder / name], overwrite=None)
                place.parent.mkdir(exist_ok=True)
                spread.replace(place)
            os.utime(made, ns=(seen.modified, seen.modified))
            made.replace(restored)
    except AccessError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise
        require_same()
        if not (folder / name).exists():
            return None
        if isinstance(error, MemoryError):
            error = DataError(f"{folder / name}: there is not enough memory for it")
        mistake = isinstance(error, EmdiffuseError)
        # a defect of emdiffuse keeps its traceback, but does not end the watch
        reason = str(error) if mistake else traceback.format_exc()
        write_atomically(failure, f"{printable(name)}: {reason}\n")
        os.utime(failure, ns=(seen.modified, seen.modified))
        said = error if mistake else f"internal error, see {failure}: {error!r}"
        logger.warning("%s: set aside: %s", name, said)
        return "set aside"
    failure.unlink(missing_ok=True)
    logger.info("%s: restored in %s", name, clock(time.monotonic() - start))
    return "restored"
