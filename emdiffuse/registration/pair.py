"""Register two images of one field: a coarse homography, then flow tile by tile, then a single warp.

Conventions
-----------
* See `warping`. Both images have the same magnification; the result has the pixels of the fixed one.
* The maps are composed before warping, so that the image is interpolated (cubic) only once::

      fixed pixel p --flow of RAFT, refined--> --homography of the tile--> --homography of the image--> moving

* Tiles overlap; their maps are blended with weights that fall towards the edges. A tile whose flow cannot be
  trusted is dropped, with a reason. Pixels that no tile covers, or where forward and backward flow disagree,
  are masked.
* A pair that is already aligned, within the accuracy of this method, stays identical to the bit. The global
  shift is known better than local displacements: if these are too small to measure, only the shift is
  corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.registration.homography import Coarse, homography_of, shift_of
from emdiffuse.registration.phase import correlate, peak, spectra
from emdiffuse.registration.refinement import refined
from emdiffuse.registration.warping import (
    Image,
    Map,
    Matrix,
    composed,
    correlation,
    identity,
    inside,
    mapped,
    smoothed,
    translation,
    warp,
)
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.intensity import cast_to

if TYPE_CHECKING:
    from emdiffuse.registration.raft import Flow

SIGMA = 1.5
"""Width of the Gaussian before cross-correlation, in pixels, so that it compares structure, not noise."""
TILE, OVERLAP = 384, 96
REACH = 60.0
"""Largest distance of matched features from their place by the shift, in pixels."""
TILE_REACH = 15.0
MAGNIFICATION = 1.2
"""Largest factor between magnifications that is attributed to the microscope's inaccuracy."""
LEAST_OVERLAP = 0.25
"""Fraction of the fixed image that the moving one must cover."""
WORST_DISAGREEMENT = 1.5
"""Largest median disagreement of forward and backward flow in a trusted tile, in pixels."""
DISAGREEMENT = 2.0
"""Disagreement of forward and backward flow above which a pixel is masked, in pixels."""
ACCURACY = 4.0
"""Displacements caused by noise alone are at most this multiple of the forward-backward disagreement."""
GAIN = 2e-4
"""Smallest significant increase of the correlation."""
LEAST_SHIFT = 0.05
"""Smallest global shift that is corrected, in pixels."""


class NotRegistered(DataError):
    """Raised if a pair cannot be registered; the message is the reason, without the pair's name."""


@dataclass(frozen=True)
class Limits:
    """Limits beyond which a pair is refused, or left unchanged.

    Attributes
    ----------
    correlation : float
        Smallest correlation after registration.
    rejected : float
        Largest fraction of pixels that may be masked.
    aligned : float
        Displacement (95th percentile) below which a pair stays unchanged, in pixels; or `ACCURACY` times the
        disagreement of forward and backward flow, if noise makes that larger.
    """

    correlation: float = 0.3
    rejected: float = 0.5
    aligned: float = 0.4


@dataclass
class Registered:
    """A registered pair.

    Attributes
    ----------
    moving : ndarray
        The warped moving image, on the pixels of the fixed one, in its original type.
    mask : ndarray of bool
        Where both images show the field.
    displacement : ndarray
        The map minus the identity: float32 (2, y, x), in pixels.
    quality : dict
        `ncc` (before, homography, after), `forward_backward`, `displacement` (median, percentile_95),
        `rejected`, `tiles`, `inliers`, `magnification`, `changed`.
    """

    moving: NDArray[Any]
    mask: NDArray[np.bool_]
    displacement: Map
    quality: dict[str, Any]


def register_pair(
    fixed: NDArray[Any], moving: NDArray[Any], flow: Flow | None, limits: Limits = Limits()
) -> Registered:
    """Register a moving image to a fixed one.

    Parameters
    ----------
    fixed, moving : ndarray
        (y, x), of any type and range, at the same magnification; sizes may differ slightly.
    flow : Flow, optional
        RAFT; without it only the homography is used.
    limits : Limits
        When to refuse the pair.

    Raises
    ------
    NotRegistered
        If they do not show the same field, or overlap too little; the message states the reason.
    """
    target, source = _checked(fixed, "fixed"), _checked(moving, "moving")
    places = identity(target.shape)
    ncc = {"before": _correlation(target, source, places)}
    coarse = coarse_homography(target, source)
    scaled = coarse.magnification(target.shape)
    ncc["homography"] = _correlation(target, source, mapped(coarse.matrix, places))
    if coarse.inliers and not 1 / MAGNIFICATION <= scaled <= MAGNIFICATION:
        raise NotRegistered(
            f"the images differ in magnification by a factor of {max(scaled, 1 / scaled):.2f}"
        )
    if ncc["homography"] < limits.correlation:
        raise NotRegistered(
            f"the images do not show the same field (correlation at most {ncc['homography']:.2f})"
        )
    final, covered, facts = _by_tiles(target, source, coarse, flow)
    if not covered.any():
        raise NotRegistered(f"no part can be registered ({_reasons(facts['tiles'])})")
    ncc["after"] = _correlation(target, source, final, covered)
    if ncc["after"] < ncc["homography"]:
        final, covered = mapped(coarse.matrix, places), np.ones(target.shape, np.bool_)
        ncc["after"] = ncc["homography"]
    mask = covered & inside(final, source.shape)
    facts |= {
        "ncc": ncc,
        **_extent(final - places, mask),
        "inliers": coarse.inliers,
        "magnification": scaled,
    }
    measurable = max(limits.aligned, ACCURACY * (facts["forward_backward"] or 0))
    still = facts["displacement"]["percentile_95"] < measurable or ncc["after"] < ncc["before"] + GAIN
    if still and target.shape == source.shape:
        shift = (final - places)[:, mask].mean(1) if mask.any() else np.zeros(2)
        final = places + shift.astype(np.float32)[:, None, None]
        ncc["after"] = _correlation(target, source, final)
        if np.hypot(*shift) < LEAST_SHIFT or ncc["after"] < ncc["before"]:
            facts |= {"changed": False, "rejected": 0.0, "ncc": {**ncc, "after": ncc["before"]}}
            return Registered(moving.copy(), np.ones(target.shape, np.bool_), np.zeros_like(places), facts)
        mask = inside(final, source.shape)
        facts |= _extent(final - places, mask)
    if facts["rejected"] > limits.rejected:
        raise NotRegistered(
            f"{facts['rejected']:.0%} of the pixels cannot be registered ({_reasons(facts['tiles'])})"
        )
    return Registered(
        cast_to(warp(source, final), moving.dtype), mask, final - places, {**facts, "changed": True}
    )


def _extent(displacement: Map, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return how far a map moves pixels, and the fraction that is masked."""
    sizes = np.hypot(*displacement)[mask] if mask.any() else np.zeros(1)
    median, most = (float(np.percentile(sizes, share)) for share in (50, 95))
    return {
        "displacement": {"median": median, "percentile_95": most},
        "rejected": float(1 - mask.mean()),
    }


def check_pair(
    fixed: NDArray[Any], moving: NDArray[Any], tolerance: float, least_correlation: float
) -> Registered:
    """Measure shift and correlation of a pair, without changing it.

    Parameters
    ----------
    fixed, moving : ndarray
        (y, x), at the same magnification.
    tolerance : float
        Largest shift, in pixels.
    least_correlation : float
        Pairs that correlate less show different fields.

    Raises
    ------
    NotRegistered
        If the images are shifted, or do not show the same field.
    """
    box = tuple(slice(0, min(a, b)) for a, b in zip(fixed.shape, moving.shape, strict=True))
    target, source = (_checked(image[box], name) for name, image in (("fixed", fixed), ("moving", moving)))
    places = identity(target.shape)
    ncc = _correlation(target, source, places)
    distance = float(np.hypot(*peak(correlate(spectra(target), spectra(source)).sum(0))))
    if ncc < least_correlation:
        raise NotRegistered(f"the images do not show the same field (correlation {ncc:.2f})")
    if distance > tolerance:
        raise NotRegistered(
            f"the images are shifted by {distance:.1f} pixels, more than `alignment.tolerance`"
        )
    sizes = {"median": distance, "percentile_95": distance}
    facts = {"ncc": {"before": ncc, "after": ncc}, "displacement": sizes, "rejected": 0.0, "changed": False}
    return Registered(moving, np.ones(fixed.shape, np.bool_), np.zeros_like(identity(fixed.shape)), facts)


def _checked(image: NDArray[Any], name: str) -> Image:
    """Return an image as float32.

    Raises
    ------
    NotRegistered
        If the image is blank.
    """
    values = image.astype(np.float32)
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        raise NotRegistered(f"the {name} image is blank, or not finite")
    return values


def _reasons(tiles: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count} tile(s): {reason}" for reason, count in tiles["dropped"].items())
    return dropped or "too little overlap"


def _correlation(fixed: Image, moving: Image, places: Map, valid: NDArray[np.bool_] | None = None) -> float:
    """Return the correlation of the smoothed images where they overlap; 0 if the overlap is too small."""
    known = inside(places, moving.shape)
    if valid is not None:
        known &= valid
    if known.mean() < LEAST_OVERLAP:
        return 0.0
    return correlation(smoothed(fixed, SIGMA), smoothed(warp(moving, places), SIGMA), known)


def coarse_homography(fixed: Image, moving: Image) -> Coarse:
    """Return the best of no movement, the shift, and the homography near the shift or anywhere."""
    places = identity(fixed.shape)
    shift = translation(shift_of(fixed, moving))
    candidates = [Coarse(np.eye(3), 0), Coarse(shift, 0)]
    near = homography_of(fixed, moving, shift, REACH)
    candidates += [found for found in (near or homography_of(fixed, moving),) if found]
    scores = [_correlation(fixed, moving, mapped(found.matrix, places)) for found in candidates]
    return candidates[int(np.argmax(scores))]


def _by_tiles(
    fixed: Image, moving: Image, coarse: Coarse, flow: Flow | None
) -> tuple[Map, NDArray[np.bool_], dict[str, Any]]:
    """Return the map, the mask of trusted pixels, and counts of tiles."""
    places = mapped(coarse.matrix, identity(fixed.shape))
    facts: dict[str, Any]
    if flow is None:
        facts = {"forward_backward": None, "tiles": {"count": 0, "dropped": {}}}
        return places, np.ones(fixed.shape, np.bool_), facts
    moved, total, disagreement = (np.zeros(shape) for shape in (places.shape, fixed.shape, fixed.shape))
    dropped: Counter[str] = Counter()
    boxes = list(_tiles(fixed.shape))
    for box in boxes:
        try:
            own, apart = _tile(fixed[box], moving, coarse.matrix @ translation(_corner(box)), flow)
        except NotRegistered as error:
            dropped[str(error)] += 1
            continue
        weight = _weight(apart.shape)
        moved[:, *box] += weight * (own - places[:, *box])
        disagreement[box] += weight * apart
        total[box] += weight
    covered = total > 0
    total = np.where(covered, total, 1)
    disagreement /= total
    facts = {
        "forward_backward": float(np.median(disagreement[covered])) if covered.any() else None,
        "tiles": {"count": len(boxes), "dropped": dict(dropped)},
    }
    final = (places + moved / total).astype(np.float32)
    return final, covered & (disagreement <= DISAGREEMENT), facts


def _corner(box: tuple[slice, slice]) -> NDArray[np.float64]:
    return np.array([part.start for part in box], np.float64)


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Yield evenly spaced boxes that cover an image."""
    starts = []
    for n in shape:
        count = max(-(-(n - OVERLAP) // (TILE - OVERLAP)), 1)
        starts.append(np.linspace(0, max(n - TILE, 0), count).round().astype(int).tolist())
    for y in starts[0]:
        for x in starts[1]:
            yield slice(y, min(y + TILE, shape[0])), slice(x, min(x + TILE, shape[1]))


def _weight(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return weights that rise from the edges of a tile over half of the overlap."""
    ramps = [np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]) + 1.0, OVERLAP / 2) for n in shape]
    return np.outer(*ramps)


def _tile(fixed: Image, moving: Image, matrix: Matrix, flow: Flow) -> tuple[Map, Image]:
    """Return the map of a tile, and the disagreement of forward and backward flow at each pixel.

    Parameters
    ----------
    fixed, moving : ndarray
        A tile of the fixed image, and the whole moving image.
    matrix : ndarray
        Homography from the pixels of the tile to the moving image.
    flow : Flow
        RAFT.

    Raises
    ------
    NotRegistered
        If the tile cannot be registered, with the reason.
    """
    places = identity(fixed.shape)
    shown = inside(mapped(matrix, places), moving.shape)
    if shown.mean() < LEAST_OVERLAP:
        raise NotRegistered("outside the moving image")
    matrix, before = _with_own_homography(fixed, moving, matrix)
    seen = warp(moving, mapped(matrix, places))
    if min(np.ptp(fixed), np.ptp(seen)) == 0:
        raise NotRegistered("blank")
    forward = refined(fixed, seen, flow(fixed, seen))
    backward = refined(seen, fixed, flow(seen, fixed))
    there = places + forward
    apart = np.where(shown, np.hypot(*(forward + composed(there, backward))), 0).astype(np.float32)
    if np.median(apart[shown]) > WORST_DISAGREEMENT:
        raise NotRegistered("forward and backward flow disagree")
    own = mapped(matrix, there)
    if _correlation(fixed, moving, own) < before - GAIN:
        raise NotRegistered("the flow does not make the images more similar")
    return own, apart


def _with_own_homography(fixed: Image, moving: Image, matrix: Matrix) -> tuple[Matrix, float]:
    """Return the better of the given and the tile's own homography, and the correlation with it."""
    places = identity(fixed.shape)
    score = _correlation(fixed, moving, mapped(matrix, places))
    local = homography_of(fixed, warp(moving, mapped(matrix, places)), np.eye(3), TILE_REACH)
    if local is not None:
        refitted = matrix @ local.matrix
        better = _correlation(fixed, moving, mapped(refitted, places))
        if better > score + GAIN:
            return refitted, better
    return matrix, score
