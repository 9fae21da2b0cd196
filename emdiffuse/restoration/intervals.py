"""The interval of every voxel, calibrated on other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Sampler
from emdiffuse.config.settings import parse_record
from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.stores.facts import CalibrationFacts
from emdiffuse.stores.intensity import Scaling
from emdiffuse.stores.provenance import SourceFile

FLOOR = 1 / 255
"""Lower limit of the uncertainty, as a fraction of the range of a slice."""


def interval(
    restored: NDArray[Any], uncertainty: NDArray[Any], scale: float, floor: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the bounds of the interval of every voxel, in the dtype of the restored values.

    Parameters
    ----------
    restored, uncertainty : ndarray
        Restored values and their uncertainty, of the same shape, in intensities.
    scale : float
        Number of standard deviations on each side.
    floor : ndarray
        Lower limit of the uncertainty (`floors`), broadcastable to their shape.
    """
    reach = np.float32(scale) * np.maximum(uncertainty, floor)
    lower, upper = restored - reach, restored + reach
    if restored.dtype.kind == "f":
        return lower.astype(restored.dtype), upper.astype(restored.dtype)
    limits = np.iinfo(restored.dtype)
    low, high = (np.clip(v, limits.min, limits.max) for v in (np.floor(lower), np.ceil(upper)))
    return low.astype(restored.dtype), high.astype(restored.dtype)


def floors(scaling: Scaling) -> NDArray[np.float32]:
    """Return the lower limit of the uncertainty of restored slices, in intensities: (z, 1, 1)."""
    return (scaling.span * FLOOR).astype(np.float32)


def read_calibration(
    path: Path, weights: str, sampler: Sampler, sources: Sequence[SourceFile]
) -> CalibrationFacts:
    """Read a calibration, and check that it matches the weights and sampler of a plan.

    Raises
    ------
    StoreError
        If it is missing, or was made with other weights or another sampler.
    DataError
        If the calibration data are the data to be restored.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: there is no calibration; run the stage `calibrate`", path) from None
    found = parse_record(CalibrationFacts, text, path, StoreError, "run the stage `calibrate` again")
    if (found.weights, found.sampler.model_copy(update={"seed": sampler.seed})) != (weights, sampler):
        raise StoreError(
            f"{path}: made with other weights or another sampler than this restoration; run the stage "
            "`calibrate` again, with the same sampler",
            path,
        )
    if {file.sha256 for file in found.sources} & {file.sha256 for file in sources}:
        raise DataError(f"{path}: computed on the data being restored; calibrate on other data", path)
    return found
