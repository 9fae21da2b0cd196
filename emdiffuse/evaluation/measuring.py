"""Measure methods on the blocks of a volume, with all threads.

Conventions
-----------
* See `emdiffuse.evaluation.evaluate`. All methods are measured on the same voxels.
* Each thread takes a block, and reads its ground truth once for all methods. Blocks are summed in order, so
  that the numbers do not depend on the number or timing of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from emdiffuse.evaluation.blocks import BlockLayout, EvaluationBlock
from emdiffuse.evaluation.comparison import Ground, read
from emdiffuse.evaluation.metrics import METRICS, Metric, Piece, Scores, Setting
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.array import Box

Source = Callable[[Box], NDArray[Any]]
"""A function that returns the voxels of a method in a box."""
MOST_THREADS = 8
"""Maximum number of threads; each holds one block per method, about 250 MB."""


def measure(ground: Ground, methods: Mapping[str, Source], lpips: Path | None = None) -> dict[str, Scores]:
    """Measure methods against ground truth.

    Parameters
    ----------
    ground : Ground
        Ground truth and output slices.
    methods : mapping
        Function that returns the voxels, by method.
    lpips : Path, optional
        Torchvision's AlexNet weights, to measure LPIPS too.

    Returns
    -------
    dict
        Values of all planes, by method, orientation and metric.

    Raises
    ------
    DataError
        If a voxel is not a finite number.
    """
    layout = BlockLayout(ground.grid, ground.shape)
    setting = Setting(
        ground.data_range,
        ground.low,
        ground.truth.array.dtype.kind != "f",
        ground.truth.voxel_size[2],
        layout.lengths,
        lpips,
    )
    total = {name: [metric(setting) for metric in METRICS] for name in methods}

    def of_block(block: EvaluationBlock) -> dict[str, list[Metric]]:
        truth = Piece(read(ground.truth, block.box), block, setting)
        found = {}
        for name, source in methods.items():
            own = [metric(setting) for metric in METRICS]
            piece = Piece(source(block.box), block, setting)
            for metric in own:
                metric.add(piece, truth, block)
            found[name] = own
        return found

    threads = min(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1), MOST_THREADS)
    own_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # each block already has its own thread
    try:
        blocks = progress(layout.blocks(), len(layout.chosen), "evaluate", "block")
        for found in _in_order(of_block, blocks, threads):
            for name, own in found.items():
                for metric, more in zip(total[name], own, strict=True):
                    metric.merge(more)
    finally:
        cv2.setNumThreads(own_threads)
    return {name: _joined(own) for name, own in total.items()}


def _in_order(
    function: Callable[[EvaluationBlock], dict[str, list[Metric]]],
    blocks: Iterable[EvaluationBlock],
    threads: int,
) -> Iterator[dict[str, list[Metric]]]:
    """Yield the results for all blocks, in order, with at most `threads` blocks in progress."""
    waiting: deque[Future[dict[str, list[Metric]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for block in blocks:
                waiting.append(pool.submit(function, block))
                if len(waiting) >= threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _joined(metrics: list[Metric]) -> Scores:
    """Return the values of all metrics, by orientation and name."""
    scores: Scores = {}
    for metric in metrics:
        for orientation, values in metric.score().items():
            scores.setdefault(orientation, {}).update(values)
    return scores


def plain(values: NDArray[np.float64]) -> list[float | str | None]:
    """Return the values of planes for JSON: null for NaN, "identical" for infinity."""
    return [None if v != v else "identical" if v == np.inf else v for v in values.tolist()]


def numbers(values: list[float | str | None]) -> NDArray[np.float64]:
    """Return the values of planes from the result of `plain`."""
    return np.array([np.nan if v is None else np.inf if v == "identical" else float(v) for v in values])
