"""The patch store: patches cut from volumes and image pairs, on which a model is trained.

Conventions
-----------
* A row is one patch: its `condition` and its `target`, both float16, scaled to [-1, 1] by the range of their
  slice or image (`stores.intensity`).
* For volumes a patch is a gap: the condition is the real slices at `tasks.CONDITION_OFFSETS`, the target the
  slices inside the gap with their `positions`. The target has the depth of the deepest gap; missing slices
  are NaN. See `patches.gaps`, and `patches.images` for patches of image pairs, with a single target image.
* Patches are drawn from each dataset and factor in proportion to the square root of the number of positions,
  so that small volumes and large factors, with fewer gaps per volume, are not underrepresented.
* Validation patches never share a voxel with training patches; both are cut on regular grids.
* A patch whose standard deviation is below `origins.BLANK` is blank, and is discarded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Model
from emdiffuse.config.tasks import CONDITION_OFFSETS, TASKS
from emdiffuse.patches.correlation import noise_correlation
from emdiffuse.patches.gaps import GapSource
from emdiffuse.patches.images import NoisySource, PairSource
from emdiffuse.patches.origins import ORIGIN_COLUMNS, TRAINING, VALIDATION, Origin, PatchSource
from emdiffuse.runtime.atomic import replaced
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import logger, progress
from emdiffuse.stores.array import Array, create_array
from emdiffuse.stores.facts import NoiseCorrelation, PatchFacts, parse_facts, require_made
from emdiffuse.stores.pairs import holds_pairs
from emdiffuse.stores.provenance import Link, SourceFile, listed, made_by, reuse
from emdiffuse.stores.volume import known_of, write_group

__all__ = ["ORIGIN_COLUMNS", "TRAINING", "VALIDATION", "PatchStore", "cut_patches"]

PATCHES_PER_SHARD = 64
MEASURED = 16
"""Images per dataset in which the noise correlation is measured."""
Noisy = Literal["hidden pixels", "second scan"]


def cut_patches(stores: list[Path], model: Model, out: Path) -> None:
    """Cut the patches of a model from registered datasets into a store.

    Parameters
    ----------
    stores : list of Path
        Registered OME-Zarr volumes, or stores of pairs, in the order of ``model.datasets``.
    model : Model
        The model, with its task, factors and patch settings.
    out : Path
        The store: arrays ``condition`` (N, C, H, W) and ``target`` (N, D, H, W), float16, ``positions`` (N,
        D), float32, and ``origin`` (N, 9), int64, with the columns `ORIGIN_COLUMNS`.

    Raises
    ------
    DataError
        If a dataset does not suit the task, or is too small for a training and a validation patch.
    """
    validated = [name in (model.patches.validation_datasets or model.datasets) for name in model.datasets]
    sources = [_source(path, model, kept) for path, kept in zip(stores, validated, strict=True)]
    noisy = _noisy(sources)
    made = _made(model, sources, validated)
    learned = _learned_from(sources, noisy)
    if reuse(out, lambda: made, lambda: {"datasets": list(model.datasets), "sources": listed(learned)}):
        return
    chosen, places = _draw(sources, model)
    size = model.patches.size
    logger.info("cutting %d patches of %d x %d pixels, from %d positions", len(chosen), size, size, places)
    with replaced(out, stores) as partial:
        first = sources[chosen[0].dataset].cut(chosen[0])
        arrays = {
            name: create_array(
                partial / name,
                (len(chosen), *values.shape),
                np.float16,
                chunk=(1, *values.shape),
                shard=(PATCHES_PER_SHARD, *values.shape),
            )
            for name, values in zip(("condition", "target"), first[:2], strict=True)
        }
        positions = np.empty((len(chosen), len(first.positions)), np.float32)
        starts = range(0, len(chosen), PATCHES_PER_SHARD)
        for start in progress(starts, len(starts), "patches", "shard"):
            part = chosen[start : start + PATCHES_PER_SHARD]
            cut = [sources[o.dataset].cut(o) for o in part]
            box = (slice(start, start + len(part)), *(slice(None) for _ in range(3)))
            arrays["condition"][box] = np.stack([c.condition for c in cut]).astype(np.float16)
            arrays["target"][box] = np.stack([c.target for c in cut]).astype(np.float16)
            positions[start : start + len(part)] = [c.positions for c in cut]
        table: NDArray[Any]
        for name, table in (("origin", np.array(chosen, np.int64)), ("positions", positions)):
            create_array(partial / name, table.shape, table.dtype, chunk=table.shape)[:, :] = table
        facts = PatchFacts(
            made=made,
            task=model.task,
            factors=tuple(sorted({o.factor for o in chosen})),
            datasets=model.datasets,
            columns=ORIGIN_COLUMNS,
            sources=learned,
            residual_scale=_residual_scale(sources, chosen),
            noisy=noisy,
            measured=not noisy or any(isinstance(s, PairSource) and s.measures for s in sources),
            noise=_correlation(sources) if noisy == "hidden pixels" else None,
        )
        write_group(partial, {"emdiffuse": facts.as_json()})


def _source(path: Path, model: Model, validated: bool) -> PatchSource:
    """Open a dataset as a source of patches for a task."""
    if TASKS[model.task].volumetric:
        return GapSource(path, model, validated)
    return (PairSource if holds_pairs(path) else NoisySource)(path, model, validated)


def _noisy(sources: list[PatchSource]) -> Noisy | None:
    """Return how to learn from data without ground truth, if any; pairs then only evaluate.

    Raises
    ------
    DataError
        If there are both single images and repeated scans.
    """
    scans = [s for s in sources if isinstance(s, PairSource) and s.facts.scans]
    single = [s for s in sources if isinstance(s, NoisySource)]
    if scans and single:
        raise DataError(
            f"{single[0].path}: a model cannot learn from both these single noisy images and the repeated "
            f"scans of {scans[0].path}; train one model for each"
        )
    if not scans and not single:
        return None
    clean = [s for s in sources if isinstance(s, PairSource) and not s.facts.scans]
    for source in clean:
        source.measures = True
    if clean:
        for own in (*scans, *single):
            own.validated = False
        names = ", ".join(str(source.path) for source in clean)
        logger.info("%s: the clean images are only used to evaluate, not to train", names)
    return "second scan" if scans else "hidden pixels"


def _learned_from(sources: list[PatchSource], noisy: Noisy | None) -> tuple[SourceFile, ...]:
    """Return the files that the model learns from, with noisy ones marked."""
    learned = [s for s in sources if not (isinstance(s, PairSource) and s.measures)]
    files = [file for own in learned for file in own.facts.sources]
    if noisy:
        files = [file.model_copy(update={"seen_as": file.seen_as or "noisy"}) for file in files]
    return tuple(files)


def _correlation(sources: list[PatchSource]) -> NoiseCorrelation:
    """Measure and log the noise correlation of single noisy images."""
    own = [source for source in sources if isinstance(source, NoisySource)]
    found = noise_correlation(image for source in own for image in source.samples(MEASURED))
    logger.info(
        "the noise of neighbouring pixels is correlated by %.2f along x, the fast scan axis, and by %.2f "
        "along y",
        found.x[0], found.y[0],
    )  # fmt: skip
    return found


def _made(model: Model, sources: list[PatchSource], validated: list[bool]) -> Link:
    """Return the provenance of a model's patches; datasets are identified by content, not by name."""
    settings = {
        "task": model.task,
        "factors": list(model.factors),
        "thicknesses": list(model.thicknesses),
        "validated": validated,
        **model.patches.model_dump(mode="json", exclude={"validation_datasets"}),
    }
    inputs = [require_made(source.facts, source.path) for source in sources]
    return made_by("patches", " and ".join(model.datasets), settings, *inputs)


def _draw(sources: list[PatchSource], model: Model) -> tuple[list[Origin], int]:
    """Discard blank patches, and draw at most `limit` of the rest; see the module."""
    settings = model.patches
    origins = [o for number, source in enumerate(sources) for o in source.origins(number)]
    _require_factors(sources, origins, model)
    order = _balanced_order(origins, np.random.default_rng(0))
    kept: list[int] = []
    left_out = 0
    for i in order:
        if not sources[origins[i].dataset].usable(origins[i]):
            left_out += 1
            continue
        kept.append(int(i))
        if len(kept) == settings.limit:
            break
    if left_out:
        logger.info("discarding %d blank or invalid patches", left_out)
    chosen = [origins[i] for i in sorted(kept)]
    for split, name in ((TRAINING, "training"), (VALIDATION, "validation")):
        if not any(o.split == split for o in chosen):
            paths = ", ".join(str(source.path) for source in sources)
            raise DataError(
                f"{paths}: no patch is left for {name}: all are blank, or too small; lower `patches.size`"
            )
    return chosen, len(origins)


def _require_factors(sources: list[PatchSource], origins: list[Origin], model: Model) -> None:
    """Require that every factor has a patch in some dataset."""
    if lost := set(model.factors) - {o.factor for o in origins if o.split == TRAINING}:
        paths = ", ".join(str(source.path) for source in sources)
        side = model.patches.size
        what = f"gaps of factor {max(lost)}" if max(lost) > 1 else f"patches of {side} x {side} pixels"
        less = "`patches.size` or `factor`" if max(lost) > 1 else "`patches.size`"
        raise DataError(f"{paths}: too small for {what}; use larger data, or a smaller {less}")


def _balanced_order(origins: list[Origin], random: np.random.Generator) -> NDArray[np.int64]:
    """Return a random order whose prefixes sample each dataset and factor by the root of its share.

    Weighted sampling without replacement by exponential keys (Efraimidis and Spirakis 2006,
    doi 10.1016/j.ipl.2005.11.003).
    """
    kinds = np.array([(o.dataset, o.factor, o.split) for o in origins])
    _, kind, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    keys = random.exponential(size=len(origins)) * np.sqrt(counts)[kind.ravel()]
    return np.argsort(keys)


def _residual_scale(sources: list[PatchSource], chosen: list[Origin]) -> float:
    """Return the standard deviation of target minus plain estimate, over about 512 training patches."""
    training = [o for o in chosen if o.split == TRAINING]
    squares = []
    for origin in training[:: max(len(training) // 512, 1)]:
        condition, target, positions = sources[origin.dataset].cut(origin)
        depth = int((~np.isnan(positions)).sum())
        plain = condition[len(condition) // 2][None]  # the image, or the slice between its neighbours
        if len(condition) == len(CONDITION_OFFSETS):
            t = positions[:depth, None, None].clip(0, 1)
            plain = condition[1] + t * (condition[2] - condition[1])
        squares.append(float(np.mean((target[:depth] - plain) ** 2)))
    return float(np.sqrt(np.mean(squares)))


class PatchStore:
    """A finished patch store, opened for reading.

    Attributes
    ----------
    condition, target : Array
        (N, C, H, W) and (N, D, H, W), float16 in [-1, 1].
    positions : ndarray
        (N, D), float32: positions of the target's slices; NaN if absent.
    factor, thickness : ndarray
        (N,), float32: anisotropy factor of each row, 1 for images, and thickness of its slices.
    origins : ndarray
        (N, 9), int64, with the columns `ORIGIN_COLUMNS`.
    training, validation : ndarray
        Row numbers of each split.
    facts : PatchFacts
        Facts recorded by `cut_patches`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = parse_facts(PatchFacts, known_of(path), path)
        self.condition, self.target = Array(path / "condition"), Array(path / "target")
        self.origins, self.positions = Array(path / "origin")[:, :], Array(path / "positions")[:, :]
        split, factor, permille = (
            self.origins[:, ORIGIN_COLUMNS.index(name)] for name in ("split", "factor", "permille")
        )
        self.factor, self.thickness = factor.astype(np.float32), (permille / 1000).astype(np.float32)
        self.training = np.flatnonzero(split == TRAINING)
        self.validation = np.flatnonzero(split == VALIDATION)

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the condition and target of rows, (N, C, H, W) and (N, D, H, W), float32."""
        full = (slice(None),) * 3
        parts = [[array[(slice(i, i + 1), *full)] for i in rows] for array in (self.condition, self.target)]
        condition, target = (np.concatenate(part).astype(np.float32) for part in parts)
        return condition, target
