"""Lengths from the metadata of files, in nanometers; None where unknown.

Conventions
-----------
* Only sizes between `SMALLEST` and `LARGEST` are accepted: smaller ones lack their unit, and larger ones
  refer to printing (72 dots per inch).
* Three ones are a default that programs write if the size is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from emdiffuse.runtime.units import NANOMETERS

SPELLINGS = {
    "picometer": ("pm",),
    "angstrom": ("å", "ångström"),
    "nanometer": ("nm", "nanometre"),
    "micrometer": ("um", "µm", "μm", "micron", "micrometre"),
    "millimeter": ("mm", "millimetre"),
    "centimeter": ("cm", "centimetre"),
    "meter": ("m", "metre"),
}
UNITS = {"inch": 2.54e7} | {
    name + plural: NANOMETERS[unit]
    for unit, others in SPELLINGS.items()
    for name in (unit, *others)
    for plural in ("", "s" if len(name) > 2 else "")
}
"""Units in nanometers, by name in lower case."""
SMALLEST, LARGEST = 0.005, 10_000.0
Size = tuple[float | None, float | None, float | None]
"""Sizes along (z, y, x)."""


def unit_of(text: Any) -> float | None:
    """Return a unit in nanometers, or None for pixels and unknown units."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    plain = str(text).strip().strip("\0").lower().replace("\\u00b5", "µ").replace("\\u00b5m", "µm")
    return UNITS.get(plain)


def believed(nanometers: float | None) -> float | None:
    """Return a plausible pixel size unchanged, otherwise None."""
    if nanometers is None or not math.isfinite(nanometers):
        return None
    return float(nanometers) if SMALLEST <= nanometers <= LARGEST else None


def told(numbers: Sequence[Any], units: Sequence[float | None]) -> Size | None:
    """Return the voxel size (z, y, x) from numbers and their units in nanometers.

    Returns
    -------
    tuple or None
        None if no axis is known.
    """
    try:
        values = [None if number is None else float(number) for number in numbers]
    except (TypeError, ValueError):
        return None
    if len(values) != 3 or all(value in (1.0, None) for value in values):
        return None
    z, y, x = (
        believed(value * unit) if value is not None and unit is not None else None
        for value, unit in zip(values, units, strict=True)
    )
    return None if z is y is x is None else (z, y, x)
