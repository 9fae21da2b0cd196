"""Restore each image that a microscope drops into a folder.

Conventions
-----------
* An image ``FOLDER/x.tif`` becomes ``OUT/x.tif`` (and ``x.png`` becomes ``x.png.tif``), which carries the
  time of its input: an output of another time is of an older input, and is made again. So the folders
  themselves show what is done, and an interrupted watch resumes.
* An image is taken when it has not changed for `settle` seconds. One that cannot be read after `patience`
  seconds is set aside: the reason is written to ``OUT/failed/x.tif.txt``; the image itself is not touched,
  and is tried again when it changes.
* Nothing that an image is, or does to the libraries that read it, ends a watch: it is set aside. A trouble of
  the machine (a full disk, a share that does not answer) is no image's fault: it is said, and tried again.
* A file in ``OUT`` that this program did not write is never replaced: its image is set aside.
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
"""Folder in the output for the spread of the samples, where there are several."""
PAUSE = 30
"""Seconds until a machine that was in trouble is asked again."""
OF_THE_MACHINE = (*FULL, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS, errno.ESTALE)
COARSEST_TIME = 2.0
"""Seconds to which the coarsest file systems (FAT, some network shares) round times."""


@dataclass(frozen=True)
class Seen:
    """An image as it was seen.

    Attributes
    ----------
    size, modified
        Bytes, and time in nanoseconds.
    since : float
        When it was first seen so (`time.monotonic`).
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
    """Restore the images of a folder, and those that come, until it is interrupted.

    Parameters
    ----------
    folder, out : Path
        Where TIFFs come, and where restored ones of the same name are written.
    how : Enhancement
        Model and settings.
    once : bool
        Whether to end when every image that is there is restored or set aside.
    settle, patience, poll : float
        Seconds without a change after which an image is taken; after which one that cannot be read is set
        aside; and between two looks.

    Raises
    ------
    ConfigError
        If there is no such folder, or `out` is the same one, or is written to by another watch; if a time
        is none.
    AccessError, OSError
        With `once`, if the machine is in trouble.
    StoreError
        If `out` holds results of another model or other settings, or the model changes meanwhile.
    """
    for option, seconds in (("--settle", settle), ("--patience", patience)):
        if not 0 <= seconds < math.inf:
            raise ConfigError(f"{option}: {seconds:g} is not a duration; give seconds, 0 or more")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder to watch; check the path")
    if out.resolve() == folder.resolve():
        raise ConfigError(f"{out}: the output would be taken for input; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    identity = _identity(how)
    counts = {"restored": 0, "set aside": 0}
    with _alone(out, identity), _ended_by_signals():
        model = RestorationModel.load(how.model, place_of(how.device))

        def require_same() -> None:
            if _identity(how) != identity:
                raise StoreError(f"{how.model}: changed while it was used; start again")

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
    """Report a problem of the machine and wait; raise it where waiting is pointless."""
    if once:
        raise error
    logger.warning("%s; tried again in %d seconds", error, PAUSE)
    time.sleep(PAUSE)


def _identity(how: Enhancement) -> str:
    """Return the hash of all that decides what is made of an image."""
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
    """Hold the output folder, and mark whose results it holds."""
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
                f"{out}: holds results of another model or other settings; choose another folder for these"
            )
        if not held:
            file.write(identity + "\n")
            file.flush()
        try:
            remove_leftovers(out)  # of a watch that was killed
            yield
        finally:
            remove_leftovers(out)  # of an interrupted one, whose own removal was interrupted too


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a request to end (SIGTERM) do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _look(folder: Path, before: dict[str, Seen]) -> dict[str, Seen]:
    """Return the images of a folder; what has not changed keeps the time since when."""
    now = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(READABLE):
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                if entry.is_file():
                    facts = entry.stat()
                    now[entry.name] = Seen(facts.st_size, facts.st_mtime_ns, time.monotonic())
    for name, seen in now.items():
        old = before.get(name)
        if old is not None and (old.size, old.modified) == (seen.size, seen.modified):
            now[name] = old
    return now


def _done(out: Path, name: str, seen: Seen) -> bool:
    """Tell whether an image, as it is now, was restored or set aside."""
    for path in (out / output_name(name), failure_of(out, name)):
        with contextlib.suppress(OSError):
            facts = path.stat()
            same = abs(facts.st_mtime_ns - seen.modified) < COARSEST_TIME * 1e9
            if same and (path.parent != out or _is_own(path, facts.st_mtime_ns, facts.st_size)):
                return True
    return False


def output_name(name: str) -> str:
    """Return the name of what is made of an image: that of a TIFF stays, others have ``.tif`` behind it.

    So has a TIFF that is named as what is made of another image: of ``x.png`` beside ``x.png.tif``, say.
    """
    path = Path(name.lower())
    return name if path.suffix in SUFFIXES and not path.stem.endswith(READABLE) else f"{name}.tif"


@cache
def _is_own(path: Path, modified: int, size: int) -> bool:
    """Tell whether this program wrote an image: once for every state of the file."""
    return is_own_file(path)


def failure_of(out: Path, name: str) -> Path:
    """Return the file that says why an image was set aside; a hash stands for a name that is too long."""
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
    """Restore an image or set it aside, whatever it is; return which, or None when it is to be waited for.

    Raises
    ------
    AccessError, OSError
        If the trouble is not the image's, but the machine's: a full disk, say.
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
        # an error of ours keeps its traceback, but ends nothing
        reason = str(error) if mistake else traceback.format_exc()
        write_atomically(failure, f"{printable(name)}: {reason}\n")
        os.utime(failure, ns=(seen.modified, seen.modified))
        said = error if mistake else f"an error of emdiffuse's, see {failure}: {error!r}"
        logger.warning("%s: set aside: %s", name, said)
        return "set aside"
    failure.unlink(missing_ok=True)
    logger.info("%s: restored in %s", name, clock(time.monotonic() - start))
    return "restored"
