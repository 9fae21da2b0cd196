"""Calibration of intervals that contain the truth, with a statistical guarantee.

Conventions
-----------
* An interval is the restored value plus and minus ``scale`` times the uncertainty (the standard deviation of
  the samples), but at least ``floor``: 1/255 of the range of its slice. Bounds are rounded outwards and
  clipped to the dtype.
* The guarantee is that of risk-controlling prediction sets: with a confidence of 1 - delta over the choice of
  the held-out data, the expected fraction of voxels outside is at most alpha. Bates, Angelopoulos, Lei, Malik
  and Jordan 2021, doi 10.1145/3478535.
* The exchangeable *unit* of the bound is never a voxel: it is an image, if there are enough images for the
  bound, or else a block of some pixels a side, of one image or one gap. Blocks of one field resemble each
  other, so the guarantee then holds for other blocks of similar fields, not for other specimens.
* Without ground truth, a second noisy scan of the same fields may stand in for it: `second_scan`.
* Voxels of real slices, which are copied, do not count. Training data are refused (`comparison`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from math import ceil, exp, log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Calibration
from emdiffuse.config.settings import parse_record
from emdiffuse.evaluation.comparison import Comparison, compare, read
from emdiffuse.evaluation.second_scan import gauss_factor, square_errors, upper_limit
from emdiffuse.restoration.intervals import FLOOR, floors
from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.runtime.outputs import require_free
from emdiffuse.runtime.progress import logger, progress
from emdiffuse.stores.array import Box
from emdiffuse.stores.facts import CalibrationFacts, Coverage
from emdiffuse.stores.provenance import made_by, put_back, write_and_keep

SCALES = np.geomspace(0.01, 1000, 2001)
"""Candidate scales, 0.6 % apart."""
DELTA = 0.1
"""Probability that more voxels than promised lie outside their interval."""
LEVELS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
"""Values of alpha for which the report needs a scale, if there are enough units."""


def hoeffding_bentkus(risk: float, alpha: float, units: int) -> float:
    """Return the p-value of the hypothesis that the true risk is above alpha.

    Parameters
    ----------
    risk : float
        Mean loss of the units, in [0, 1].
    alpha : float
        The risk to rule out.
    units : int
        Number of independent units.

    Returns
    -------
    float
        The smaller of Hoeffding's tight bound, exp(-n h(min(risk, alpha), alpha)) with h the relative
        entropy of two Bernoulli distributions, and Bentkus's, e P(Binomial(n, alpha) <= ceil(n risk)).
    """
    from scipy.special import bdtr, xlogy

    low = min(risk, alpha)
    entropy = float(xlogy(low, low / alpha) + xlogy(1 - low, (1 - low) / (1 - alpha)))
    # subtract 1e-9 so that a sum that is an integer up to rounding is not rounded up
    tail = float(bdtr(ceil(units * risk - 1e-9), units, alpha))
    return min(exp(-units * entropy), exp(1) * tail)


def units_needed(alpha: float, delta: float) -> int:
    """Return the minimum number of units n: without any loss, (1 - alpha)**n must be at most delta."""
    return ceil(log(delta) / log(1 - alpha))


def scale_of(losses: NDArray[np.float64], alpha: float, delta: float) -> float | None:
    """Return the smallest scale whose risk is controlled, or None with too few units.

    Parameters
    ----------
    losses : ndarray
        (units, len(SCALES)): fraction of each unit's voxels outside, decreasing with the scale.
    alpha, delta : float
        Risk, and probability that it is exceeded nevertheless.
    """
    risks = losses.mean(axis=0)
    first = bisect_left(
        range(len(SCALES)),
        True,
        key=lambda i: hoeffding_bentkus(float(risks[i]), alpha, len(losses)) <= delta,
    )
    return float(SCALES[first]) if first < len(SCALES) else None


def losses_of(ratios: NDArray[Any]) -> NDArray[np.float64]:
    """Return the fraction of a unit's voxels outside at every scale, from error divided by uncertainty."""
    inside = np.searchsorted(np.sort(ratios, axis=None), SCALES, side="right")
    return 1 - inside / ratios.size


def calibrate(
    restored: Path,
    dataset: Path,
    truth: Path,
    out: Path,
    settings: Calibration,
    second_scan: bool = False,
) -> CalibrationFacts:
    """Calibrate the scale of the intervals of a model and sampler on held-out data.

    Parameters
    ----------
    restored : Path
        Restored volume or images, with uncertainty.
    dataset, truth : Path
        Registered input, and registered ground truth.
    out : Path
        JSON file to write.
    settings : Calibration
        alpha and the side of a block.
    second_scan : bool
        Whether `truth` is a second noisy scan of the same fields; `evaluation.second_scan` states the
        assumptions.

    Raises
    ------
    DataError
        If the model was trained on these data, there is no uncertainty, or there are too few units.
    """
    require_free(out, [restored, dataset, truth], overwrite=None)
    found = compare(restored, dataset, truth)
    if "uncertainty" not in found.extras:
        raise DataError(f"{restored}: no uncertainty to calibrate; restore with `samples` of 2 or more")
    facts = found.restored.restoration
    if facts.sampler is None or facts.weights is None:
        raise DataError(
            f"{restored}: its metadata do not state how it was restored; run the stage `plan` again", restored
        )
    inputs = [volume.made for volume in (found.restored, found.input, found.truth)]
    how = {**settings.model_dump(exclude={"dataset"}), **({"second_scan": True} if second_scan else {})}
    made = made_by("calibrate", facts.dataset or "", how, *inputs)
    if kept := put_back(out, made, **found.names()):
        logger.info("%s: already calibrated on the same data; nothing to do", out)
        return parse_record(CalibrationFacts, kept, out, StoreError)
    needed = units_needed(settings.alpha, DELTA)
    whole = found.images and found.shape[0] >= needed
    boxes = list(units_of(found, None if whole else settings.block))
    if len(boxes) < needed:
        raise DataError(
            f"{restored}: {len(boxes)} blocks are too few to calibrate on, alpha {settings.alpha:g} and "
            f"delta {DELTA:g} need {needed}; take more data, or a smaller `block`"
        )
    by = _by_second_scan if second_scan else _by_truth
    scales = by(found, boxes, settings)
    if scales["scale"] is None:
        raise DataError(
            f"{restored}: even intervals of {SCALES[-1]:g} times the uncertainty miss too much of the truth; "
            "are these the same fields?"
        )
    result = CalibrationFacts(
        **found.names(),
        made=made,
        **scales,
        floor=FLOOR,
        alpha=settings.alpha,
        delta=DELTA,
        unit="image" if whole else f"block of {settings.block} x {settings.block} pixels",
        units=len(boxes),
        sampler=facts.sampler,
        weights=facts.weights,
        sources=facts.sources,
    )
    write_and_keep(out, result.as_json())
    logger.info("%s: intervals of %.3g standard deviations, from %d units", out, result.scale, len(boxes))
    return result


def _by_truth(found: Comparison, boxes: list[Box], settings: Calibration) -> dict[str, Any]:
    """Return the scale, its risk, and the scales of other levels, from ground truth."""
    rows = [losses_of(ratios(found, box)) for box in progress(boxes, len(boxes), "calibrate", "unit")]
    losses = np.stack(rows)
    scale = scale_of(losses, settings.alpha, DELTA)
    known: dict[str, Any] = (
        {} if scale is None else {"risk": float(losses.mean(axis=0)[np.searchsorted(SCALES, scale)])}
    )
    levels = [Coverage(alpha=alpha, scale=scale_of(losses, alpha, DELTA)) for alpha in LEVELS]
    return {"scale": scale, "levels": tuple(levels), **known}


def _by_second_scan(found: Comparison, boxes: list[Box], settings: Calibration) -> dict[str, Any]:
    """Return the scale, and the scales of other levels, from a second noisy scan."""
    errors, noise = square_errors(found, boxes)
    rms = max(upper_limit(errors, DELTA), 0.0) ** 0.5
    levels = [Coverage(alpha=alpha, scale=max(rms * gauss_factor(alpha), SCALES[0])) for alpha in LEVELS]
    scale = max(rms * gauss_factor(settings.alpha), float(SCALES[0]))
    return {
        "scale": scale if scale <= SCALES[-1] else None,
        "levels": tuple(levels),
        "noise": noise,
    }


def units_of(found: Comparison, side: int | None, most: int | None = None) -> Iterator[Box]:
    """Yield the units: images or gaps, divided into blocks of about `side` pixels unless that is None.

    Of more than `most` units, `most` are drawn, always the same.
    """
    cuts = []
    for length in found.shape[1:]:
        parts = max(round(length / side), 1) if side else 1
        cuts.append([slice(length * i // parts, length * (i + 1) // parts) for i in range(parts)])
    gaps = [zs for gap in range(found.grid.gaps) if (zs := found.grid.generated(gap))]
    rows, columns = (len(cut) for cut in cuts)
    numbers = np.arange(len(gaps) * rows * columns)
    if most is not None and len(numbers) > most:
        numbers = np.sort(np.random.default_rng(0).choice(numbers, most, replace=False))
    for number in numbers.tolist():
        zs = gaps[number // (rows * columns)]
        yield (slice(zs.start, zs.stop), cuts[0][number // columns % rows], cuts[1][number % columns])


def ratios(found: Comparison, box: Box) -> NDArray[np.float32]:
    """Return the error of every voxel divided by its uncertainty, which is at least the floor."""
    floor = floors(found.restored.intensity.at(range(box[0].start, box[0].stop)))
    error = read(found.restored, box).astype(np.float32) - read(found.truth, box)
    return np.abs(error) / np.maximum(read(found.extras["uncertainty"], box), floor)
