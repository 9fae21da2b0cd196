"""Register the image pairs of a store, and exclude from training those that fail.

Conventions
-----------
* The moving image keeps its pixel size; if its pixels are larger (`scale` 2), the fixed image is binned for
  the comparison, and stays unchanged in the store.
* All lengths are in pixels of the moving image.
* A field whose images cannot be registered, or still disagree, is excluded with the reason, and copied
  unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Alignment
from emdiffuse.registration.figures import Colors, draw_field, draw_gallery, overlay
from emdiffuse.registration.flow_weights import link_of_weights
from emdiffuse.registration.pair import Limits, NotRegistered, Registered, check_pair, register_pair
from emdiffuse.runtime.atomic import replaced
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.outputs import PROGRAM, require_free
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.array import write_plane
from emdiffuse.stores.facts import PairField, VolumeFacts, require_made
from emdiffuse.stores.intensity import to_unit
from emdiffuse.stores.links import link
from emdiffuse.stores.pairs import PairStore, finish_pairs, open_pairs
from emdiffuse.stores.provenance import Link, made_by
from emdiffuse.stores.volume import write_image

SHOWN = 4

logger = logging.getLogger(__name__)
Register = Callable[[NDArray[Any], NDArray[Any]], Registered]


def register_pairs(store: Path, alignment: Alignment, out: Path, quality: Path, figure: Path) -> None:
    """Register every pair of a store, and exclude those that cannot be registered.

    Parameters
    ----------
    store : Path
        An acquired store of pairs.
    alignment : Alignment
        Settings; with the method "check" nothing is warped.
    out : Path
        The store to write.
    quality, figure : Path
        Results for each field as JSON, and a figure of the fields that moved most. A folder of the same name
        without ``.png`` receives a figure of each field.

    Raises
    ------
    DataError
        If no pair is left; `out` is not written.
    """
    pairs = open_pairs(store)
    register, made = _method(alignment), _made(pairs, alignment)
    for field in pairs.fields:
        require_free(figure.with_suffix("") / f"{field.group}.png", overwrite=None)
    fields: list[PairField] = []
    shown: list[tuple[float, list[tuple[str, Colors]]]] = []
    with replaced(out, [store]) as partial:
        for field in progress(pairs.fields, len(pairs.fields), "registration", "pair"):
            moving, fixed = (pairs.image(field, role).array[:, :, :][0] for role in ("moving", "fixed"))
            target = averaged(fixed, pairs.scale)
            result = None
            try:
                result = register(target, moving)
                entry = field.model_copy(update={"quality": result.quality})
            except NotRegistered as error:
                entry = field.model_copy(update={"excluded": str(error)})
                logger.warning("%s: %s: %s; excluded from training", store, field.name, error)
            _write(partial / field.group, pairs, entry, result)
            fields.append(entry)
            pictures = _draw(
                pairs, entry, target, moving, result, figure.with_suffix("") / f"{field.group}.png"
            )
            shown.append((result.quality["displacement"]["percentile_95"] if result else np.inf, pictures))
        shown.sort(key=lambda item: -item[0])
        draw_gallery([picture for _, both in shown[:SHOWN] for picture in both], figure)
        used = [entry for entry in fields if not entry.excluded]
        skipped = pairs.facts.skipped.items()  # at acquisition
        listed = [*fields, *(PairField(group="", name=name, excluded=reason) for name, reason in skipped)]
        report = {
            "program": PROGRAM,
            "dataset": pairs.facts.dataset,
            "conclusion": _conclusion(listed, used),
            "weights": alignment.weights,
            "fields": [
                entry.model_dump(mode="json", exclude={"group"}, exclude_none=True) for entry in listed
            ],
        }
        write_json(quality, report)
        if not used:
            raise DataError(
                f"{store}: no pair can be registered: {fields[0].name}: {fields[0].excluded}; are "
                "these images really of the same fields?"
            )
        logger.info("%s: %s", report["dataset"], report["conclusion"])
        told = {"stage": "register", "made": made, "fields": tuple(fields)}
        finish_pairs(partial, pairs.facts.model_copy(update=told))


def _method(alignment: Alignment) -> Register:
    """Return the function that registers or checks a pair."""
    if alignment.method == "check":
        return lambda fixed, moving: check_pair(
            fixed, moving, alignment.tolerance, alignment.least_correlation
        )
    from emdiffuse.registration.raft import Flow  # imports torch, which checking does not need

    flow = Flow(alignment.weights)
    limits = Limits(alignment.least_correlation)
    return lambda fixed, moving: register_pair(fixed, moving, flow, limits)


def _made(pairs: PairStore, alignment: Alignment) -> Link:
    """Return the provenance of registered pairs: how they are warped, and which are excluded."""
    settings = {"kind": "pairs", "least_correlation": alignment.least_correlation}
    own, before = pairs.facts.dataset or "", require_made(pairs.facts, pairs.path)
    if alignment.method == "check":
        return made_by("register", own, {**settings, "tolerance": alignment.tolerance}, before)
    return made_by("register", own, settings, before, link_of_weights(alignment.weights))


def averaged(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """Bin an image (y, x) to pixels `scale` times as large; a remainder at the end is dropped."""
    if scale == 1:
        return image
    height, width = (n // scale for n in image.shape)
    cut = image[: height * scale, : width * scale].astype(np.float32)
    return cut.reshape(height, scale, width, scale).mean((1, 3))


def _write(group: Path, pairs: PairStore, field: PairField, result: Registered | None) -> None:
    """Write the images of a field, unchanged ones by hard links, and the mask if any."""
    moved = result if result is not None and result.quality["changed"] else None
    for role in ("moving", "fixed"):
        image = pairs.image(field, role)
        if moved and role == "moving":
            write_plane(group / role / "0", moved.moving)
        else:
            link(image.array.path, group / role / "0")
        facts = image.facts.model_copy(update={"stage": "register"})
        write_image(group / role, field.name, image.voxel_size, facts)
    if moved:
        fixed = pairs.image(field, "fixed")
        mask = np.zeros(fixed.array.shape[1:], np.uint8)
        large = moved.mask.repeat(pairs.scale, 0).repeat(pairs.scale, 1)
        mask[: large.shape[0], : large.shape[1]] = large
        write_plane(group / "mask" / "0", mask)
        facts = VolumeFacts(stage="register", kind="images", dataset=pairs.facts.dataset)
        write_image(group / "mask", field.name, fixed.voxel_size, facts)


def _draw(
    pairs: PairStore,
    field: PairField,
    fixed: NDArray[Any],
    moving: NDArray[Any],
    result: Registered | None,
    path: Path,
) -> list[tuple[str, Colors]]:
    """Draw a field, and return its overlays with titles."""
    ranges = {role: pairs.image(field, role).intensity.at(0) for role in ("moving", "fixed")}
    target = to_unit(fixed, ranges["fixed"])
    size = [min(a, b) for a, b in zip(fixed.shape, moving.shape, strict=True)]
    box = tuple(slice(0, n) for n in size)
    before = overlay(to_unit(moving[box], ranges["moving"]), target[box])
    if result is None:
        return [(f"{field.name}: excluded", before)] * 2
    ncc = result.quality["ncc"]
    after = overlay(to_unit(result.moving, ranges["moving"]), target)
    after[~result.mask] = 1
    said = f"correlation {ncc['before']:.3f} before, {ncc['after']:.3f} after"
    draw_field(f"{field.name}: {said}", before, after[box], result.displacement[:, *box], path)
    return [
        (f"{field.name}: before ({ncc['before']:.3f})", before),
        (f"after ({ncc['after']:.3f})", after),
    ]


def _conclusion(fields: list[PairField], used: list[PairField]) -> str:
    """Return the conclusion in words."""
    qualities: list[Any] = [entry.quality for entry in used]
    moved = [quality for quality in qualities if quality["changed"]]
    text = f"{len(used)} of {len(fields)} pairs are aligned"
    if moved:
        before, after = (np.median([one["ncc"][key] for one in moved]) for key in ("before", "after"))
        distance = np.median([one["displacement"]["median"] for one in moved])
        text += (
            f", {len(moved)} of them after registration (displaced by {distance:.2f} pixels; correlation "
            f"{before:.3f} before and {after:.3f} after; medians)"
        )
    excluded = [f"{entry.name}: {entry.excluded}" for entry in fields if entry.excluded]
    return text + (f". Excluded from training: {'; '.join(excluded)}" if excluded else "") + "."
