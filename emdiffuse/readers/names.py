"""Sort the files of a folder by slice number, from the numbers in their names.

Conventions
-----------
* Hidden files (``._1.tif`` from macOS), and the case of extensions, are ignored.
* Names contain several numbers: date, time, depth, magnification. The slice number differs from file to file
  and rises in equal steps; if two numbers do so in different orders, the user marks the slice number with
  ``{z}`` in the source.
* Nothing here reads a file or imports a numerical library, because the workflow lists files too.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

from emdiffuse.config.sources import ENDINGS, NUMBER, PACKED
from emdiffuse.runtime.errors import DataError

_DIGITS = re.compile(r"(\d+)")
Numbered = dict[Path, int]
logger = logging.getLogger(__name__)


def in_order(
    source: str, files: Sequence[Path], repair: bool = False, step: int | None = None, images: bool = False
) -> list[Path | None]:
    """Sort files by slice number; None stands for a missing slice.

    Parameters
    ----------
    source : str
        Name of the data, for messages.
    files : sequence of Path
        The files.
    repair : bool
        Whether a slice may be missing.
    step : int, optional
        Difference of neighbouring slice numbers; detected by default.
    images : bool
        Whether these are separate images, which need no numbers.

    Raises
    ------
    DataError
        If names differ in more than numbers, the slice number is ambiguous, a slice is missing, or two files
        have the same number.
    """
    if images:
        ordered = sorted(files, key=_natural)
        return [*ordered]
    marked = NUMBER in source and not Path(source).exists()
    numbers = _marked(source, files) if marked else _counting(source, files)
    by_number: dict[int, list[Path]] = defaultdict(list)
    for file, number in numbers.items():
        by_number[number].append(file)
    for number, same in by_number.items():
        if len(same) > 1:
            raise DataError(
                f"{source}: '{same[0].name}' and '{same[1].name}' have the same number {number}; keep "
                "one, or "
                "select one stack with a pattern such as 'ch0_*.tif'"
            )
    present = sorted(by_number)
    width = step or _step(present)
    odd = next((n for n in present if (n - present[0]) % width), None)
    if odd is not None:
        raise DataError(
            f"{source}: the numbers rise by {width}, but '{by_number[odd][0].name}' is not among "
            "them; correct "
            "`step`, or the name"
        )
    wanted = range(present[0], present[-1] + 1, width)
    absent = (present[-1] - present[0]) // width + 1 - len(present)
    if absent and (not repair or absent > len(present)):
        first = islice((n for n in wanted if n not in by_number), 5)  # there may be billions
        shown = ", ".join(map(str, first)) + (f" and {absent - 5} more" if absent > 5 else "")
        raise DataError(
            f"{source}: slices are missing between '{by_number[present[0]][0].name}' and "
            f"'{by_number[present[-1]][0].name}': number {shown}; add them, renumber the files"
            + (": more are missing than exist" if repair else ", or set `repair: true`")
        )
    if width > 1:
        logger.info("%s: slice numbers rise in steps of %d", source, width)
    return [by_number[n][0] if n in by_number else None for n in wanted]


def _natural(file: Path) -> list[tuple[int, str]]:
    """Return a natural sort key: image 2 before image 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in _DIGITS.split(file.name)]


def _marked(source: str, files: Sequence[Path]) -> Numbered:
    """Return the number of each file at the user's ``{z}``."""
    pattern = re.escape(Path(source).name)
    for mark, expression in ((r"\*", ".*"), (r"\?", "."), (re.escape(NUMBER), r"(?P<z>\d+)")):
        pattern = pattern.replace(mark, expression)
    found = {file: re.fullmatch(pattern, file.name) for file in files}
    numbers = {file: int(match["z"]) for file, match in found.items() if match}
    if not numbers:
        raise DataError(f"{source}: no name has a number where {NUMBER} stands; correct the pattern")
    return numbers


def _counting(source: str, files: Sequence[Path]) -> Numbered:
    """Return the slice number of each file."""
    names = {file: _parts(file) for file in files}
    _check_alike(source, names)
    signs = {file: [text.endswith("-") for text in parts[::2]] for file, parts in names.items()}
    first = names[files[0]]
    columns = []
    for i in range(1, len(first), 2):
        signed = len({sign[i // 2] for sign in signs.values()}) > 1  # -5deg.tif and 5deg.tif
        columns.append(
            [int(parts[i]) * (-1 if signed and signs[file][i // 2] else 1) for file, parts in names.items()]
        )
    if not columns:
        return dict.fromkeys(files, 0)
    distinct = [column for column in columns if len(set(column)) == len(column)]
    even = [column for column in distinct if len(_steps(column)) == 1 or len(column) == 2]
    nearly = even or [column for column in distinct if _gaps(column) <= len(column)]
    candidates = [c for c in nearly if 1 in _steps(c)] or nearly
    if not candidates:
        varying = [column for column in columns if len(set(column)) > 1]
        candidates = [distinct[-1] if distinct else (varying or columns)[-1]]
    orders = {tuple(sorted(range(len(column)), key=column.__getitem__)) for column in candidates}
    if len(orders) > 1:
        raise DataError(
            f"{source}: the names contain several numbers that rise, in different orders (such as "
            f"'{files[0].name}' and '{files[1].name}'); write {{z}} for the slice number, such as "
            f"'{_example(files[0])}'"
        )
    return dict(zip(names, candidates[0], strict=True))


def _parts(file: Path) -> list[str]:
    stem = file.name
    while (suffix := Path(stem).suffix.lower()) and (suffix in ENDINGS or suffix in PACKED):
        stem = Path(stem).stem
    return _DIGITS.split(stem)


def _check_alike(source: str, names: dict[Path, list[str]]) -> None:
    """Refuse names that differ in more than numbers and their signs."""
    forms = {file: tuple(text.rstrip("-") for text in parts[::2]) for file, parts in names.items()}
    usual, count = Counter(forms.values()).most_common(1)[0]
    odd = next((file for file, form in forms.items() if form != usual), None)
    if odd is None:
        return
    other = next(file for file, form in forms.items() if form == usual)
    first, second = (other, odd) if count > 1 else sorted((other, odd))
    raise DataError(
        f"{source}: '{first.name}' and '{second.name}' are not numbered alike; keep one stack per "
        "folder, or select it with a pattern such as 'slice_*.tif'; if these are separate images, set "
        "`images: true`"
    )


def _steps(column: Sequence[int]) -> set[int]:
    values = sorted(column)
    return {b - a for a, b in pairwise(values)}


def _step(values: Sequence[int]) -> int:
    """Return the step of sorted numbers: the common one, the most frequent one, or 1."""
    steps = Counter(b - a for a, b in pairwise(values))
    if not steps:
        return 1
    smallest = min(steps)
    few = len(values) < 3  # two numbers do not define a step
    regular = all(step % smallest == 0 for step in steps) and 2 * steps[smallest] >= sum(steps.values())
    return smallest if regular and not few else 1


def _gaps(column: Sequence[int]) -> int:
    """Return how many numbers are missing in a column."""
    values = sorted(column)
    return (values[-1] - values[0]) // _step(values) + 1 - len(values)


def _example(file: Path) -> str:
    return _DIGITS.sub(NUMBER, file.name, count=1)
