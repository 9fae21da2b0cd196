"""Separate images, and pairs of them: pairs are checked for alignment, and both are passed on (hard links).

Conventions
-----------
* Shifts are (y, x) in pixels of the moving image: how far its structures lie beyond those of the fixed one,
  which is first reduced to the same pixels.
* A pair that is shifted by more than the tolerance, or that hardly correlates, is excluded from training with
  the reason; nothing is warped here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from emdiffuse.acquisition import to_unit
from emdiffuse.atomic import replaced, write_atomically
from emdiffuse.config import Alignment
from emdiffuse.errors import DataError
from emdiffuse.pairs import Pairs, open_pairs
from emdiffuse.progress import progress
from emdiffuse.registration.volumes import correlate, link, peak, save_figure, spectra
from emdiffuse.volume import open_volume, write_group, write_image

SIGMA = 1.5
"""Pixels of the Gaussian before normalised cross-correlation: it then tells of structure, not of noise."""
LEAST_CORRELATION = 0.2
"""Pairs that correlate less show different fields."""
SHOWN = 4

logger = logging.getLogger(__name__)


def pass_images(volume: Path, out: Path, quality: Path, figure: Path) -> None:
    """Pass separate images on: there are no neighbouring slices to align.

    Parameters
    ----------
    volume : Path
        Acquired images, (z, y, x).
    out : Path
        The store to write.
    quality, figure : Path
        What was found, as JSON and as a picture.
    """
    opened = open_volume(volume)
    count = opened.array.shape[0]
    name = opened.facts.get("dataset", volume.name.split(".")[0])
    conclusion = f"{count} separate image(s): there are no slices to align"
    write_atomically(quality, json.dumps({"dataset": name, "conclusion": conclusion}, indent=2))
    chosen = np.unique(np.linspace(0, count - 1, SHOWN).astype(int)).tolist()
    shown = [
        to_unit(opened.array[(slice(z, z + 1), *_window(opened.array.shape))][0], opened.facts["intensity"])
        for z in chosen
    ]
    _draw(
        [
            (f"image {z + 1}", np.repeat(image[..., None], 3, -1))
            for z, image in zip(chosen, shown, strict=True)
        ],
        figure,
    )
    with replaced(out) as partial:
        link(opened.array.path, partial / "0")
        facts = {**opened.facts, "stage": "register", "alignment": {"conclusion": conclusion}}
        write_image(partial, name, opened.voxel_size, facts)


def check_pairs(store: Path, alignment: Alignment, out: Path, quality: Path, figure: Path) -> None:
    """Measure the shift and the correlation of every pair, and exclude those that are not aligned.

    Parameters
    ----------
    store : Path
        An acquired store of pairs.
    alignment : Alignment
        Its tolerance is that of the shift, in pixels of the moving image.
    out : Path
        The store to write.
    quality, figure : Path
        What was found for each field, as JSON; and overlays, the moving image in magenta and the fixed one in
        green.

    Raises
    ------
    DataError
        If no pair is aligned; `out` is not written.
    """
    pairs = open_pairs(store)
    fields: list[dict[str, Any]] = []
    overlays: list[tuple[str, NDArray[np.float32]]] = []
    for field in progress(pairs.fields, len(pairs.fields), "alignment of pairs", "pair"):
        moving, fixed = _images(pairs, field)
        shift = peak(correlate(spectra(fixed), spectra(moving)).sum(0))
        ncc = float(np.corrcoef(*(gaussian_filter(v, SIGMA).ravel() for v in (moving, fixed)))[0, 1])
        found: dict[str, Any] = {"shift": {"y": float(shift[0]), "x": float(shift[1])}, "ncc": ncc}
        entry = {**field, "quality": found}
        distance = float(np.hypot(*shift))
        if ncc < LEAST_CORRELATION:
            entry["excluded"] = f"its images do not show the same field (correlation {ncc:.2f})"
        elif distance > alignment.tolerance:
            entry["excluded"] = (
                f"its images are shifted by {distance:.1f} pixels, more than `alignment.tolerance`"
            )
        if "excluded" in entry:
            logger.warning("%s: %s: %s; it is not trained on", store, field["name"], entry["excluded"])
        fields.append(entry)
        if len(overlays) < SHOWN:
            overlays.append((field["name"], np.stack([moving, fixed, moving], -1)))
    used = sum("excluded" not in entry for entry in fields)
    report = {
        "dataset": pairs.facts["dataset"],
        "conclusion": f"{used} of {len(fields)} pairs are aligned within {alignment.tolerance:g} pixels",
        "fields": [{k: v for k, v in entry.items() if k != "group"} for entry in fields],
    }
    write_atomically(quality, json.dumps(report, indent=2))
    _draw(overlays, figure)
    if not used:
        raise DataError(
            f"{store}: no pair is aligned: {fields[0]['name']}: {fields[0]['excluded']}; align the "
            "images first"
        )
    logger.info("%s: %s", report["dataset"], report["conclusion"])
    with replaced(out) as partial:
        for entry in fields:
            for role in ("moving", "fixed"):
                image = pairs.image(entry, role)
                link(image.array.path, partial / entry["group"] / role / "0")
                facts = {**image.facts, "stage": "register"}
                write_image(partial / entry["group"] / role, entry["name"], image.voxel_size, facts)
        write_group(partial, {"emdiffuse": {**pairs.facts, "stage": "register", "fields": fields}})


def _images(pairs: Pairs, field: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read the middle of a pair at the pixels of the moving image, in [-1, 1]."""
    moving, fixed = pairs.image(field, "moving"), pairs.image(field, "fixed")
    rows, columns = _window(moving.array.shape)
    n = pairs.scale
    fine = fixed.array[0:1, rows.start * n : rows.stop * n, columns.start * n : columns.stop * n][0]
    coarse = moving.array[0:1, rows, columns][0]
    height, width = (min(a, b // n) for a, b in zip(coarse.shape, fine.shape, strict=True))
    fine = fine[: height * n, : width * n].astype(np.float32).reshape(height, n, width, n).mean((1, 3))
    intensity = pairs.facts["intensity"]
    return to_unit(coarse[:height, :width], intensity["moving"]), to_unit(fine, intensity["fixed"])


def _window(shape: tuple[int, ...], side: int = 1024) -> tuple[slice, slice]:
    """Return the middle of an image, of at most `side` pixels."""
    y, x = (slice(max((n - side) // 2, 0), min((n + side) // 2, n)) for n in shape[1:])
    return y, x


def _draw(pictures: list[tuple[str, NDArray[np.float32]]], path: Path) -> None:
    """Draw pictures (y, x, color), in [-1, 1], side by side."""
    figure = Figure(figsize=(4 * len(pictures), 4.4), dpi=110, layout="constrained")
    for axis, (name, picture) in zip(np.atleast_1d(figure.subplots(1, len(pictures))), pictures, strict=True):
        axis.imshow(np.clip((picture + 1) / 2, 0, 1), interpolation="nearest")
        axis.set_title(name, fontsize="small")
        axis.set_axis_off()
    save_figure(figure, path)
