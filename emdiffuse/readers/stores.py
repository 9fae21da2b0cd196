"""Chunked stores on disk or on the web, through tensorstore: common code of Zarr, N5 and precomputed.

Conventions
-----------
* See `base`. Public buckets are read anonymously, unless the environment names an account.
* A server that sends nothing for `PATIENCE` seconds is an error, even while reading; a slow one is not, as
  long as data arrive. "Forbidden" and "not found" are distinguished.
* A missing chunk is damage, unless `missing_chunks` is ``fill``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import tensorstore as ts
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.absent import boxes_of
from emdiffuse.readers.axes import Layout
from emdiffuse.readers.base import Box, Shape, Source
from emdiffuse.readers.reasons import whole_words
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

PATIENCE = 30.0
"""Seconds within which a server must respond."""
RETRIES = 4
_RETRIES = {"max_retries": RETRIES, "initial_delay": "100ms", "max_delay": "2s"}
# stalled transfers are aborted and retried; all tries together take PATIENCE seconds
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(int(PATIENCE / (RETRIES + 1))))
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
_CONTEXT = ts.Context(
    {
        "data_copy_concurrency": {"limit": 1},
        **{f"{store}_request_retries": _RETRIES for store in ("http", "gcs", "s3")},
    }
)
FORBIDDEN = ("PERMISSION_DENIED", "HTTP response code: 401", "HTTP response code: 403")
STALLED = "Operation too slow"
MISSING = re.compile(r"NOT_FOUND: chunk .* is missing")
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


LARGEST_CHUNK = 2**30
"""Maximum bytes of a chunk, since several are in memory at a time."""


class StoredArray(Source):
    """An array of a chunked store.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    place : str
        Folder or URL of its files.
    store : tensorstore.TensorStore
        The stored array.
    layout : Layout
        Position of the stack in the array.
    voxel_size : tuple of float, optional
        Voxel size (z, y, x) in nanometers.
    metadata : mapping
        Metadata of the store.
    absent : sequence of boxes, optional
        Chunks known to be missing; by default they are searched for.
    """

    def __init__(
        self,
        name: str,
        place: str,
        store: ts.TensorStore,
        layout: Layout,
        voxel_size: Size | None,
        metadata: Mapping[str, Any] | None,
        absent: Sequence[Box] | None = None,
    ) -> None:
        files = [] if "://" in place else [Path(place)]
        if store.dtype.numpy_dtype.kind not in "biuf":
            raise DataError(
                f"{name}: pixels of type {store.dtype.name} are not supported; convert them to real numbers"
            )
        block = layout.along(_lengths(store.chunk_layout.read_chunk.shape, store.rank))
        if prod(block) * store.dtype.numpy_dtype.itemsize >= LARGEST_CHUNK:
            raise DataError(
                f"{name}: chunks of {' x '.join(map(str, block))} voxels take a GiB or more each; store "
                "it in smaller ones"
            )
        super().__init__(name, layout.shape, store.dtype.numpy_dtype, block, files, voxel_size)
        self._store = store
        self._layout = layout
        self.metadata = json.dumps(metadata, sort_keys=True).encode()
        if absent is None:
            # at a URL, missing chunks are errors when read, because checking all would take too long
            absent = self._absent() if files else []
        self.absent = tuple(absent)
        steps = layout.along(_lengths(store.chunk_layout.write_chunk.shape, store.rank))
        self.chunks = prod(-(-n // step) for n, step in zip(self.shape, steps, strict=True))

    def _absent(self) -> list[Box]:
        """Return the boxes of missing chunks, by listing the folder."""
        steps = self._layout.along(_lengths(self._store.chunk_layout.write_chunk.shape, self._store.rank))
        z, y, x = self.shape
        return list(self._lost((slice(0, z), slice(0, y), slice(0, x)), steps))

    def _lost(self, box: Box, steps: Shape) -> Iterator[Box]:
        """Yield the absent chunks of a box, by halving it until a part has all or none."""
        with reached(self.name):
            part = self._store[self._layout.region(box[0].start, box[0].stop, *box[1:])]
            found = answer(part.storage_statistics(query_fully_stored=True, query_not_stored=True))
        long = [axis for axis in range(3) if box[axis].stop - box[axis].start > steps[axis]]
        if found.fully_stored:
            return
        if found.not_stored or not long:
            yield from boxes_of([side.stop for side in box], steps, [side.start for side in box])
            return
        axis, halves = long[0], (list(box), list(box))
        side, step = box[axis], steps[axis]
        middle = side.start + max((side.stop - side.start) // step // 2, 1) * step
        halves[0][axis], halves[1][axis] = slice(side.start, middle), slice(middle, side.stop)
        for z, y, x in halves:
            yield from self._lost((z, y, x), steps)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        with reached(self.name):
            part = self._store[self._layout.region(z0, z1, y, x)]
            values: NDArray[Any] = answer(part.read(), once=False)
        return self._layout.arranged(self.where(z0), values).astype(self.stored, copy=False)


def _lengths(chunk: Sequence[int | None] | None, rank: int) -> list[int]:
    """Return the shape of a chunk; 1 where unknown."""
    return [int(n or 1) for n in chunk or [1] * rank]


def answer(future: ts.Future[Result], once: bool = True) -> Result:
    """Return the result of a tensorstore future, within `PATIENCE` seconds or while pixels keep arriving.

    Raises
    ------
    TimeoutError
        If nothing arrives in time.
    """
    return future.result(timeout=PATIENCE if once else None)


def key_value_store(place: str) -> dict[str, Any]:
    """Return tensorstore's specification of a folder or URL."""
    scheme, _, rest = place.partition("://")
    if not rest:
        return {"driver": "file", "path": f"{Path(place).absolute()}/"}
    bucket, _, path = rest.partition("/")
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
    if scheme == "s3":
        known = any(key in os.environ for key in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))
        account = {} if known else {"aws_credentials": {"type": "anonymous"}}
        return {"driver": "s3", "bucket": bucket, "path": f"{path}/", **account}
    return {"driver": "http", "base_url": f"{scheme}://{bucket}", "path": f"/{path}/"}


def read_json(name: str, place: str, key: str) -> dict[str, Any] | None:
    """Return a JSON file of a store, or None if it does not exist.

    Raises
    ------
    DataError
        If the server does not respond or forbids access, or the file is not JSON.
    """
    with reached(name):
        store = answer(ts.KvStore.open(key_value_store(place), context=_CONTEXT))
        found = answer(store.read(key))
    if found.state != "value":
        return None
    try:
        content = json.loads(bytes(found.value))
    except ValueError:
        content = None
    if not isinstance(content, Mapping):
        raise DataError(f"{name}: '{key}' is not readable as JSON; check the path, or copy the store again")
    return dict(content)


def first_json(name: str, place: str, keys: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """Return the first existing file of several JSON files.

    Buckets that forbid listing respond "forbidden" for missing files, so this counts only if no file is
    readable.
    """
    forbidden: DataError | None = None
    for key in keys:
        try:
            found = read_json(name, place, key)
        except ForbiddenError as error:
            forbidden = error
            continue
        if found is not None:
            return key, found
    if forbidden is not None:
        raise forbidden
    return None


def open_array(
    name: str,
    driver: str,
    place: str,
    reading: Reading,
    decline: Callable[[str], bool] | None = None,
    **options: Any,
) -> ts.TensorStore | None:
    """Open an array through tensorstore.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    driver, place
        Format, and folder or URL.
    reading : Reading
        Whether chunks may be missing.
    decline : callable, optional
        Called with tensorstore's reason; if it returns true, None is returned instead of an error.
    options
        Options of the driver.

    Raises
    ------
    DataError
        If it cannot be opened.
    """
    fill = {"fill_missing_data_reads": reading.missing_chunks == "fill"}
    spec = {"driver": driver, "kvstore": key_value_store(place), **fill, **options}
    with reached(name):
        try:
            return answer(ts.open(spec, open=True, read=True, context=_CONTEXT))
        except (ValueError, NotImplementedError) as error:
            if decline is not None and decline(str(error)):
                return None
            raise


class ForbiddenError(DataError):
    """Raised if reading is forbidden, which buckets also report for missing files."""


@contextmanager
def reached(name: str) -> Iterator[None]:
    """Turn tensorstore's exceptions into one sentence."""
    try:
        yield
    except DataError:
        raise
    except TimeoutError:
        raise _no_answer(name) from None
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error)
        if STALLED in text:
            raise _no_answer(name) from None
        reason = whole_words(" ".join(text.split(" [")[0].split()))
        if MISSING.search(text):
            raise DataError(
                f"{name}: a chunk is missing ({reason.removeprefix('NOT_FOUND: ')}); copy the "
                "store again, or "
                "set `missing_chunks: fill` if missing chunks stand for its fill value"
            ) from None
        if any(sign in text for sign in FORBIDDEN):
            raise ForbiddenError(
                f"{name}: reading it is forbidden, or it does not exist ({reason}); check the path, and the "
                "permissions or the account (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS)"
            ) from None
        what = "check the path and the network" if "://" in name else "copy the store again, if it is damaged"
        raise DataError(f"{name}: cannot be read ({reason}); {what}") from None


def _no_answer(name: str) -> DataError:
    return DataError(
        f"{name}: no response within {PATIENCE:.0f} seconds; check the URL and the network, and start again"
    )
