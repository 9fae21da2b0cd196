"""Chunked stores, on disk or on the web, through tensorstore: what Zarr, N5 and precomputed share.

Conventions
-----------
* See `base`. Public buckets are read without an account, unless the environment names one.
* An address that does not answer is tried a few times, for seconds; a chunk that is not there reads as zeros,
  as these formats have it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorstore as ts
from numpy.typing import NDArray

from emdiffuse.readers.base import Shape, Source
from emdiffuse.runtime.errors import DataError

_RETRIES = {"max_retries": 4, "initial_delay": "100ms", "max_delay": "2s"}
_CONTEXT = ts.Context(
    {
        "data_copy_concurrency": {"limit": 1},
        **{f"{store}_request_retries": _RETRIES for store in ("http", "gcs", "s3")},
    }
)
NANOMETERS = {
    "angstrom": 0.1,
    "nanometer": 1.0,
    "nm": 1.0,
    "micrometer": 1e3,
    "um": 1e3,
    "µm": 1e3,
    "millimeter": 1e6,
    "mm": 1e6,
    "meter": 1e9,
    "m": 1e9,
}


class StoredArray(Source):
    """An array of a chunked store.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : str
        Folder or address that its files lie under.
    store : tensorstore.TensorStore
        The array, (z, y, x), from 0.
    voxel_size : sequence of float, optional
        Voxel size (z, y, x) in nanometers.
    metadata : mapping
        What the store says of itself.
    """

    def __init__(
        self,
        name: str,
        place: str,
        store: ts.TensorStore,
        voxel_size: Sequence[float] | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        chunk = store.chunk_layout.read_chunk.shape or (1, 1, 1)
        block: Shape = (int(chunk[0] or 1), int(chunk[1] or 1), int(chunk[2] or 1))
        files = [] if "://" in place else [Path(place)]
        if store.dtype.numpy_dtype.kind not in "iuf":
            raise DataError(
                f"{name}: pixels of type {store.dtype.name} are not supported; convert them to real numbers"
            )
        shape: Shape = (int(store.shape[0]), int(store.shape[1]), int(store.shape[2]))
        super().__init__(name, shape, store.dtype.numpy_dtype, block, files, voxel_size)
        self._store = store
        self.metadata = json.dumps(metadata, sort_keys=True).encode()

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        with reached(self.name):
            values: NDArray[Any] = self._store[z0:z1, y, x].read().result()
        return values.astype(self.dtype, copy=False)


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
        If the address does not answer, or this is not JSON.
    """
    with reached(name):
        try:
            found = ts.KvStore.open(key_value_store(place), context=_CONTEXT).result().read(key).result()
        except ValueError as error:
            if "PERMISSION_DENIED" in str(error):  # so buckets say that there is no such file
                return None
            raise
    if found.state != "value":
        return None
    try:
        content = json.loads(bytes(found.value))
    except ValueError:
        content = None
    if not isinstance(content, Mapping):
        raise DataError(f"{name}: '{key}' is not readable as JSON; check the path, or copy the store again")
    return dict(content)


def open_array(name: str, driver: str, place: str, **options: Any) -> ts.TensorStore:
    """Open an array through tensorstore.

    Raises
    ------
    DataError
        If it cannot be opened.
    """
    spec = {"driver": driver, "kvstore": key_value_store(place), **options}
    with reached(name):
        return ts.open(spec, open=True, read=True, context=_CONTEXT).result()


@contextmanager
def reached(name: str) -> Iterator[None]:
    """Turn what tensorstore raises into one sentence."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split("[")[0].split())[:200]
        raise DataError(
            f"{name}: cannot be read ({reason}); check the path and the network, or copy the store again"
        ) from None
