"""Threads beside the main thread: producers ahead of it, and consumers behind it.

Conventions
-----------
* One thread each, which keeps the order of the items; the number of items in flight is bounded.
* An error in a thread is raised when its item is requested, or at the next item passed to it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
_END: Any = object()


def allowed(most: int) -> int:
    """Return the number of threads of a pool: ``--threads``, or one per core, and at most `most`."""
    # OpenMP allows a list, one number per nesting level
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(int(given) if given.isdecimal() and int(given) else os.cpu_count() or 1, most)


@contextmanager
def ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Iterator[Item]]:
    """Produce items in a thread, up to `depth` ahead of their use, and yield them in order."""
    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, source, _END) for _ in range(depth))

        def take() -> Iterator[Item]:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, source, _END))
                yield item

        try:
            yield take()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def behind(function: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Run calls of a function in a thread, at most one call behind; all are done at the end."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def put(*arguments: Any) -> None:
            while pending:
                pending.popleft().result()
            pending.append(pool.submit(function, *arguments))

        yield put
        for future in pending:
            future.result()
