"""Hostile values: unintended contents of a file, a field of its metadata or an option.

Each family is generated from valid input, so that new readers, keys or fields are covered automatically.
"""

import contextlib
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES: dict[str, Any] = {
    "nothing": None,
    "empty text": "",
    "text": "many",
    "minus one": -1,
    "zero": 0,
    "half": 0.5,
    "next to nothing": 1e-320,
    "a million": 10**6,
    "beyond 64 bits": 10**30,
    "infinite": math.inf,
    "not a number": math.nan,
    "true": True,
    "a list": [1, -2, "x"],
    "an empty list": [],
    "a mapping": {"a": {"b": 1}},
    "a lone surrogate": "\ud83d",
    "an emoji": "\U0001f9ec",
    "a path out": "../../etc/passwd",
    "a zero byte": "a\0b",
    "a long text": "x" * 5000,
}


SECONDS = 120
"""Seconds of wall time per try on a busy machine: long enough to detect only hangs."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail if it hangs."""

    def ring(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


TEXTS = [
    "", "nan", "inf", "-1", "0", "1e400", "9" * 50, "1/0", "1e99999999", "0x10", "many", "1,2", "nan,nan,nan",
    "1e-320,1e-320,1e-320",
    "0,0,0", "1,2,3,4", "\udcff", "\U0001f9ec", "a\nb", "../..", "z=5:1", "y=0:99999999999999999999",
    "--help me", "/proc/nowhere/a.zarr",
]  # fmt: skip
"""Hostile texts for options."""


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in JSON-like data, including mappings and lists."""
    if path:
        yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node[:2]):
            yield from places(value, (*path, number))


def changed(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return JSON-like data with one value replaced."""
    if not path:
        return value
    key, *rest = path
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[key] = changed(node[key], tuple(rest), value)
    return copy


def without(node: Any, path: tuple[Any, ...]) -> Any:
    """Return JSON-like data without one value."""
    key, *rest = path
    copy = dict(node) if isinstance(node, dict) else list(node)
    if rest:
        copy[key] = without(node[key], tuple(rest))
    else:
        del copy[key]
    return copy


def variants(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield JSON-like data with each value removed, or replaced by each hostile one."""
    for path in places(node):
        where = ".".join(map(str, path))
        yield f"{where}: gone", without(node, path)
        for name, value in VALUES.items():
            yield f"{where}: {name}", changed(node, path, value)


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a file's bytes truncated, overwritten, or replaced by something else."""
    for share in (0, 1, 4, 8, len(content) // 2, len(content) - 1):
        yield f"cut to {share}", content[:share]
    for at in range(0, min(len(content), 64), 3):
        for byte in (0x00, 0xFF):
            yield f"byte {at} is {byte}", content[:at] + bytes([byte]) + content[at + 1 :]
    yield "zeros", bytes(len(content))
    yield "text", b"years of work"
    yield "HTML", b"<html><body>404</body></html>"
    yield "doubled", content + content


def as_text(value: Any) -> str:
    """Return JSON as written by hostile programs, with NaN, infinity and lone surrogates."""
    return json.dumps(value)


def odd_files(folder: Path, good: bytes, suffix: str) -> dict[str, Path]:
    """Make things other than plain files, and files with strange names, each with that suffix."""
    fifo, zero, loop = (folder / f"{name}{suffix}" for name in ("fifo", "zero", "loop"))
    os.mkfifo(fifo)
    zero.symlink_to("/dev/zero")
    loop.symlink_to(loop.name)
    (folder / f"folder{suffix}").mkdir()
    odd = {name: folder / f"{name}{suffix}" for name in ("fifo", "zero", "loop", "folder")}
    for name in (
        "-60",
        "a [1]",
        "ö\u0308 \U0001f9ec",
        "x" * (255 - len(suffix)),
        "new\nline",
        "\udcff",
        "a'b\"c",
        "%d{0}",
    ):
        path = folder / f"{name}{suffix}"
        path.write_bytes(good)
        odd[repr(name)[:30]] = path
    return odd
