"""Find lost parts of a finished restoration, so that only these are recomputed.

Conventions
-----------
* Damaged chunks of level 0 are removed, with the marks of the stitch workers, and so are damaged blocks of
  the tile store, with the marks of the restore workers. The pyramid runs again, and rewrites coarser levels
  and the metadata of groups.
* The metadata of level 0, and of the tile store, follow from the plan, and are rewritten at once.
"""

from __future__ import annotations

from pathlib import Path

from emdiffuse.restoration.plan import Plan, create_output, create_tiles, read_plan
from emdiffuse.runtime.atomic import scratch
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.verification import METADATA, Index, Loss, losses, tell
from emdiffuse.stores.volume import open_volume

PLAN = "plan.json"


def plan_of(path: Path) -> Path | None:
    """Return the ``plan.json`` of a path: itself, in its folder, or beside its store; None if none."""
    for folder in (path, path.parent):
        if (folder / PLAN).is_file():
            return folder / PLAN
    return path if path.name == PLAN else None


def verify_restoration(path: Path, repair: bool = False) -> None:
    """Check every level and all metadata of a restored volume, or prepare lost parts for recomputation.

    Parameters
    ----------
    path : Path
        ``plan.json``.
    repair : bool
        Whether to clear lost parts, so that the next run of the workflow (or `stitch` and `pyramid`)
        recomputes them.

    Raises
    ------
    StoreError
        If something is lost, and `repair` is false.
    AccessError
        If something cannot be read, but is not provably damaged.
    """
    plan = read_plan(path)
    lost, total = losses(plan.restored, [f"{name}/0" for name in plan.outputs])
    tell(plan.restored, lost, total, repair)
    if repair and lost:
        if any(loss.node.name == "0" for loss in lost):
            _clear_level(plan, [loss for loss in lost if loss.node.name == "0"])
            _clear_blocks(plan)
        (plan.restored / METADATA).unlink(missing_ok=True)
        logger.info("%s: the next run of the workflow recomputes only the lost parts", plan.restored)


def _clear_level(plan: Plan, lost: list[Loss]) -> None:
    """Remove damaged chunks of level 0, and rewrite its lost metadata."""
    plan.forget("stitch")
    dtype = open_volume(plan.input).array.dtype
    for loss in lost:
        if loss.index is not None:
            loss.file.unlink(missing_ok=True)
            continue
        loss.node.mkdir(parents=True, exist_ok=True)
        with scratch(loss.file) as work:
            create_output(plan, loss.node.parent.name, work / "0", dtype)
            (work / "0" / METADATA).replace(loss.file)


def _clear_blocks(plan: Plan) -> None:
    """Remove damaged blocks of the tile store, and rewrite its lost metadata."""
    grid = plan.grid

    def written(index: Index) -> bool:
        z, y, x = index[1:]
        return not grid.idle(grid.at((z, y, x)))

    lost, _ = losses(plan.tiles, written=written)
    if any(loss.index is None for loss in lost):
        plan.tiles.mkdir(exist_ok=True)
        with scratch(plan.tiles / METADATA) as work:
            create_tiles(plan, work / "0")
            (work / "0" / METADATA).replace(plan.tiles / METADATA)
        lost, _ = losses(plan.tiles, written=written)
    for loss in lost:
        loss.file.unlink(missing_ok=True)
    if lost:
        plan.forget("restore")
