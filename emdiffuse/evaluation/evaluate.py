"""Measures restored volumes and images against the truth, beside classical methods, on the same voxels.

Conventions
-----------
* Axes are (z, y, x). Output slice 0 is real slice 0 is truth slice 0; all volumes share the lateral grid.
* Only *generated* slices count: never a real one, which every method passes through (but for the step from a
  generated slice to it, ``real_step_ratio``). In xz and yz planes the structural similarity is mapped on
  whole planes, and its values on generated rows are counted.
* Images (emdiffuse-n, emdiffuse-r) are measured whole, each by itself: only xy planes count.
* A measure is taken a plane at a time, and averaged over planes. Planes that equal the truth have no finite
  PSNR: they are counted as ``identical`` and left out of its mean, which is null when there is no other
  plane. Of images ``psnr_fitted`` is the PSNR after the scale and offset that fit each to its truth best.
* Intervals are 95 % bootstrap intervals of that mean. Neighbouring planes resemble each other, so what is
  drawn again is the gap or image (xy), a run of `RUN` planes (xz, yz) or a block (shells), the same draws for
  every method.
* Shell correlation (``xyz``) is of blocks as they stand, real slices among them: a gap alone is too thin.
* Other restorations of the same input, by other models or samplers, are measured like the classical methods.
* Work goes by blocks with the margin that the windows need, so that memory depends on the block size alone,
  and the numbers do not depend on blocks; FSIM, MS-SSIM, LPIPS and the spectra alone are of tiles of at most
  `TILE` pixels a side, and so are the baselines that the module `baselines` says it of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from emdiffuse.evaluation.baselines import IMAGE_KINDS, KINDS, absent_baselines, image_baseline, interpolate
from emdiffuse.evaluation.comparison import Comparison, compare, read
from emdiffuse.evaluation.sums import PLANES, Block, Reference, Sums, blocks_of
from emdiffuse.evaluation.tables import MEASURES, RUN, as_csv, summary, table
from emdiffuse.evaluation.trust import assess
from emdiffuse.restoration.geometry import ImageStack
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import logger, progress
from emdiffuse.stores.volume import Volume

if TYPE_CHECKING:
    from emdiffuse.evaluation.metrics.perceptual import Lpips

REFERENCES = {"emdiffuse-n": "input", "emdiffuse-r": "cubic"}
"""What a restoration is compared with by name; gaps with linear interpolation."""
THREADS = 2

__all__ = ["evaluate", "summary"]


def evaluate(
    restored: Path,
    dataset: Path,
    truth: Path,
    out: Path,
    beside: Sequence[Path] = (),
    lpips: Path | None = None,
) -> dict[str, Any]:
    """Measure a restored volume, and what classical methods make of its input, against the truth.

    Parameters
    ----------
    restored : Path
        Restored volume (z, y, x), isotropic, or a stack of restored images.
    dataset : Path
        The registered volume, or stack, that was restored.
    truth : Path
        The registered volume to compare with: same dtype and lateral shape, at least as deep.
    out : Path
        JSON file to write; a CSV file with the same table is written beside it.
    beside : sequence of Path
        Other restorations of the dataset, which are measured on the same voxels.
    lpips : Path, optional
        Torchvision's weights of AlexNet: LPIPS is measured too.

    Returns
    -------
    dict
        What was written: ``methods[method][orientation][measure]`` with mean, low and high;
        ``gain`` (the paired difference in xy to the method ``reference``) and ``beats``; voxels, data_range,
        estimator and the names of the volumes; ``beside``: model and estimator of every other restoration;
        ``absent``: sentences on the methods that could not be run; with an uncertainty, ``trust``
        (`trust.assess`).

    Raises
    ------
    DataError
        If the truth does not fit the restored volume or was among the model's training data, or a voxel is
        not a number.
    ConfigError
        If LPIPS is asked for, and its weights or library are missing.
    """
    model = _lpips(lpips) if lpips is not None else None
    found = compare(restored, dataset, truth)
    others = _others(beside, dataset, truth)
    found.extras.update(others)
    images, shape = found.images, found.shape
    kinds: tuple[str, ...] = IMAGE_KINDS[found.restored.facts["task"]] if images else KINDS
    absent = absent_baselines(found.restored.facts.get("task", ""))
    for sentence in absent:
        logger.warning(sentence)
    methods = (*kinds, *(["regression"] if "regression" in found.extras else []), *others, "restored")
    planes = {"xy": 0} if images else PLANES
    voxel = found.restored.voxel_size[2]
    sums = {method: Sums(shape, planes) for method in methods}
    blocks = list(blocks_of(found.grid, shape))
    with ThreadPoolExecutor(THREADS) as pool:
        for block in progress(blocks, len(blocks), "evaluate", "block"):
            if not len(block.counted[0]):
                continue
            reference = Reference(found, block, model)

            def measure(method: str, block: Block = block, reference: Reference = reference) -> None:
                sums[method].add(_method(method, found, block), reference, block)

            list(pool.map(measure, sums))
    scores = {method: own.scores(found.data_range, voxel) for method, own in sums.items()}
    plain = scores[kinds[0]]["xy"]["frc_resolution"]
    for own in scores.values():
        own["xy"]["frc_ratio"] = own["xy"]["frc_resolution"] / plain
    result = {
        **found.names(),
        "estimator": found.restored.facts.get("estimator") or "not stated",
        "beside": {
            name: {key: other.facts.get(key) for key in ("model", "estimator")}
            for name, other in others.items()
        },
        "absent": absent,
        "voxels": int(sums["restored"].voxels["xy"].sum()),
        "data_range": found.data_range,
        "units": MEASURES,
        "interval": "95 % bootstrap interval over images"
        if images
        else f"95 % bootstrap interval over gaps (xy), runs of {RUN} planes (xz, yz) and blocks (xyz)",
        **table(scores, found.grid, REFERENCES.get(found.restored.facts.get("task", ""), "linear")),
    }
    trust = assess(found)
    if trust:
        result["trust"] = trust
    write_atomically(out, json.dumps(result, indent=2, allow_nan=False))
    write_atomically(out.with_suffix(".csv"), as_csv(result))
    return result


def _lpips(weights: Path) -> Lpips:
    from emdiffuse.evaluation.metrics.perceptual import Lpips

    return Lpips(weights)


def _others(paths: Sequence[Path], dataset: Path, truth: Path) -> dict[str, Volume]:
    """Open other restorations, under the names of their rows."""
    volumes = [compare(path, dataset, truth).restored for path in paths]
    others = {f"restored by {volume.facts.get('model') or volume.path}": volume for volume in volumes}
    if len(others) < len(volumes):
        raise DataError("two of the restorations to compare with are by one model; name one of them")
    return others


def _method(method: str, found: Comparison, block: Block) -> NDArray[Any]:
    """Return a block of a restored volume, or make it by a classical method."""
    if method == "restored" or method in found.extras:
        return read(found.restored if method == "restored" else found.extras[method], block.box)
    if isinstance(found.grid, ImageStack):
        scale = found.restored.array.shape[1] // found.input.array.shape[1]
        return image_baseline(found.input.array, block.box, method, scale)
    z, *window = block.box
    kind = next(kind for kind in KINDS if kind == method)
    return interpolate(found.input.array, found.grid, range(z.start, z.stop), kind, window)
