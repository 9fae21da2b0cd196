"""Calibration without a truth: a second noisy scan of the same fields stands in for it.

Conventions
-----------
* First and second scan are y1 = c + n1 and y2 = c + n2, of the clean image c; what is restored, r, follows
  from y1 alone. Assumed is that
  1. n2 has a mean of 0 and is independent of the first scan;
  2. both scans are as noisy, wherever they show the same intensity;
  3. the error c - r, in units of the uncertainty u, is unimodal about 0: small errors are more frequent than
     large ones.
  Where the scans are not aligned or differ in brightness, the error is overestimated: intervals are too wide,
  not too narrow.
* By 1 and 2 the mean of ``(y2 - r)**2 - s**2`` is that of the squared error to the clean image, with ``s**2``
  half the mean of ``(y1 - y2)**2``. That is so whatever the distributions, and also where noise is much
  larger than the error, where no share of voxels outside of an interval could be counted.
* The noise follows the intensity: ``s**2`` is measured at each of `LEVELS` intensities of the restored image
  over all data, and its level for each unit (`calibration.units_of`).
* The upper confidence limit of the mean over the units is Student's. From the mean square follows how wide an
  interval must be by the inequality of Gauss (1823): of a unimodal error, a share alpha at most lies beyond
  ``2 / (3 sqrt(alpha))`` times its root mean square, 2.11 for a tenth. A Gaussian error would need 1.64:
  intervals from a second scan are wider than those from a truth, and hold more than they promise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.comparison import Comparison, read
from emdiffuse.restoration.intervals import floors
from emdiffuse.stores.array import Box
from emdiffuse.stores.intensity import to_unit

LEVELS = 16
"""Intensities at which the variance of the noise is measured."""
FEW = 500
"""Voxels of an intensity below which the variance of all is taken."""


def gauss_factor(alpha: float) -> float:
    """Return how many root mean squares a unimodal error passes with a chance of `alpha` at most (Gauss)."""
    return float(2 / (3 * np.sqrt(alpha)) if alpha <= 1 / 3 else np.sqrt(3) * (1 - alpha))


def upper_limit(values: NDArray[np.float64], delta: float) -> float:
    """Return the limit that the mean of the units' population passes with a chance of `delta` (Student)."""
    from scipy.stats import t

    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean() + t.ppf(1 - delta, len(values) - 1) * error)


def square_errors(found: Comparison, boxes: Sequence[Box]) -> tuple[NDArray[np.float64], float]:
    """Estimate the squared error to the clean image of each unit, in units of its squared uncertainty.

    Parameters
    ----------
    found : Comparison
        Restored from the first scan (`input`), with the second scan as `truth`.
    boxes : sequence of Box
        The units.

    Returns
    -------
    tuple
        (units,), which noise may make negative; and the standard deviation of the noise, in intensities.
    """
    variances, deviation = _noise(found, boxes)
    errors = []
    for box in boxes:
        first, second, restored, level = _at(found, box)
        floor = floors(found.restored.intensity.at(range(box[0].start, box[0].stop)))
        uncertainty = np.maximum(read(found.extras["uncertainty"], box), floor)
        expected = variances[level]
        own = float((0.5 * (first - second) ** 2).mean() / max(expected.mean(), 1e-12))
        errors.append(float((((second - restored) ** 2 - own * expected) / uncertainty**2).mean()))
    return np.array(errors), deviation


def _noise(found: Comparison, boxes: Sequence[Box]) -> tuple[NDArray[np.float64], float]:
    """Return the variance of the noise at each intensity, and the standard deviation over all."""
    sums, counts = np.zeros(LEVELS), np.zeros(LEVELS)
    for box in boxes:
        first, second, _, level = _at(found, box)
        sums += np.bincount(level.ravel(), 0.5 * (first - second).ravel() ** 2, LEVELS)
        counts += np.bincount(level.ravel(), minlength=LEVELS)
    whole = sums.sum() / counts.sum()
    return np.where(counts >= FEW, sums / np.maximum(counts, 1), whole), float(np.sqrt(whole))


def _at(found: Comparison, box: Box) -> tuple[NDArray[np.float64], ...]:
    """Return both scans and what was restored in a box, and the level of its intensity, 0 to `LEVELS` - 1."""
    first, second, restored = (
        read(volume, box).astype(np.float64) for volume in (found.input, found.truth, found.restored)
    )
    scaling = found.restored.intensity.at(range(box[0].start, box[0].stop))
    unit = np.clip(to_unit(restored, scaling), -1, 1)
    return first, second, restored, np.minimum(((unit + 1) / 2 * LEVELS).astype(int), LEVELS - 1)
