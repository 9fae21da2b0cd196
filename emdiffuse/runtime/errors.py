"""Mistakes of the user's: each is one clear sentence, and never shown as a traceback.

Every class derives from `EmdiffuseError`, which the command line prints as ``error: <sentence>`` and ends
with the class's exit code. Anything else that escapes a stage is a defect of ours, and keeps its traceback.
Code that handles an error checks its class and its `path`; the sentence is for people.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path


def printable(text: str) -> str:
    """Return a text in one line that any terminal and file takes, whatever the names in it are made of."""
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], encodable)


class EmdiffuseError(ValueError):
    """A mistake of the user's, or of the data: one sentence that names the file or key, and what to do.

    Attributes
    ----------
    exit_code : int
        What the command line ends with.
    path : Path or None
        The file or store that it is about, where there is one.
    """

    exit_code = 1

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(printable(message))
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes with all that is known."""
        return _restored, (type(self), self.args[0], dict(self.__dict__))


def _restored(cls: type[EmdiffuseError], message: str, known: dict[str, object]) -> EmdiffuseError:
    error = cls.__new__(cls, message)
    error.__dict__.update(known)
    return error


class ConfigError(EmdiffuseError):
    """A wrong configuration; names the key."""


class DataError(EmdiffuseError):
    """Unusable data; names the file."""


class StoreError(EmdiffuseError):
    """A store that is missing, damaged, or was made with other settings; names its path."""


class DamagedError(StoreError):
    """A part of a store that is lost: missing, or read in full and failing its checksum.

    Attributes
    ----------
    path : Path
        The array.
    chunk : Path
        The file of the part.
    what : str
        What is wrong with it.
    """

    def __init__(self, path: Path, chunk: Path, what: str, store: Path) -> None:
        super().__init__(
            f"{chunk}: this part of {store} is {what}; run `emdiffuse verify {shlex.quote(str(store))} "
            "--repair` and start again: what is lost is recomputed",
            path,
        )
        self.chunk, self.what = chunk, what


class AccessError(EmdiffuseError):
    """A trouble of the machine, not of the data: a full disk, no permission, too many open files, no memory.

    Nothing may be concluded from it about what could not be read or written, and nothing deleted.
    """


class ModelError(EmdiffuseError):
    """A model or checkpoint that is missing, damaged or of another kind; names its file."""


class OutputError(EmdiffuseError):
    """An output that would replace an input, or what this program did not make; names it."""


class LaunchError(EmdiffuseError):
    """A job of a cluster that could not be submitted, failed or was lost; names the job."""
