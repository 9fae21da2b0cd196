"""Chunked stores, on disk or on the web, through tensorstore: what Zarr, N5 and precomputed share.

Conventions
-----------
* See `base`. Public buckets are read without an account, unless the environment names one.
* An address that does not answer is given up after `PATIENCE` seconds, also in the midst of reading; one that
  is slow is not, as long as something comes. Its answers are distinguished: forbidden is not the same as not
  there.
* A chunk that is not there is damage, unless the user says that its fill value is meant.
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
from emdiffuse.readers.base import Box, Source
from emdiffuse.readers.reasons import whole_words
from emdiffuse.readers.sizes import Size
from emdiffuse.runtime.errors import DataError

PATIENCE = 30.0
"""Seconds that an address has to answer."""
RETRIES = 4
_RETRIES = {"max_retries": RETRIES, "initial_delay": "100ms", "max_delay": "2s"}
# a transfer that stands still is broken off, and tried again: all tries together take the patience
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
"""Bytes of a chunk, of which several are held at a time."""


class StoredArray(Source):
    """An array of a chunked store.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : str
        Folder or address that its files lie under.
    store : tensorstore.TensorStore
        The array as stored.
    layout : Layout
        Where the stack lies in it.
    voxel_size : tuple of float, optional
        Voxel size (z, y, x) in nanometers.
    metadata : mapping
        The facts of the store.
    absent : sequence of boxes, optional
        Chunks that are known to be missing; without it they are looked for.
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
                f"{name}: its chunks of {' x '.join(map(str, block))} voxels take a GiB or more each; store "
                "it in smaller ones"
            )
        super().__init__(name, layout.shape, store.dtype.numpy_dtype, block, files, voxel_size)
        self._store = store
        self._layout = layout
        self.metadata = json.dumps(metadata, sort_keys=True).encode()
        if absent is None:
            # at an address a chunk that is missing is an error when it is read: to ask for all takes long
            absent = self._absent() if files else []
        self.absent = tuple(absent)
        steps = layout.along(_lengths(store.chunk_layout.write_chunk.shape, store.rank))
        self.chunks = prod(-(-n // step) for n, step in zip(self.shape, steps, strict=True))

    def _absent(self) -> list[Box]:
        """Return the boxes of the chunks that are not there, by listing the folder."""
        if self._is_stored([slice(0, n) for n in self.shape]):
            return []
        steps = self._layout.along(_lengths(self._store.chunk_layout.write_chunk.shape, self._store.rank))
        return [box for box in boxes_of(self.shape, steps) if not self._is_stored(box)]

    def _is_stored(self, box: Sequence[slice]) -> bool:
        z, y, x = box
        part = self._store[self._layout.region(z.start, z.stop, y, x)]
        with reached(self.name):
            found = answer(part.storage_statistics(query_fully_stored=True))
        return bool(found.fully_stored)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        with reached(self.name):
            part = self._store[self._layout.region(z0, z1, y, x)]
            values: NDArray[Any] = answer(part.read(), once=False)
        return self._layout.arranged(self.where(z0), values).astype(self.stored, copy=False)


def _lengths(chunk: Sequence[int | None] | None, rank: int) -> list[int]:
    """Return the shape of a chunk; 1 where it is not known."""
    return [int(n or 1) for n in chunk or [1] * rank]


def answer(future: ts.Future[Result], once: bool = True) -> Result:
    """Return what tensorstore promised: within `PATIENCE` seconds, or of pixels as long as some come.

    Raises
    ------
    TimeoutError
        If it does not come.
    """
    return future.result(timeout=PATIENCE if once else None)


def key_value_store(place: str) -> dict[str, Any]:
    """Return what tensorstore calls a folder or an address."""
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
    """Return a store's JSON file, None where there is none.

    Raises
    ------
    DataError
        If the address does not answer, forbids it, or this is not JSON.
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
    """Return the first of several JSON files that is there.

    Buckets forbid to list, and then answer "forbidden" for what is not there: that counts only where none of
    the files is readable.
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
        What the user calls it.
    driver, place
        Format and place.
    reading : Reading
        Whether chunks may be missing.
    decline : callable, optional
        Told why tensorstore cannot; where it answers yes, None is returned instead of an error.
    options
        Of the driver.

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
    """An address that forbids to read, or a bucket where there is no such file."""


@contextmanager
def reached(name: str) -> Iterator[None]:
    """Turn what tensorstore raises into one sentence."""
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
                f"{name}: a part of it is missing ({reason.removeprefix('NOT_FOUND: ')}); copy the "
                "store again, or "
                "say `missing_chunks: fill` if parts that are missing stand for its fill value"
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
        f"{name}: there is no answer within {PATIENCE:.0f} seconds; check the address and the network, and "
        "start again"
    )
