"""An array in an HDF5 file: ``file.h5:/path``, or without a path the only one in the file. Imaris too.

Conventions
-----------
* See `base`. Axes are those of ``axistags`` (ilastik, vigra) or of HDF5's dimension labels, else (z, y, x).
* The voxel size is that of ``element_size_um`` (ImageJ, ilastik; one number or one per axis), or of
  ``resolution`` (CREMI, in nanometers).
* Additional compressions (Blosc, LZ4, Zstandard, ...) need hdf5plugin.
* Imaris (``.ims``) pads its chunks: pixels beyond the stated size are not part of the image.
* HDF5 reads a chunk that was never written as its fill value. Here it counts as missing, as in any other
  store.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.absent import boxes_of
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Box, Source, named
from emdiffuse.readers.sizes import Size, told, unit_of
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.extras import require

IMARIS = "DataSet/ResolutionLevel {level}/TimePoint {timepoint}/Channel {channel}/Data"
SHOWN = 5
"""Maximum number of arrays that a message names."""


class Hdf5Array(Source):
    """A dataset of an HDF5 file, kept open; h5py allows one reading thread at a time.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    dataset : h5py.Dataset
        The dataset.
    file : Path
        The file.
    layout : Layout
        Position of the stack in the dataset.
    voxel_size : tuple of float or None
        Voxel size (z, y, x) in nanometers.
    """

    def __init__(self, name: str, dataset: Any, file: Path, layout: Layout, voxel_size: Size | None) -> None:
        _require_own_pixels(name, dataset)
        block = layout.along(dataset.chunks)
        super().__init__(name, layout.shape, dataset.dtype, block, [file], voxel_size)
        self._dataset = dataset
        self._layout = layout
        self.absent, self.chunks = _absent(dataset, layout)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        with named(self.name, "HDF5 file"):
            try:
                values: NDArray[Any] = self._dataset[self._layout.region(z0, z1, y, x)]
            except OSError as error:
                raise _named_filter(self.name, error) from None
        return self._layout.arranged(self.where(z0), values).astype(self.stored, copy=False)


def _require_own_pixels(name: str, dataset: Any) -> None:
    """Refuse pixels stored in other files, since these could be any file that the user can read.

    Raises
    ------
    DataError
        If the dataset uses external storage, or is virtual.
    """
    others = [place for place, *_ in dataset.external or ()]
    if dataset.is_virtual:
        others += [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    if others:
        raise DataError(
            f"{name}: its pixels are stored in another file ({others[0]}), which is not followed; give that "
            "file, or copy all into one (h5repack)"
        )


def _absent(dataset: Any, layout: Layout) -> tuple[tuple[Box, ...], int]:
    """Return the boxes (z, y, x) of the chunks that were never written, and the number of all chunks.

    An interrupted recording lacks its last chunks.
    """
    if dataset.is_virtual:
        return (), 1
    if dataset.chunks is None:  # contiguous, and allocated as a whole once something is written
        whole: Box = (slice(0, layout.shape[0]), slice(0, layout.shape[1]), slice(0, layout.shape[2]))
        return (() if dataset.id.get_offset() is not None or dataset.id.get_storage_size() else (whole,)), 1
    boxes = list(boxes_of(layout.shape, layout.along(dataset.chunks)))
    stored = math.prod(-(-n // step) for n, step in zip(dataset.shape, dataset.chunks, strict=True))
    if dataset.id.get_num_chunks() >= stored:
        return (), len(boxes)
    written = {dataset.id.get_chunk_info(i).chunk_offset for i in range(dataset.id.get_num_chunks())}

    def first_voxel(box: Box) -> tuple[int, ...]:
        """Return the first index of a box's chunk in the dataset."""
        index = layout.region(box[0].start, box[0].stop, *box[1:])
        places = [side if isinstance(side, int) else side.start or 0 for side in index]
        return tuple(n // step * step for n, step in zip(places, dataset.chunks, strict=True))

    return tuple(box for box in boxes if first_voxel(box) not in written), len(boxes)


def _named_filter(name: str, error: OSError) -> Exception:
    """Return an error that names a missing filter, or the original error."""
    text = str(error).lower()
    if "plugin" in text or ("filter" in text and ("registered" in text or "not available" in text)):
        return DataError(
            f"{name}: its pixels are compressed with a filter that is not installed; install hdf5plugin "
            "(`pip install 'emdiffuse[formats]'`), or repack the file with gzip (h5repack)"
        )
    return error


def open_hdf5(file: Path, inside: str, reading: Reading) -> Hdf5Array:
    """Open an array of an HDF5 file.

    Parameters
    ----------
    file : Path
        The file.
    inside : str
        Path of the array; empty for the only array.
    reading : Reading
        Which part to read.

    Raises
    ------
    ConfigError
        If the library is missing.
    DataError
        If there is no such array, or it is not one volume of a supported type.
    """
    h5py = require("h5py", "formats", f"{file}: reading HDF5")
    with contextlib.suppress(ImportError):  # ordinary files do not need it; others are reported when read
        import hdf5plugin  # noqa: F401  (its filters register themselves)
    with named(str(file), "HDF5 file"):
        opened = h5py.File(file, "r")
        if not inside and "DataSetInfo" in opened and "DataSet" in opened:
            return _open_imaris(file, opened, reading)
        arrays: dict[str, Any] = {}
        opened.visititems(
            lambda name, node: arrays.update({name: node}) if isinstance(node, h5py.Dataset) else None
        )
        volumes = _volumes(arrays)
        path = inside or (volumes[0] if len(volumes) == 1 else "")
        node = opened.get(path) if path else None
        if not isinstance(node, h5py.Dataset):
            raise DataError(_none_chosen(file, inside, volumes, arrays))
        where = f"{file}:/{path}"
        if np.dtype(node.dtype).kind not in "biuf":
            raise DataError(
                f"{where}: pixels of type {node.dtype} are not supported; convert them to real numbers"
            )
        layout = lay_out(where, node.shape, _axis_names(node), reading)
        return Hdf5Array(where, node, file, layout, _voxel_size(node, layout.letters))


def _volumes(arrays: dict[str, Any]) -> list[str]:
    """Return the names of the volumes among datasets, or else of the images."""
    numbers = {
        name: node.ndim for name, node in arrays.items() if node.ndim >= 2 and node.dtype.kind in "biuf"
    }
    return [name for name, rank in numbers.items() if rank >= 3] or list(numbers)


def _none_chosen(file: Path, inside: str, volumes: list[str], arrays: dict[str, Any]) -> str:
    """Return why no array can be chosen, and which ones exist."""
    what = f"there is no array '/{inside}' in it" if inside else "name the array to read"
    if volumes:
        more = f" and {len(volumes) - SHOWN} more" if len(volumes) > SHOWN else ""
        return f"{file}: {what}; it contains {', '.join(f'{file}:/{name}' for name in volumes[:SHOWN])}{more}"
    others = [
        f"/{name} ({' x '.join(map(str, node.shape or ()))} {node.dtype})" for name, node in arrays.items()
    ]
    return (
        f"{file}: it contains no volume or image of real numbers"
        + (f", but {', '.join(others[:SHOWN])}" if others else "")
        + "; export the image itself"
    )


def _axis_names(dataset: Any) -> list[str] | None:
    """Return the axis names of the file, or None."""
    tags = dataset.attrs.get("axistags")
    if tags is not None:
        text = tags.decode() if isinstance(tags, bytes) else str(tags)
        try:
            return [str(axis["key"]) for axis in json.loads(text)["axes"]]
        except (ValueError, KeyError, TypeError):
            return None
    labels = [dim.label for dim in dataset.dims]
    return labels if any(labels) else None


def _voxel_size(dataset: Any, letters: str) -> Size | None:
    """Return the voxel size (z, y, x) from the attributes, which follow the stored axes."""
    for key, unit in (("element_size_um", 1e3), ("resolution", 1.0)):
        value = dataset.attrs.get(key)
        if value is None:
            continue
        try:
            numbers = np.atleast_1d(np.asarray(value, float)).ravel()
        except (TypeError, ValueError):  # free text
            continue
        given = dataset.attrs.get(f"{key}_unit", dataset.attrs.get("units") if key == "resolution" else None)
        scale = unit_of(np.atleast_1d(given)[0]) if given is not None else unit
        if len(numbers) == 1:
            return told([numbers[0]] * 3, [scale] * 3)
        spatial = [i for i, letter in enumerate(letters) if letter in "zyx"]
        if len(numbers) == len(letters):
            by_axis = {letters[i]: numbers[i] for i in spatial}
        elif len(numbers) == len(spatial):
            by_axis = {letters[i]: number for i, number in zip(spatial, numbers, strict=True)}
        else:
            continue
        return told([by_axis.get(axis) for axis in "zyx"], [scale] * 3)
    return None


def _open_imaris(file: Path, opened: Any, reading: Reading) -> Hdf5Array:
    """Open the finest or the chosen level of an Imaris file."""
    info = {key: _text(value) for key, value in opened["DataSetInfo/Image"].attrs.items()}
    level = opened.get(f"DataSet/ResolutionLevel {reading.level}")
    if level is None:
        raise DataError(f"{file}: there is no `level` {reading.level}; choose another one")
    times, channels = len(level), len(level["TimePoint 0"])
    counts = (times, channels, 1, 2, 2)  # y and x are placeholders: only t and c are chosen here
    chosen = lay_out(str(file), counts, "tczyx", reading).fixed
    path = IMARIS.format(level=reading.level, timepoint=chosen[0], channel=chosen[1])
    dataset = opened[path]
    group = dataset.parent.attrs
    lengths = [
        int(_text(group[f"ImageSize{axis}"])) if f"ImageSize{axis}" in group else n
        for axis, n in zip("ZYX", dataset.shape, strict=True)
    ]
    plain = reading.model_copy(update={"channel": None, "timepoint": None, "axes": None})
    layout = lay_out(str(file), lengths, "zyx", plain)
    try:
        unit = unit_of(info.get("Unit", "um"))
        ends = [float(info[f"ExtMax{i}"]) - float(info[f"ExtMin{i}"]) for i in (2, 1, 0)]
        size = told([end / n for end, n in zip(ends, lengths, strict=True)], [unit] * 3)
    except (KeyError, ValueError):
        size = None
    return Hdf5Array(f"{file}:/{path}", dataset, file, layout, size)


def _text(value: Any) -> str:
    """Return an Imaris attribute, which is an array of characters, as text."""
    array = np.asarray(value)
    return b"".join(array.ravel().tolist()).decode() if array.dtype.kind == "S" else str(value)
