"""Formatting of an estimate as text."""

from __future__ import annotations

from collections.abc import Callable

from emdiffuse.models.description import Description
from emdiffuse.project.estimate import Estimate, RestorationCost, TrainingCost
from emdiffuse.project.speed import CARDS, SHARE, Speed
from emdiffuse.runtime.errors import ConfigError

Measure = Callable[[Description, int], Speed]
TRAINING_THREADS = 8
"""Maximum number of threads that speed up a training."""
SHOWN = ("RTX 4090", "A100", "H100")


def text(estimate: Estimate, measure: Measure, workers: int, cards: tuple[str, ...] = SHOWN) -> str:
    """Return an estimate as lines of text.

    Parameters
    ----------
    estimate : Estimate
        The counts.
    measure : callable
        Function that times a network for a number of slices, on this machine.
    workers : int
        Workers that share a restoration on this machine.
    cards : tuple of str
        Graphics cards of `speed.CARDS` to estimate the time for.
    """
    known: dict[tuple[str, int], Speed] = {}

    def speed(cost: RestorationCost | TrainingCost) -> Speed:
        key = (cost.description.network.model_dump_json(), cost.slices)
        if key not in known:
            known[key] = measure(cost.description, cost.slices)
        return known[key]

    lines: list[str] = []
    every: list[RestorationCost | TrainingCost] = [*estimate.trainings, *estimate.restorations]
    totals = dict.fromkeys(("here", *cards), 0.0)
    for cost in every:
        found = speed(cost)
        shared = 1 if found.device == "cuda" else workers
        if isinstance(cost, TrainingCost):
            shared = min(shared, TRAINING_THREADS)
        times = {"here": cost.pixels * found.seconds / shared}
        times |= {card: cost.pixels * found.on(card) for card in cards}
        if isinstance(cost, TrainingCost) and cost.model.training.minutes:
            times = {name: min(seconds, 60 * cost.model.training.minutes) for name, seconds in times.items()}
        for name, seconds in times.items():
            totals[name] += seconds
        lines += [*_described(cost), f"  network: {_times(times)}"]
    here = "this GPU" if any(found.device == "cuda" for found in known.values()) else f"{workers} cores"
    return "\n".join(
        [
            *lines,
            f"total: {_times(totals)}; {_size(estimate.peak_bytes)} on disk if nothing is removed",
            f"Here: measured, for {here}. {', '.join(cards)}: not measured; one card, assumed to reach "
            f"{SHARE:.0%} of the peak in its data sheet. Reading, blending and the evaluation are not "
            "included.",
        ]
    )


def _described(cost: RestorationCost | TrainingCost) -> list[str]:
    if isinstance(cost, TrainingCost):
        training = cost.model.training
        limit = f", at most {training.minutes:g} minutes" if training.minutes else ""
        if training.patience:
            sooner = training.patience * training.validate_every
            limit += f"; stops early after {sooner} steps without improvement"
        return [
            f"train {cost.name}: {training.steps} steps of {training.batch} patches of "
            f"{cost.model.patches.size} x {cost.model.patches.size} pixels{limit}",
            f"  patches: at most {_size(cost.patch_bytes)}",
        ]
    while_running, result = cost.files
    memory = ", ".join(f"{stage} {mb / 1000:.1f} GB" for stage, mb in cost.memory.items())
    return [
        f"restore {cost.item.dataset} by {cost.item.model}: {' x '.join(map(str, cost.grid.volume))} voxels, "
        f"{cost.tiles} tiles in {len(cost.grid)} blocks, {cost.evaluations} network evaluations",
        f"  disk: {_size(cost.scratch_bytes)} of tiles in {while_running} files, "
        f"{_size(cost.result_bytes)} of results in {result} files",
        f"  memory per worker: {memory}",
    ]


def _times(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {_duration(seconds)}" for name, seconds in times.items())


def _duration(seconds: float) -> str:
    """Return a duration in a suitable unit."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds / unit, 1):.{1 if unit == 3600 else 0}f} {name}"
    return f"{seconds / 86400:.1f} days"


def _size(count: int) -> str:
    """Return a number of bytes in a suitable unit."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def checked_cards(names: list[str] | None) -> tuple[str, ...]:
    """Return the named cards, or the default ones.

    Raises
    ------
    ConfigError
        If one is not in the table.
    """
    for name in names or ():
        if name not in CARDS:
            raise ConfigError(f"--card: '{name}' is not in the table; known: {', '.join(CARDS)}")
    return tuple(names) if names else SHOWN
