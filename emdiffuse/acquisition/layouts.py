"""Find image pairs in folders: which file is which image of which field.

Conventions
-----------
* Hidden files and folders, and the case of extensions, are ignored.
* A *pattern* names the files below a folder with placeholders: ``{role}`` (which image of the pair, by one
  of `MOVING` or `FIXED`), ``{field}``, and optionally ``{specimen}`` and ``{level}`` (noise or zoom level). A
  placeholder matches anything but a slash.
* In a dwell-time series (``<region>/<stem>_<number>.tif``) all numbers but the highest are noisy images of
  one field, and the highest is the clean one.
* If no scan is clean, the names of the noisy scans (`scans`) stand for ``{role}``.
* If the stems of a region end in magnifications (``Brain__2w``, ``Brain__4w``), the clean image has the
  highest. For denoising, the noisy images have the same magnification; for super-resolution, half of it: they
  show twice the field, with the clean one in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from emdiffuse.config.sources import PICTURES, SUFFIXES, is_slice
from emdiffuse.runtime.errors import DataError

MOVING = ("wf", "img", "image", "input", "noisy", "raw", "lr", "low", "moving")
FIXED = ("gt", "target", "clean", "truth", "hr", "high", "fixed")
PATTERNS = ("{specimen}/{level}/{role}_{field}.tif", "{role}/{field}.tif", "{role}_{field}.tif")
MAGNIFIED = re.compile(r"(?P<field>.*?)(?P<magnification>\d+)w")
NUMBERED = re.compile(r"[\W_]*\d+$")
SERIES = re.compile(r"(?P<stem>.+)_(?P<number>\d+)")


@dataclass(frozen=True)
class Pair:
    """The two images of a field."""

    name: str
    specimen: str
    level: str
    moving: Path
    fixed: Path
    wide: bool = False
    """Whether the moving image may show twice the field, with the fixed one in the middle."""


@dataclass(frozen=True)
class Found:
    """Image pairs found in a folder, and images without a partner."""

    pairs: tuple[Pair, ...]
    alone: tuple[str, ...]

    def files(self) -> list[str]:
        """Return all files of the pairs."""
        return sorted({str(path) for pair in self.pairs for path in (pair.moving, pair.fixed)})

    def summary(self) -> str:
        """Return a few words on what was found."""
        counts = []
        for what in ("specimen", "level"):
            values = {getattr(pair, what) for pair in self.pairs} - {""}
            kinds = {NUMBERED.sub("", value.rpartition("/")[2]) for value in values}  # cell_1, cell_2: cells
            kind = kinds.pop() if len(kinds) == 1 and not kinds & values else ""
            counts += [_counted(len(values), kind.replace("_", " ") or what)] if values else []
        there = [" x ".join(counts)] if counts else []
        alone = f"; {_counted(len(self.alone), 'image')} without a partner" if self.alone else ""
        return f"found {', '.join([*there, _counted(len(self.pairs), 'pair')])}{alone}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def find_pairs(
    folder: Path,
    pattern: str | None = None,
    scale: int | None = None,
    scans: Sequence[str] | None = None,
) -> Found:
    """Find the image pairs in a folder.

    Parameters
    ----------
    folder : Path
        Folder to search, with its subfolders.
    pattern : str, optional
        See the module; by default the known layouts are tried.
    scale : int, optional
        Which pairs to take from series of several magnifications: 1 for denoising, 2 for super-resolution.
    scans : sequence of str, optional
        Values of ``{role}`` for the noisy scans of each field; every two successive ones form a pair.

    Returns
    -------
    Found
        Pairs sorted by name.

    Raises
    ------
    DataError
        If the folder is missing or has no images, the pattern is invalid, or no layout matches.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of image pairs; check the path")
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if is_slice(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"{folder}: there are no images here; check the path")
    if scans is not None:
        return _repeated(folder, files, pattern, scans)
    if pattern is not None:
        found = _by_pattern(folder, files, pattern)
        if not found.pairs:
            raise DataError(
                f"{folder}: no pair of images matches the pattern '{pattern}'; the first file is {files[0]}, "
                f"and {{role}} is one of {', '.join(MOVING)} or {', '.join(FIXED)}"
            )
        return found
    tried = [_by_pattern(folder, files, known) for known in PATTERNS]
    # the layout that explains most images wins, as names with a role may also end in a number
    best = max([*tried, _by_series(folder, files, scale)], key=lambda found: len(found.files()))
    if not best.pairs:
        raise DataError(
            f"{folder}: these files match no known layout of image pairs (the first is {files[0]}); "
            "describe it by `pattern`"
        )
    return best


def _repeated(folder: Path, files: list[str], pattern: str | None, scans: Sequence[str]) -> Found:
    """Pair successive scans of each field: first and second, second and third, and so on."""
    patterns = PATTERNS if pattern is None else (pattern,)
    found = [
        [_by_pattern(folder, files, known, ((a.lower(),), (b.lower(),))) for a, b in pairwise(scans)]
        for known in patterns
    ]
    best = max(found, key=lambda parts: sum(len(part.pairs) for part in parts))
    pairs = [
        replace(pair, name=f"{pair.name}/{a}-{b}")
        for part, (a, b) in zip(best, pairwise(scans), strict=True)
        for pair in part.pairs
    ]
    if not pairs:
        raise DataError(
            f"{folder}: no two scans named {' and '.join(scans)} show the same field; the first file is "
            f"{files[0]}; describe the names by `pattern`, with {{role}} for the name of the scan"
        )
    return Found(tuple(pairs), tuple(dict.fromkeys(name for part in best for name in part.alone)))


def _by_pattern(
    folder: Path,
    files: list[str],
    pattern: str,
    roles: tuple[Sequence[str], Sequence[str]] = (MOVING, FIXED),
) -> Found:
    """Match files against a pattern, and pair the two roles of each field."""
    expression = _expression(pattern)
    sides: tuple[dict[tuple[str, str, str], str], ...] = ({}, {})
    for file in files:
        match = expression.fullmatch(file)
        if match is None:
            continue
        parts = match.groupdict()
        role = parts["role"].lower()
        if role in (*roles[0], *roles[1]):
            key = (parts.get("specimen") or "", parts.get("level") or "", parts["field"])
            sides[role in roles[1]][key] = file
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
            f"pattern '{pattern}': it must have {{role}} and {{field}}, once each, and may have {{specimen}} "
            "and "
            "{level}"
        )
    text = re.escape(pattern)
    for name in names:
        text = text.replace(rf"\{{{name}\}}", f"(?P<{name}>[^/]+?)")
    # a TIFF pattern matches all TIFF extensions; the known layouts match other image formats too
    ending = Path(pattern).suffix.lower()
    endings = [*SUFFIXES, *(PICTURES if pattern in PATTERNS else ())] if ending in SUFFIXES else [ending]
    stem = text.removesuffix(re.escape(Path(pattern).suffix))
    return re.compile(f"{stem}(?i:{'|'.join(map(re.escape, endings))})")


def _by_series(folder: Path, files: list[str], scale: int | None) -> Found:
    """Pair images of dwell-time series; the highest number at the highest magnification is clean."""
    fields: dict[str, dict[int, dict[int, str]]] = {}  # field: {magnification: {number: file}}
    for file in files:
        match = SERIES.fullmatch(file.rpartition(".")[0])
        if match:
            magnified = MAGNIFIED.fullmatch(match["stem"])
            field, magnification = (
                (magnified["field"].rstrip("_"), int(magnified["magnification"]))
                if magnified
                else (match["stem"], 0)
            )
            fields.setdefault(field, {}).setdefault(magnification, {})[int(match["number"])] = file
    pairs, alone = [], []
    for field, magnifications in sorted(fields.items()):
        series = magnifications[max(magnifications)]
        clean = series.pop(max(series))
        coarse = magnifications.get(max(magnifications) // 2) if len(magnifications) > 1 else None
        if coarse is not None and scale is None:
            raise DataError(
                f"{folder}: '{field}' was imaged at two magnifications; choose by `scale` of `pairs` which "
                "to "
                "learn from: 1 for denoising, 2 for super-resolution"
            )
        moving = coarse if coarse is not None and scale == 2 else series
        region = field.rpartition("/")[0]
        pairs += [
            Pair(
                folder.joinpath(file).with_suffix("").relative_to(folder).as_posix(),
                region,
                f"dwell_time_{number}",
                folder / file,
                folder / clean,
                wide=moving is coarse,
            )
            for number, file in sorted(moving.items())
        ]
        alone += [] if moving else [clean]
    return Found(tuple(pairs), tuple(alone))
