"""Raw data, whatever the format, read as lazy stacks of slices.

Conventions
-----------
* See `base` for what a source is, and `emdiffuse.config.sources` for how it is named.
* A format lies in a module of its own, whose library is loaded when such a file is opened.
"""

from __future__ import annotations

from pathlib import Path

from emdiffuse.config.sources import SUFFIXES, parse_source, require_source, source_files
from emdiffuse.readers.base import DTYPES, Source
from emdiffuse.readers.tiff import NumberedTiffs, open_tiff

__all__ = ["DTYPES", "SUFFIXES", "NumberedTiffs", "Source", "open_source", "source_files"]


def open_source(source: str, repair: bool = False) -> Source:
    """Open raw data, and check the metadata of all its files.

    Parameters
    ----------
    source : str
        A multi-page TIFF, BigTIFF or OME-TIFF; a folder of numbered TIFF slices, or a glob of them; an MRC
        file; an array in an HDF5 file (``file.h5:/path``); Zarr, OME-Zarr or N5; or Neuroglancer precomputed;
        the last two kinds also at an address (``https://``, ``gs://``, ``s3://``).
    repair : bool
        Whether a gap in the numbers of slices is marked as missing, rather than refused.

    Returns
    -------
    Source
        The stack, of which no pixel was read yet.

    Raises
    ------
    DataError
        If there is no such data, a slice is missing, repeated, unreadable or unlike the others, the shape is
        not that of one volume, or the type of the pixels is not supported.
    """
    name = parse_source(source)
    if name.kind == "tiff":
        return open_tiff(source, repair)
    require_source(source, name)
    if name.kind == "mrc":
        from emdiffuse.readers.mrc import open_mrc

        return open_mrc(Path(name.place))
    if name.kind == "hdf5":
        from emdiffuse.readers.hdf5 import open_hdf5

        return open_hdf5(Path(name.place), name.inside)
    if name.kind == "precomputed":
        from emdiffuse.readers.precomputed import open_precomputed

        return open_precomputed(source, name.place)
    from emdiffuse.readers.zarr import open_n5, open_zarr

    return (open_n5 if name.kind == "n5" else open_zarr)(source, name.place)
