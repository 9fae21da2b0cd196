"""The alignment of what a model learns from: slices of volumes (`volumes`), image pairs (`fields`)."""

from __future__ import annotations

from pathlib import Path

from emdiffuse.config import Alignment
from emdiffuse.stores.volume import kind_of


def register(store: Path, alignment: Alignment, out: Path, quality: Path, figure: Path) -> None:
    """Align an acquired store, or check that it is aligned, and pass it on.

    Parameters
    ----------
    store : Path
        A volume, separate images, or pairs, as acquisition wrote them.
    alignment : Alignment
        Settings.
    out : Path
        The store to write.
    quality, figure : Path
        What was found, as JSON and as a picture.

    Raises
    ------
    DataError
        If it is not aligned, and cannot be; `out` is not written.
    StoreError
        If it cannot be read.
    """
    kind = kind_of(store)
    if kind == "pairs":  # each kind loads what it uses: OpenCV, SciPy's filters, torch
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
