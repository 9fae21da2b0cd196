"""The axes of a stored array, and which part of it is the stack (z, y, x) to read.

Conventions
-----------
* An axis has one letter: ``z``, ``y``, ``x``, ``c`` (channels), ``t`` (time), ``s`` (colour samples) or
  ``?``. Axis names in a file are honoured; without names, the last three axes are (z, y, x).
* If there are several channels or time points, none is chosen silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.reasons import warn_once
from emdiffuse.runtime.errors import DataError

NAMES = {
    "plane": "z", "slice": "z", "depth": "z", "section": "z", "row": "y", "height": "y", "column": "x",
    "col": "x", "width": "x", "channel": "c", "channels": "c", "ch": "c", "band": "c", "time": "t",
    "frame": "t", "timepoint": "t", "rgb": "s",
}  # fmt: skip
MOST_CHANNELS = 8
"""Up to this many columns, with far more rows and slices, may be channels."""


@dataclass(frozen=True)
class Layout:
    """Position of the stack in a stored array.

    Attributes
    ----------
    letters : str
        Axes as stored, slowest first; those in ``fixed`` are indexed, the others kept.
    lengths : tuple of int
        Their lengths.
    fixed : dict
        Index along each axis that is not part of the stack, by position of the axis.
    """

    letters: str
    lengths: tuple[int, ...]
    fixed: dict[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the stack; one slice without a z axis."""
        z, y, x = (self.lengths[self.letters.index(a)] if a in self.letters else 1 for a in "zyx")
        return z, y, x

    @property
    def samples(self) -> int:
        """Samples per pixel: 1, or those of a colour."""
        return self.lengths[self.letters.index("s")] if "s" in self.letters else 1

    def along(self, sizes: Sequence[int] | None) -> tuple[int, int, int]:
        """Reorder a property of the stored axes, such as the chunk shape, to (z, y, x)."""
        if sizes is None:
            return (1, 1, 1)
        z, y, x = (int(sizes[self.letters.index(a)]) if a in self.letters else 1 for a in "zyx")
        return z, y, x

    def region(self, z0: int, z1: int, y: slice, x: slice) -> tuple[int | slice, ...]:
        """Return the index of a part of the stack in the stored array."""
        parts = {"z": slice(z0, z1), "y": y, "x": x}
        return tuple(
            self.fixed[i] if i in self.fixed else parts.get(letter, slice(None))
            for i, letter in enumerate(self.letters)
        )

    def arranged(self, where: str, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values of a region as (z, y, x), merging equal colour samples into one.

        Raises
        ------
        DataError
            If the colour samples differ.
        """
        kept = "".join(a for i, a in enumerate(self.letters) if i not in self.fixed)
        order = [kept.index(a) for a in "zyxs" if a in kept]
        moved = values.transpose(order)
        if "z" not in kept:
            moved = moved[None]
        return grey(where, moved) if "s" in kept else moved


def grey(where: str, values: NDArray[Any]) -> NDArray[Any]:
    """Merge the equal samples (and perhaps an alpha) on the last axis of an image into one.

    Raises
    ------
    DataError
        If the samples differ.
    """
    colours = values[..., : values.shape[-1] - (values.shape[-1] in (2, 4))]
    if (colours != colours[..., :1]).any():
        raise DataError(
            f"{where}: this is a colour image with different red, green and blue; convert it to one "
            "grayscale "
            "channel"
        )
    first: NDArray[Any] = np.ascontiguousarray(colours[..., 0])
    return first


def letters_of(names: Sequence[str | None]) -> str:
    """Return one letter per axis; ``?`` for an unknown name."""
    plain = [str(name or "?").strip().lower() for name in names]
    return "".join(a if a in "zyxcts" and len(a) == 1 else NAMES.get(a, "?") for a in plain)


def guessed(lengths: Sequence[int]) -> str:
    """Return the axes of an array without names: the last three, ignoring axes of length 1 at either end."""
    letters = ["?"] * len(lengths)
    rest = list(range(len(lengths)))
    while len(rest) > 3 and lengths[rest[0]] == 1:
        rest.pop(0)
    while len(rest) > 2 and lengths[rest[-1]] == 1 and lengths[rest[0]] != 1:
        rest.pop()  # channel last
    while len(rest) > 3 and lengths[rest[-1]] == 1:
        rest.pop()
    for place, letter in zip(rest[-3:], "zyx"[-len(rest) :] if len(rest) < 3 else "zyx", strict=True):
        letters[place] = letter
    return "".join(letters)


def lay_out(
    where: str,
    lengths: Sequence[int],
    names: Sequence[str | None] | None,
    reading: Reading,
    channels: Sequence[str] = (),
) -> Layout:
    """Find the stack in a stored array.

    Parameters
    ----------
    where : str
        Name of the data, for messages.
    lengths : sequence of int
        Stored shape.
    names : sequence of str, optional
        Axis names in the file, possibly unknown ones; None without names.
    reading : Reading
        Choices of the user.
    channels : sequence of str
        Names of the channels.

    Raises
    ------
    DataError
        If the axes are not those of one stack, or a choice is needed.
    """
    lengths = tuple(int(n) for n in lengths)
    letters = _stated(where, lengths, names, reading)
    if reading.axes is None and "t" in letters and reading.timepoint is None:
        letters = _time_as_depth(where, letters, lengths)
    if "z" not in letters and letters.count("?") >= 1:
        long = [i for i, a in enumerate(letters) if a == "?" and lengths[i] > 1]
        if len(long) == 1:
            letters = letters[: long[0]] + "z" + letters[long[0] + 1 :]
    if "y" not in letters or "x" not in letters:
        raise DataError(
            f"{where}: expected an array of three axes (z, y, x), but the axes are "
            f"{_spelled(letters, lengths)}; state which is which with `axes`"
        )
    fixed = {}
    for i, (letter, length) in enumerate(zip(letters, lengths, strict=True)):
        if letter == "c":
            fixed[i] = _chosen(where, "channel", length, reading.channel, channels)
        elif letter == "t":
            fixed[i] = _chosen(where, "timepoint", length, reading.timepoint, ())
        elif letter == "?":
            if length > 1:
                raise DataError(
                    f"{where}: expected an array of three axes (z, y, x), but its shape is "
                    f"{' x '.join(map(str, lengths))}; state the axes, such as `axes: "
                    f"{'tczyx'[-len(lengths) :]}`"
                )
            fixed[i] = 0
    for option, letter in (("channel", "c"), ("timepoint", "t")):
        choice = getattr(reading, option)
        if letter not in letters and choice not in (None, 0, *channels[:1]):
            raise DataError(f"{where}: `{option}` is {choice!r}, but there is only one; remove it")
    return Layout(letters, lengths, fixed)


def _stated(
    where: str, lengths: tuple[int, ...], names: Sequence[str | None] | None, reading: Reading
) -> str:
    """Return the axes stated by the user or the file, or else the default ones."""
    if reading.axes is not None:
        letters = reading.axes
        if len(letters) < len(lengths) and all(n == 1 for n in lengths[: len(lengths) - len(letters)]):
            letters = "?" * (len(lengths) - len(letters)) + letters
        if len(letters) != len(lengths) or any(letters.count(a) > 1 for a in "zyxcts"):
            raise DataError(
                f"{where}: `axes` is '{reading.axes}', but the shape is {' x '.join(map(str, lengths))}; "
                "give one letter per axis, each once"
            )
        return letters
    letters = letters_of(names) if names is not None and len(names) == len(lengths) else ""
    if any(letters.count(a) > 1 for a in "zyxcts"):
        letters = ""
    if {"y", "x"} <= set(letters):
        return letters
    if letters.strip("?"):
        return _completed(where, letters, lengths)
    letters = guessed(lengths)
    if letters.endswith("zyx") and lengths[-1] <= MOST_CHANNELS and min(lengths[-3:-1]) > 8 * lengths[-1]:
        rest = letters[:-3].replace("?", "t")
        raise DataError(
            f"{where}: its shape is {' x '.join(map(str, lengths))}; the last axis may be {lengths[-1]} "
            "columns "
            f"or channels. Set `axes: {rest}yxc`, `axes: {rest}yxs` for colours, or `axes: {rest}zyx`"
        )
    return letters


def _completed(where: str, letters: str, lengths: tuple[int, ...]) -> str:
    """Return the axes of a file that names some of them; its names override the usual order."""
    places = [i for i, a in enumerate(letters) if a == "?" and lengths[i] > 1]
    left = [a for a in "zyx" if a not in letters]
    if left == ["z", "y", "x"]:  # only channels and times are named
        found = guessed([lengths[i] for i in places])
    elif len(left) == len(places) == 1:
        found = left[0]
    else:
        raise DataError(f"{where}: only some of its axes are named: {_spelled(letters, lengths)}; set `axes`")
    whole = list(letters)
    for place, letter in zip(places, found, strict=True):
        whole[place] = letter
    return "".join(whole)


def _time_as_depth(where: str, letters: str, lengths: tuple[int, ...]) -> str:
    """Treat time points as slices, with a warning, if there is no z axis."""
    time = letters.index("t")
    depth = letters.index("z") if "z" in letters else None
    if lengths[time] == 1 or (depth is not None and lengths[depth] > 1):
        return letters
    warn_once(
        "%s: labelled as %d time points; read as slices (`timepoint` chooses one)",
        where,
        lengths[time],
    )
    swapped = list(letters)
    if depth is not None:
        swapped[depth] = "?"
    swapped[time] = "z"
    return "".join(swapped)


def _chosen(where: str, option: str, length: int, choice: int | str | None, names: Sequence[str]) -> int:
    """Return the index of a channel or a time point."""
    what = {"channel": "channels", "timepoint": "time points"}[option]
    if choice is None and length == 1:
        return 0
    listed = f" ({', '.join(names)})" if names else ""
    if choice is None:
        raise DataError(f"{where}: there are {length} {what}{listed}; choose one with `{option}`, such as 0")
    if isinstance(choice, str) and choice in names:
        return list(names).index(choice)
    if isinstance(choice, str) and choice.isdigit():
        choice = int(choice)
    if isinstance(choice, str) or not 0 <= choice < length:
        raise DataError(
            f"{where}: `{option}` is {choice!r}, but there "
            + (f"are {length} {what}{listed}, counted from 0" if length > 1 else "is only one")
        )
    return choice


def _spelled(letters: str, lengths: Sequence[int]) -> str:
    return " and ".join(f"{n} along {a}" for a, n in zip(letters, lengths, strict=True)) or "none"
