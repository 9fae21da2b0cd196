"""Calibration without ground truth, from a second noisy scan of the same fields.

Conventions
-----------
* The first and second scan are y1 = c + n1 and y2 = c + n2, where c is the clean image; the restored image r
  depends only on y1. Three assumptions are made:
  1. n2 has zero mean and is independent of the first scan;
  2. both scans are equally noisy at equal intensity;
  3. the error c - r, in units of the uncertainty u, is unimodal about 0: small errors are more frequent than
     large ones.
  If the scans are misaligned or differ in brightness, the error is overestimated: intervals are too wide,
  not too narrow.
* By 1 and 2 the mean of ``(y2 - r)**2 - s**2`` equals the mean squared error against the clean image, with
  ``s**2`` half the mean of ``(y1 - y2)**2``. This holds for any distribution, even if the noise is much
  larger than the error, where voxels outside an interval could not be counted.
* The noise depends on intensity: ``s**2`` is measured at each of `LEVELS` intensities of the restored image
  over all data, and its level for each unit (`calibration.units_of`).
* The upper confidence limit of the mean over the units is Student's. The width of an interval follows from
  the mean square by the inequality of Gauss (1823): at most a fraction alpha of a unimodal error is beyond
  ``2 / (3 sqrt(alpha))`` times its root mean square, 2.11 for a tenth. A Gaussian error would need 1.64:
  intervals from a second scan are wider than those from ground truth, and contain more than they promise.
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
"""Number of intensities at which the noise variance is measured."""
FEW = 500
"""Minimum number of voxels of an intensity; below it, the variance of all voxels is used."""


def gauss_factor(alpha: float) -> float:
    """Return the multiple of its RMS that a unimodal error exceeds with at most probability `alpha`."""
    return float(2 / (3 * np.sqrt(alpha)) if alpha <= 1 / 3 else np.sqrt(3) * (1 - alpha))


def upper_limit(values: NDArray[np.float64], delta: float) -> float:
    """Return the upper limit that the population mean exceeds with probability `delta` (Student)."""
    from scipy.stats import t

    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean() + t.ppf(1 - delta, len(values) - 1) * error)


def square_errors(found: Comparison, boxes: Sequence[Box]) -> tuple[NDArray[np.float64], float]:
    """Estimate each unit's squared error against the clean image, in units of its squared uncertainty.

    Parameters
    ----------
    found : Comparison
        Restoration of the first scan (`input`), with the second scan as `truth`.
    boxes : sequence of Box
        The units.

    Returns
    -------
    tuple
        Errors (units,), which noise may make negative; and the standard deviation of the noise, in
        intensities.
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
    """Return the noise variance at each intensity, and the standard deviation over all voxels."""
    sums, counts = np.zeros(LEVELS), np.zeros(LEVELS)
    for box in boxes:
        first, second, _, level = _at(found, box)
        sums += np.bincount(level.ravel(), 0.5 * (first - second).ravel() ** 2, LEVELS)
        counts += np.bincount(level.ravel(), minlength=LEVELS)
    whole = sums.sum() / counts.sum()
    return np.where(counts >= FEW, sums / np.maximum(counts, 1), whole), float(np.sqrt(whole))


def _at(found: Comparison, box: Box) -> tuple[NDArray[np.float64], ...]:
    """Return both scans and the restoration in a box, and the level of its intensity, 0 to `LEVELS` - 1."""
    first, second, restored = (
        read(volume, box).astype(np.float64) for volume in (found.input, found.truth, found.restored)
    )
    scaling = found.restored.intensity.at(range(box[0].start, box[0].stop))
    unit = np.clip(to_unit(restored, scaling), -1, 1)
    return first, second, restored, np.minimum(((unit + 1) / 2 * LEVELS).astype(int), LEVELS - 1)
