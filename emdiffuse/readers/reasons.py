"""The true reason why a file cannot be read, in one sentence that names the file.

Conventions
-----------
* Messages of libraries are passed on in whole words. A file is called truncated only if its end is verifiably
  missing.
* A full disk or a defect of emdiffuse has nothing to do with the file, and is passed through.
"""

from __future__ import annotations

import errno
import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emdiffuse.runtime.errors import DataError

LONGEST = 240
ENDED = (
    "unexpected end",
    "end of file",
    "end-of-stream",
    "truncated",
    "eof ",
    "eof:",
    "file signature not found at",
)
LOCKED = ("unable to lock file", "resource temporarily unavailable", "file is already open for")
KNOWN = (
    (b"%PDF", "a PDF", ""), (b"PK\x03\x04", "a ZIP archive", ""), (b"\x1f\x8b", "a gzip archive", ""),
    (b"BZh", "a bzip2 archive", ""), (b"Rar!", "a RAR archive", ""), (b"7z\xbc\xaf", "a 7z archive", ""),
    (b"\x89PNG", "a PNG image", ".png"), (b"\xff\xd8\xff", "a JPEG image", ".jpg"),
    (b"BM", "a BMP image", ".bmp"), (b"GIF8", "a GIF image", ".gif"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", ".h5"),
    (b"II*\0", "a TIFF", ".tif"), (b"MM\0*", "a TIFF", ".tif"), (b"II+\0", "a TIFF", ".tif"),
    (b"MM\0+", "a TIFF", ".tif"), (b"ZISRAWFILE", "a Zeiss CZI file", ".czi"),
    (b"# AmiraMesh", "an Amira file", ".am"), (b"# Avizo", "an Amira file", ".am"),
    (b"NRRD", "an NRRD file", ".nrrd"), (b"\x93NUMPY", "a NumPy array", ".npy"),
    (b"\xd3\xed\xf5\xf2", "a FIB-SEM .dat file", ".dat"), (b"II\x97\x01", "a TIA series (.ser)", ""),
    (b"IMGBLO", "a NanoMegas blockfile", ""), (b"p\0\0\0", "a Leica image (.lif)", ""),
    (b"<!DOCTYPE", "a web page", ""), (b"<html", "a web page", ""),
    (b"version https://git-lfs", "a pointer of Git LFS", ""),
)  # fmt: skip
"""First bytes, the format that they identify, and its extension; empty if the format is not readable."""
ARCHIVES = ("a ZIP archive", "a gzip archive", "a bzip2 archive", "a RAR archive", "a 7z archive")


_said: set[str] = set()
logger = logging.getLogger(__name__)


def warn_once(message: str, *values: object) -> None:
    """Log a warning about a file only once, since a file is opened several times."""
    text = message % values
    if text not in _said:
        _said.add(text)
        logger.warning("%s", text)


@contextmanager
def named(where: str, what: str) -> Iterator[None]:
    """Turn any exception that a library raises about a file into one sentence.

    Parameters
    ----------
    where : str
        The file, and the part concerned.
    what : str
        Format of the file, such as "TIFF".
    """
    try:
        yield
    except (DataError, MemoryError, NameError):  # NameError is a defect of emdiffuse
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{where}: {reason_of(error, what, Path(where))}") from None


def reason_of(error: Exception, what: str, file: Path) -> str:
    """Return why a file of a format cannot be read, and what to do, as half a sentence."""
    text = " ".join(str(error).split())
    low = text.lower()
    if isinstance(error, PermissionError) or "permission denied" in low:
        return "no permission to read it; check its permissions"
    if isinstance(error, BlockingIOError) or any(sign in low for sign in LOCKED):
        return (
            "another program holds it open for writing; close it there (or, if none does, set "
            "HDF5_USE_FILE_LOCKING=FALSE)"
        )
    if isinstance(error, FileNotFoundError):
        return "it does not exist, or no longer; check the path"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"the disk or the network failed ({error.strerror}); try again, or copy the file elsewhere"
    content = content_of(file) if file.is_file() else None
    wordless = not any(c.isalpha() for c in text)
    if wordless or isinstance(error, KeyError | IndexError | TypeError | AttributeError):
        text = "its content does not follow the format"  # the library's exception means nothing to a user
    if content == "":
        return "the file is empty; copy or export it again"
    if isinstance(error, EOFError) or any(sign in low for sign in ENDED):
        return f"it ends early: the {what} is truncated; copy or export it again"
    if content and what.split()[0] not in content:
        return f"this is {content}, not a readable {what}; {_remedy(content)}"
    return f"not a readable {what} ({whole_words(text) or type(error).__name__}); export it again"


def whole_words(text: str) -> str:
    """Return a text as one line, shortened to its first words if long."""
    return textwrap.shorten(text, LONGEST, placeholder=" …").rstrip(".")


def content_of(file: Path) -> str | None:
    """Return what a file is by its first bytes: "" if empty, None if unknown."""
    try:
        with file.open("rb") as opened:
            first = opened.read(512)
    except OSError:
        return None
    if not first:
        return ""
    for sign, name, _ in KNOWN:
        if first.startswith(sign):
            return name
    for end in range(len(first), max(len(first) - 4, 0), -1):  # the last character may be cut
        try:
            text = first[:end].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return "a text file" if all(c.isprintable() or c in "\r\n\t" for c in text) else None
    return None


def not_of(file: Path, what: str) -> str:
    """Return what a file is, if its first bytes are not those of its format."""
    content = content_of(file)
    if content == "":
        return "the file is empty; copy or export it again"
    if content is None:
        return f"not {what}, judging by its first bytes; give it the right extension, or export it again"
    return f"this is {content}, not {what}; {_remedy(content)}"


def _remedy(content: str) -> str:
    """Return what to do with a file whose content does not match its extension."""
    ending = next((ending for _, name, ending in KNOWN if name == content and ending), None)
    if ending is not None:
        return f"give it the extension {ending}"
    if content in ARCHIVES:
        return "unpack it first"
    if content == "a pointer of Git LFS":
        return "fetch the file itself (`git lfs pull`)"
    if content == "a text file":
        return "give the image file itself"
    return "export the image as TIFF"
