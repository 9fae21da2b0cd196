"""Work beside the main thread: what is made ahead of its use, and what is put away behind it.

Conventions
-----------
* One thread each, so that the order of the items is kept; what they hold is bounded.
* An error in a thread is raised where its item is asked for, or by the next item that is put away.
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
    """Return how many threads a pool may have: as ``--threads`` says, or one a core, and at most `most`."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # OpenMP allows a list, one number a level
    return min(int(given) if given.isdecimal() and int(given) else os.cpu_count() or 1, most)


@contextmanager
def ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Iterator[Item]]:
    """Let a thread make items, `depth` of them ahead of their use; they are yielded in their order."""
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
    """Let a thread call a function, at most one call behind; at the end all calls are done."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def put(*arguments: Any) -> None:
            while pending:
                pending.popleft().result()
            pending.append(pool.submit(function, *arguments))

        yield put
        for future in pending:
            future.result()
