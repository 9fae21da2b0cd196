"""How image pairs lie in folders: finding which file is which image of which field.

Conventions
-----------
* A *pattern* names the files below a folder with placeholders: ``{role}`` (which image of the pair, by one
  of `MOVING` or `FIXED`), ``{field}``, and where there are any ``{specimen}`` and ``{level}`` (noise or zoom
  level). A placeholder matches anything but a slash.
* In a dwell-time series (``<region>/<stem>_<number>.tif``) every number but the highest is a noisy image of
  the one field, and the highest is the clean one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from emdiffuse.errors import DataError
from emdiffuse.readers import SUFFIXES

MOVING = ("wf", "img", "image", "input", "noisy", "raw", "lr", "low", "moving")
FIXED = ("gt", "target", "clean", "truth", "hr", "high", "fixed")
PATTERNS = ("{specimen}/{level}/{role}_{field}.tif", "{role}/{field}.tif", "{role}_{field}.tif")
SERIES = re.compile(r"(?P<stem>.+)_(?P<number>\d+)")


@dataclass(frozen=True)
class Pair:
    """The two images of a field."""

    name: str
    specimen: str
    level: str
    moving: Path
    fixed: Path


@dataclass(frozen=True)
class Found:
    """What was found in a folder: pairs, and images without a partner."""

    pairs: tuple[Pair, ...]
    alone: tuple[str, ...]

    def files(self) -> list[str]:
        """Return all files of the pairs."""
        return sorted({str(path) for pair in self.pairs for path in (pair.moving, pair.fixed)})

    def summary(self) -> str:
        """Say in a few words what was found."""
        counts = [f"{len(self.pairs)} pairs"]
        for what, values in (
            ("specimens", {pair.specimen for pair in self.pairs}),
            ("levels", {pair.level for pair in self.pairs}),
        ):
            if values != {""}:
                counts.append(f"{len(values)} {what}")
        return f"found {', '.join(counts)}" + (f"; {len(self.alone)} without a partner" if self.alone else "")


def find_pairs(folder: Path, pattern: str | None = None) -> Found:
    """Find the image pairs in a folder.

    Parameters
    ----------
    folder : Path
        Where to look, also in folders within it.
    pattern : str, optional
        See the module; without it the known layouts are tried.

    Returns
    -------
    Found
        Pairs sorted by name.

    Raises
    ------
    DataError
        If the folder is missing or holds no images, the pattern makes no sense, or no layout fits.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of image pairs; check the path")
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not files:
        raise DataError(f"{folder}: there are no TIFF images here; check the path")
    if pattern is not None:
        found = _by_pattern(folder, files, pattern)
        if not found.pairs:
            raise DataError(
                f"{folder}: no pair of images matches the pattern '{pattern}'; the first file is {files[0]}, "
                f"and {{role}} is one of {', '.join(MOVING)} or {', '.join(FIXED)}"
            )
        return found
    tried = [_by_pattern(folder, files, known) for known in PATTERNS]
    best = max([*tried, _by_series(folder, files)], key=lambda found: len(found.pairs))
    if not best.pairs:
        raise DataError(
            f"{folder}: no known layout of image pairs fits these files (the first is {files[0]}); "
            "describe it by `pattern`"
        )
    return best


def _by_pattern(folder: Path, files: list[str], pattern: str) -> Found:
    """Match files against a pattern, and put the two roles of a field together."""
    expression = _expression(pattern)
    sides: tuple[dict[tuple[str, str, str], str], ...] = ({}, {})
    for file in files:
        match = expression.fullmatch(file)
        if match is None:
            continue
        parts = match.groupdict()
        role = parts["role"].lower()
        if role in (*MOVING, *FIXED):
            key = (parts.get("specimen") or "", parts.get("level") or "", parts["field"])
            sides[role in FIXED][key] = file
    moving, fixed = sides
    pairs = [
        Pair(
            "/".join(part for part in key if part), key[0], key[1], folder / moving[key], folder / fixed[key]
        )
        for key in sorted(moving.keys() & fixed.keys())
    ]
    alone = [side[key] for side in sides for key in sorted(side) if not (key in moving and key in fixed)]
    return Found(tuple(pairs), tuple(alone))


def _expression(pattern: str) -> re.Pattern[str]:
    """Turn a pattern into a regular expression."""
    names = re.findall(r"\{(\w*)\}", pattern)
    known = {"role", "field", "specimen", "level"}
    if "role" not in names or "field" not in names or not set(names) <= known or len(set(names)) < len(names):
        raise DataError(
            f"pattern '{pattern}': it needs {{role}} and {{field}}, once each, and may have {{specimen}} and "
            "{level}"
        )
    text = re.escape(pattern)
    for name in names:
        text = text.replace(rf"\{{{name}\}}", f"(?P<{name}>[^/]+?)")
    text = re.sub(r"\\\.tiff?$", r"\\.tiff?", text)
    return re.compile(text)


def _by_series(folder: Path, files: list[str]) -> Found:
    """Take the highest number of each stem as the clean image of its field."""
    series: dict[str, dict[int, str]] = {}
    for file in files:
        match = SERIES.fullmatch(file.rpartition(".")[0])
        if match:
            series.setdefault(match["stem"], {})[int(match["number"])] = file
    pairs, alone = [], []
    for stem, members in sorted(series.items()):
        *noisy, clean = sorted(members)
        if not noisy:
            alone.append(members[clean])
        region = stem.rpartition("/")[0]
        pairs += [
            Pair(f"{stem}_{n}", region, f"dwell_{n}", folder / members[n], folder / members[clean])
            for n in noisy
        ]
    return Found(tuple(pairs), tuple(alone))
