"""Alignment of volumes (`volumes`) and image pairs (`fields`).

Conventions
-----------
* The quality file records how it was made (`made`), including the settings of the check, and the hash of the
  registered store (`registered`). If both are up to date, nothing is registered again.
"""

from __future__ import annotations

import json
from pathlib import Path

from emdiffuse.config import Alignment
from emdiffuse.registration.flow_weights import link_of_weights
from emdiffuse.runtime.atomic import replaced_file
from emdiffuse.runtime.outputs import require_free
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.facts import require_made
from emdiffuse.stores.pairs import open_pairs
from emdiffuse.stores.provenance import Link, kept_copy, made_by, put_back, read_link, write_and_keep
from emdiffuse.stores.volume import kind_of, open_volume


def register(store: Path, alignment: Alignment, out: Path, quality: Path, figure: Path) -> None:
    """Align an acquired store, or check its alignment, and write the registered store.

    Parameters
    ----------
    store : Path
        Acquired volume, separate images, or pairs.
    alignment : Alignment
        Settings.
    out : Path
        The store to write.
    quality, figure : Path
        Results, as JSON and as a figure.

    Raises
    ------
    DataError
        If it is not and cannot be aligned; `out` is not written.
    StoreError
        If the store cannot be read.
    OutputError
        If an output exists that emdiffuse did not write.
    """
    for path in (quality, figure):
        require_free(path, [store], overwrite=None)
    kind = kind_of(store)
    made = _made(kind, store, alignment)
    if _stands(made, out, quality, figure):
        logger.info("%s: already registered from the same data with the same settings; nothing to do", out)
        return
    if kind == "pairs":  # each kind imports only what it needs: OpenCV, SciPy, torch
        from emdiffuse.registration.fields import register_pairs

        register_pairs(store, alignment, out, quality, figure)
    elif kind == "images":
        from emdiffuse.registration.images import pass_images

        pass_images(store, out, quality, figure)
    elif alignment.method == "warp":
        from emdiffuse.registration.slices import align_slices

        align_slices(store, alignment, out, quality, figure)
    else:
        from emdiffuse.registration.volumes import check_alignment

        check_alignment(store, alignment, out, quality, figure)
    told = {"made": made.model_dump(mode="json"), "registered": read_link(out).hash}
    write_and_keep(quality, {**json.loads(quality.read_text()), **told})
    _copy(figure, kept_copy(figure))


def _made(kind: str, store: Path, alignment: Alignment) -> Link:
    """Return the provenance of the alignment of a store."""
    before = open_pairs(store).facts if kind == "pairs" else open_volume(store).facts
    weights = []
    if alignment.method == "warp" or (kind == "pairs" and alignment.method == "auto"):
        weights = [link_of_weights(alignment.weights)]
    settings = alignment.model_dump(mode="json", exclude={"weights"})
    return made_by("alignment", before.dataset or "", settings, require_made(before, store), *weights)


def _stands(made: Link, out: Path, quality: Path, figure: Path) -> bool:
    """Return whether the registration is up to date; if so, restore missing outputs from their copies."""
    copies = [kept_copy(path) for path in (out / "zarr.json", quality, figure)]
    if not all(copy.is_file() for copy in copies):
        return False
    found = put_back(quality, made)
    if found is None or (out_made := read_link(copies[0])).hash != found.get("registered"):
        return False
    put_back(out / "zarr.json", out_made)
    if not figure.exists():
        _copy(copies[2], figure)
    return True


def _copy(file: Path, place: Path) -> None:
    with replaced_file(place) as partial:
        partial.write_bytes(file.read_bytes())
