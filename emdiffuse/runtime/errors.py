"""Errors for user mistakes: each is one clear sentence, never a traceback.

Every class derives from `EmdiffuseError`, which the command line prints as ``error: <sentence>`` before it
exits with the class's exit code. Any other exception is a defect of emdiffuse, and keeps its traceback.
Code that handles an error checks its class and `path`; the sentence is for people.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path


def printable(text: str) -> str:
    """Return a text as one line that any terminal and file can represent, whatever names it contains."""
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], encodable)


class EmdiffuseError(ValueError):
    """A mistake in the user's input or data: one sentence that names the file or key, and what to do.

    Attributes
    ----------
    exit_code : int
        Exit code of the command line.
    path : Path or None
        The file or store concerned, if any.
    """

    exit_code = 1

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(printable(message))
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with all attributes, to pass between processes."""
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
    """A store that is missing, damaged, or made with other settings; names its path."""


class DamagedError(StoreError):
    """A lost part of a store: missing, or completely read but failing its checksum.

    Attributes
    ----------
    path : Path
        Path of the array.
    chunk : Path
        File of the part.
    what : str
        What is wrong with it.
    """

    def __init__(self, path: Path, chunk: Path, what: str, store: Path) -> None:
        super().__init__(
            f"{chunk}: this part of {store} is {what}; run `emdiffuse verify {shlex.quote(str(store))} "
            "--repair` and start again to recompute the lost parts",
            path,
        )
        self.chunk, self.what = chunk, what


class AccessError(EmdiffuseError):
    """A failure of the machine, not of the data: a full disk, no permission, too many open files, no memory.

    It proves nothing about the data that could not be read or written, so nothing may be deleted because of
    it.
    """


class ModelError(EmdiffuseError):
    """A model or checkpoint that is missing, damaged or of the wrong kind; names its file."""


class OutputError(EmdiffuseError):
    """An output that would replace an input, or a file that emdiffuse did not write; names it."""


class LaunchError(EmdiffuseError):
    """A cluster job that could not be submitted, failed or was lost; names the job."""
