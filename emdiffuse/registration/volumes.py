"""Measure and judge the alignment of a volume's slices.

Conventions
-----------
* Axes are (z, y, x). Shifts are (y, x) in pixels: the movement of tissue from a slice to the next.
* Tissue moves between slices even if they are aligned: an oblique process shifts by as much as the slice
  spacing. In a misaligned slice, however, *all* tissue is off the straight line between the slices before and
  after it. So each patch of a slice is correlated with both neighbours, and the *jitter* j of the slice is
  the common offset with which the movements v of the patches fit best::

      slice k - 1    o                      sum over patches of
      slice k           o <- v + j              max over v of  c1(v + j) + c2(v - j)
      slice k + 1    o  <- 2 v

* Tissue bends more between slices that are farther apart: a slice may be off by `tolerance` pixels times the
  square root of the slice spacing in pixels (at least 1).
* The *drift* is the median of the shifts of all pairs: a steady movement. Oblique tissue drifts too, so it
  may be `tolerance` pixels per pixel of spacing.
* The two can be distinguished only in fields of many patches: of at least 24 pixels per pixel of spacing, and
  40 more (184 pixels if slices are 6 pixels apart). Slices of smaller fields are assumed to be aligned.
* Correlations are phase correlations (Kuglin & Hines 1975) of Hann-windowed patches, band-passed and
  whitened only by the square root of the power, which is robust to the noise of EM; peaks are refined by
  parabolas.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Alignment
from emdiffuse.registration.phase import correlate, peak, spectra
from emdiffuse.runtime.atomic import replaced, save_figure
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.outputs import PROGRAM
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.links import link
from emdiffuse.stores.provenance import Link, made_by
from emdiffuse.stores.volume import Volume, open_volume, write_image

FIELD = 1024
"""Maximum height and width of the central part in which slices are compared, in pixels."""
PAIRS = 64
"""Maximum number of pairs of neighbouring slices that are compared."""

logger = logging.getLogger(__name__)


class NotAligned(DataError):
    """Raised if the slices of a volume are not aligned.

    Attributes
    ----------
    reason : str
        Which slices are off, and by how much.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class MeasuredAlignment:
    """Measured alignment of a volume.

    Attributes
    ----------
    field : tuple of int
        Height and width of the compared field.
    shifts : dict
        Shift (y, x) in pixels from slice z to z + 1, by z.
    ncc : dict
        Normalised cross-correlation of slices z and z + 1, unshifted, by z.
    jitter : dict
        Offset (y, x) in pixels of a slice from the line between its neighbours, by z.
    blank : list of int
        Blank slices, or slices marked as missing, which cannot be judged.
    """

    field: tuple[int, int]
    shifts: dict[int, NDArray[np.float64]]
    ncc: dict[int, float]
    jitter: dict[int, NDArray[np.float64]]
    blank: list[int]


def check_alignment(
    volume: Path, alignment: Alignment, out: Path, quality: Path, figure: Path, made: Link | None = None
) -> None:
    """Check that the slices of a volume are aligned, and link an aligned volume without copying.

    Parameters
    ----------
    volume : Path
        The acquired OME-Zarr image.
    alignment : Alignment
        Tolerance in pixels.
    out : Path
        Registered image to write: hard links to the same chunks, with its own metadata.
    quality, figure : Path
        Measurements as JSON, and a PNG; both are written whether the volume is aligned or not.
    made : Link, optional
        Provenance of the volume, if its slices were moved; by default it is unchanged, and independent of the
        settings of the check.

    Raises
    ------
    NotAligned
        If the volume is not aligned; `out` is not written.
    StoreError
        If the volume cannot be read.
    """
    opened = open_volume(volume)
    name = opened.facts.dataset or volume.name.split(".")[0]
    measured = measure(opened)
    report = {"program": PROGRAM, "dataset": name, **judge(measured, opened.voxel_size, alignment.tolerance)}
    write_json(quality, report)
    _draw(measured, report, figure)
    if not report["aligned"]:
        raise NotAligned(
            f"{volume}: the slices are not aligned: {report['reason']}; set `alignment: {{method: warp}}`, "
            "or raise `alignment.tolerance` of the dataset",
            report["reason"],
        )
    logger.log(
        logging.INFO if report["conclusive"] else logging.WARNING, "%s: %s", name, report["conclusion"]
    )
    summary = {
        key: value
        for key, value in report.items()
        if key not in ("program", "dataset", "pairs", "slices", "reason")
    }
    with replaced(out, [volume]) as partial:
        link(opened.array.path, partial / "0")
        told = {"stage": "register", "made": made or made_by("register", name, {}, opened.made)}
        facts = opened.facts.model_copy(update={**told, "alignment": summary})
        write_image(partial, name, opened.voxel_size, facts)


def measure(volume: Volume, pairs: int = PAIRS) -> MeasuredAlignment:
    """Measure the shifts between neighbouring slices, and the jitter of slices relative to both neighbours.

    Parameters
    ----------
    volume : Volume
        An image (z, y, x).
    pairs : int
        Maximum number of pairs to compare: all, or pairs of pairs spread evenly over the volume.
    """
    depth, height, width = volume.array.shape
    middle = tuple(slice(max(0, (n - FIELD) // 2), min(n, (n + FIELD) // 2)) for n in (height, width))
    blank = set(volume.facts.missing)

    @lru_cache(maxsize=2)
    def look(z: int) -> tuple[NDArray[np.float32], NDArray[np.complex64]]:
        field = volume.array[(slice(z, z + 1), *middle)][0].astype(np.float32)
        return field, spectra(field)

    @lru_cache(maxsize=2)
    def surfaces(z: int) -> NDArray[np.float32]:
        return correlate(look(z)[1], look(z + 1)[1])

    measured = MeasuredAlignment((min(height, FIELD), min(width, FIELD)), {}, {}, {}, [])
    chosen = _chosen_pairs(depth, pairs)
    for z in progress(chosen, len(chosen), "alignment", "pair"):
        blank |= {n for n in (z, z + 1) if np.ptp(look(n)[0]) == 0}
        if blank & {z, z + 1}:
            continue
        measured.shifts[z] = peak(surfaces(z).sum(0))
        measured.ncc[z] = float(np.corrcoef(look(z)[0].ravel(), look(z + 1)[0].ravel())[0, 1])
        if z - 1 in measured.shifts:
            measured.jitter[z] = _jitter(surfaces(z - 1), surfaces(z))
    if not measured.shifts:
        raise DataError(
            f"{volume.path}: there are no two neighbouring slices with an image; alignment cannot be judged"
        )
    measured.blank.extend(sorted(blank))
    return measured


def _chosen_pairs(depth: int, pairs: int) -> list[int]:
    """Return the first slice of each pair to compare: all, or two pairs at a time, evenly spread."""
    if depth - 1 <= pairs:
        return list(range(depth - 1))
    middles = np.linspace(1, depth - 2, pairs // 2).round().astype(int).tolist()
    return sorted({z for middle in middles for z in (middle - 1, middle)})


def _jitter(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the offset (y, x) of a slice from the line between its neighbours.

    Parameters
    ----------
    before, after : ndarray
        Correlations of its patches with the slice before, and of the slice after with its patches.
    """
    reach = before.shape[1] // 4
    scores = np.empty((2 * reach + 1, 2 * reach + 1))
    for y, x in np.ndindex(*scores.shape):  # the jitter (y - reach, x - reach)
        there = before[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1]
        back = after[:, 2 * reach - y : 4 * reach + 1 - y, 2 * reach - x : 4 * reach + 1 - x]
        scores[y, x] = (there + back).max((1, 2)).sum()
    return peak(scores)


def judge(
    measured: MeasuredAlignment, voxel_size: tuple[float, float, float], tolerance: float
) -> dict[str, Any]:
    """Judge whether a volume is aligned.

    Parameters
    ----------
    measured : MeasuredAlignment
        What was measured.
    voxel_size : tuple of float
        Voxel size (z, y, x) in nanometers.
    tolerance : float
        In pixels, for slices one pixel apart.

    Returns
    -------
    dict
        Content of the quality file: `aligned`, a sentence, and numbers in pixels.
    """
    distance = max(1.0, voxel_size[0] / voxel_size[1])
    limits = {"drift": tolerance * distance, "jitter": tolerance * float(np.sqrt(distance))}
    drift = np.median(list(measured.shifts.values()), axis=0)
    steady = float(np.hypot(*drift))
    sizes = {z: float(np.hypot(*offset)) for z, offset in measured.jitter.items()}
    exceeding = sorted((z for z, size in sizes.items() if size > limits["jitter"]), key=lambda z: -sizes[z])
    needed = 24 * distance + 40
    conclusive = float(np.sqrt(np.prod(measured.field))) >= needed
    reasons = []
    if exceeding:
        worst = ", ".join(f"slice {z} by {sizes[z]:.1f}" for z in exceeding[:5])
        more = f" and {len(exceeding) - 5} more" if len(exceeding) > 5 else ""
        reasons.append(f"{worst}{more} pixels off the line between neighbours (limit {limits['jitter']:.2f})")
    if steady > limits["drift"]:
        reasons.append(f"a steady drift of {steady:.1f} pixels per slice (limit {limits['drift']:.2f})")
    jitter = _summary(list(sizes.values()))
    if not conclusive:
        verdict = (
            f"assumed to be aligned: {measured.field[0]} x {measured.field[1]} pixels are too few to judge; "
            f"{needed:.0f} x {needed:.0f} are needed at this slice spacing"
        )
    elif reasons:
        verdict = "not aligned: " + "; ".join(reasons)
    else:
        verdict = (
            f"aligned: half of them are within {jitter['median']:.2f} pixels of the line between neighbours, "
            f"all within {jitter['largest']:.2f} (limit {limits['jitter']:.2f}), with a steady drift of "
            f"{steady:.2f} pixels per slice (limit {limits['drift']:.2f})"
        )
    return {
        "aligned": not (conclusive and reasons),
        "conclusive": conclusive,
        "conclusion": f"The slices are {verdict}.",
        "reason": "; ".join(reasons),
        "tolerance": tolerance,
        "limits": limits,
        "drift": {"y": float(drift[0]), "x": float(drift[1]), "pixels": steady},
        "jitter": jitter,
        "shift": _summary([float(np.hypot(*shift)) for shift in measured.shifts.values()]),
        "ncc": {
            "median": float(np.median(list(measured.ncc.values()))),
            "smallest": min(measured.ncc.values()),
        },
        "exceeding": sorted(exceeding),
        "blank": measured.blank,
        "pairs": [
            {"slice": z, "y": float(y), "x": float(x), "ncc": measured.ncc[z]}
            for z, (y, x) in measured.shifts.items()
        ],
        "slices": [{"slice": z, "y": float(y), "x": float(x)} for z, (y, x) in measured.jitter.items()],
    }


def _summary(sizes: list[float]) -> dict[str, float]:
    """Return the median, 95th percentile and maximum of sizes in pixels; zeros if empty."""
    values = np.array(sizes or [0.0])
    return {
        "median": float(np.median(values)),
        "percentile_95": float(np.percentile(values, 95)),
        "largest": float(values.max()),
    }


def _draw(measured: MeasuredAlignment, report: dict[str, Any], path: Path) -> None:
    """Plot shift, jitter and correlation by slice, with the limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), dpi=110, layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    colors = {"y": "#0072b2", "x": "#d55e00"}
    for panel, values, kind in ((axes[0], measured.shifts, "drift"), (axes[1], measured.jitter, "jitter")):
        limit = report["limits"][kind]
        panel.axhspan(-limit, limit, color="0.93", zorder=0, label=f"tolerated {kind}: {limit:.2f} px")
        for index, name in enumerate("yx"):
            offsets = [offset[index] for offset in values.values()]
            panel.plot(list(values), offsets, ".-", color=colors[name], linewidth=0.8, label=name)
    sizes = [float(np.hypot(*offset)) for offset in measured.jitter.values()]
    axes[1].plot(list(measured.jitter), sizes, "-", color="0.5", linewidth=1.6, zorder=1, label="size")
    for z in report["exceeding"]:
        axes[1].axvline(z, color="0.4", linewidth=0.8, linestyle=":", zorder=0)
    drift = report["drift"]
    for name in "yx":
        axes[0].axhline(drift[name], color=colors[name], linewidth=1, linestyle="--", alpha=0.6)
    axes[2].plot(list(measured.ncc), list(measured.ncc.values()), ".-", color="0.25", linewidth=0.8)
    axes[0].set(ylabel="shift to the next slice (px)")
    axes[1].set(ylabel="jitter: off the line\nbetween neighbours (px)")
    axes[2].set(ylabel="NCC with the next slice", xlabel="slice")
    axes[0].legend(title="dashed: median (drift)", ncols=3, fontsize="small", title_fontsize="small")
    axes[1].legend(ncols=4, fontsize="small")
    for panel in axes:
        panel.grid(color="0.9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    verdict = ("aligned" if report["conclusive"] else "not judged") if report["aligned"] else "NOT aligned"
    figure.suptitle(f"{report['dataset']}: {verdict}")
    save_figure(figure, path)
