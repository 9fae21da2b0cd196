"""Zarr (versions 2 and 3) and OME-Zarr, on disk, zipped or at a URL.

Conventions
-----------
* See `base`. Axes are named by OME-Zarr, by ``dimension_names`` (Zarr 3), or by ``_ARRAY_DIMENSIONS``
  (xarray); an array without names is (z, y, x). In a multiscale image `level` is read, with its voxel size.
* An array within a store is named by its path: ``volume.zarr/raw``. A group with a single image, as written
  by bioformats2raw, stands for that image; among several, `series` chooses.
* tensorstore reads most arrays; zarr-python reads codecs that it lacks, and zipped stores.
"""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.absent import boxes_of
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Box, Source, named
from emdiffuse.readers.groups import choose_image, images_in, is_zarr_image
from emdiffuse.readers.sizes import Size, told, unit_of
from emdiffuse.readers.stores import StoredArray, first_json, open_array, read_json
from emdiffuse.runtime.errors import DataError

Facts = Mapping[str, Any]
CODECS = ("codec", "compressor", "filter", "chunk_key_encoding", "data_type", "dtype")
"""Words in tensorstore's errors about features that zarr-python may support."""


class PythonArray(Source):
    """An array read by zarr-python.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    files : sequence of Path
        Files of the array.
    array : zarr.Array
        The array.
    layout : Layout
        Position of the stack in the array.
    voxel_size : tuple of float, optional
        Voxel size (z, y, x) in nanometers.
    """

    def __init__(
        self, name: str, files: Sequence[Path], array: Any, layout: Layout, voxel_size: Size | None
    ) -> None:
        super().__init__(name, layout.shape, array.dtype, layout.along(array.chunks), files, voxel_size)
        self._array = array
        self._layout = layout

    def look_for_chunks(self, is_there: Callable[[str], bool]) -> None:
        """Record which chunks (or shards) are missing.

        Parameters
        ----------
        is_there : callable
            Returns whether a chunk is stored, given its key within the array.
        """
        stored = self._array.shards or self._array.chunks
        boxes = list(boxes_of(self._layout.shape, self._layout.along(stored)))

        def key(box: Box) -> str:
            index = self._layout.region(box[0].start, box[0].stop, *box[1:])
            places = (side if isinstance(side, int) else side.start or 0 for side in index)
            coordinates = tuple(n // step for n, step in zip(places, stored, strict=True))
            found: str = self._array.metadata.encode_chunk_key(coordinates)
            return found

        self.absent = tuple(box for box in boxes if not is_there(key(box)))
        self.chunks = len(boxes)

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        with named(self.name, "Zarr array"):
            values: NDArray[Any] = self._array[self._layout.region(z0, z1, y, x)]
        return self._layout.arranged(self.where(z0), values).astype(self.stored, copy=False)


def open_zarr(name: str, place: str, reading: Reading) -> Source:
    """Open a Zarr array, or a level of an OME-Zarr image.

    Parameters
    ----------
    name : str
        Name of the data, for messages.
    place : str
        Folder or URL of the array, or of the group of the image.
    reading : Reading
        Which part to read.

    Raises
    ------
    DataError
        If it is missing, not a volume of a supported type, or the server does not respond.
    """
    driver, attributes, array = zarr_node(name, place)
    image, path = ome_image(name, attributes, reading), place
    level = 0
    if array is None:
        if image is None:
            inside, deeper = _image_below(name, place, reading)
            return open_zarr(f"{name.rstrip('/')}/{inside}", f"{place}/{inside}", deeper)
        level = _checked_level(name, image, reading)
        path = posixpath.join(place, image["datasets"][level]["path"])
        _, own, array = zarr_node(name, path)
    else:  # an array, which may be a level of an image
        own = attributes
        image, level = _image_around(name, place)
    names = axis_names(image) or _array_names(array or {}, own)
    return open_node(name, place, driver, path, names, _ome_size(image, level), attributes, reading)


def _image_below(name: str, place: str, reading: Reading) -> tuple[str, Reading]:
    """Return the path of the chosen image in a group, and the remaining choices."""
    if "://" in place:
        raise DataError(
            f"{name}: this is a Zarr group, not an image; name the array in it, such as {place}/0"
        )
    inside = choose_image(name, images_in(Path(place), is_zarr_image), reading, "Zarr group")
    return inside, reading.model_copy(update={"series": None})


def open_node(
    name: str,
    place: str,
    driver: str,
    path: str,
    names: Sequence[str | None] | None,
    size: Size | None,
    attributes: Facts,
    reading: Reading,
) -> Source:
    """Open an array with known axes and size, with tensorstore or zarr-python."""

    def is_about_codecs(text: str) -> bool:
        return any(word in text.lower() for word in CODECS)

    store = open_array(name, driver, path, reading, decline=is_about_codecs)
    if store is not None:
        layout = lay_out(name, store.shape, names, reading)
        return StoredArray(name, place, store, layout, size, attributes)
    import zarr

    with named(name, "Zarr array"):
        array = zarr.open_array(path, mode="r")
        layout = lay_out(name, array.shape, names, reading)
        local = "://" not in place
        opened = PythonArray(name, [Path(place)] if local else [], array, layout, size)
        # at a URL, chunks are not checked one by one
        opened.look_for_chunks(lambda key: not local or (Path(path) / key).is_file())
        return opened


def open_zipped(name: str, file: Path, inside: str, reading: Reading) -> Source:
    """Open an array or image in a zipped Zarr.

    Raises
    ------
    DataError
        As for `open_zarr`.
    """
    import zarr
    from zarr.storage import ZipStore

    with named(name, "zipped Zarr"):
        archive = zipfile.ZipFile(file)
        root: zipfile.Path = zipfile.Path(archive) / inside / "" if inside else zipfile.Path(archive)
        if not is_zarr_image(root):
            inside = posixpath.join(
                inside, choose_image(name, images_in(root, is_zarr_image), reading, "ZIP archive")
            )
            reading = reading.model_copy(update={"series": None})
        node: Any = zarr.open(ZipStore(file, mode="r"), mode="r", path=inside or None)
        image, level = None, 0
        if not isinstance(node, zarr.Array):
            image = ome_image(name, dict(node.attrs), reading)
            if image is None:
                raise DataError(f"{name}: this Zarr group is not an image; name the array in it")
            level = _checked_level(name, image, reading)
            node = node[image["datasets"][level]["path"]]
        names = axis_names(image) or _array_names(node.metadata.to_dict(), dict(node.attrs))
        layout = lay_out(name, node.shape, names, reading)
        opened = PythonArray(name, [file], node, layout, _ome_size(image, level))
        entries = set(archive.namelist())
        opened.look_for_chunks(lambda key: posixpath.join(node.path, key) in entries)
        return opened


def zarr_node(
    name: str, place: str, needed: bool = True
) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Return driver and attributes of a node, and its metadata if it is an array."""
    found = first_json(name, place, ("zarr.json", ".zarray", ".zgroup"))
    if found is None:
        if needed and not Path(place).is_dir():
            raise DataError(f"{name}: there is no Zarr array or group; check the path")
        return "zarr", {}, None
    key, node = found
    if key == "zarr.json":
        return "zarr3", dict(node.get("attributes") or {}), node if node.get("node_type") == "array" else None
    attributes = first_json(name, place, (".zattrs",)) if key == ".zgroup" else None
    if key == ".zarray":
        attributes = _attributes_if_there(name, place)
    return "zarr", attributes[1] if attributes else {}, node if key == ".zarray" else None


def _attributes_if_there(name: str, place: str) -> tuple[str, dict[str, Any]] | None:
    """Return the attributes of a Zarr 2 array; a bucket may respond "forbidden" if there are none."""
    try:
        found = read_json(name, place, ".zattrs")
    except DataError:
        return None
    return None if found is None else (".zattrs", found)


def ome_image(name: str, attributes: Facts, reading: Reading) -> dict[str, Any] | None:
    """Return the multiscale image that a group describes (OME-Zarr up to 0.4, or 0.5); `series` chooses."""
    found = attributes.get("ome", attributes).get("multiscales") or []
    images = [image for image in found if isinstance(image, dict) and image.get("datasets")]
    if not images:
        return None
    names = [str(image.get("name", i)) for i, image in enumerate(images)]
    choice = reading.series
    if isinstance(choice, str) and choice not in names and choice.isdigit():
        choice = int(choice)
    if isinstance(choice, str) and choice in names:
        return images[names.index(choice)]
    if choice is None and len(images) == 1:
        return images[0]
    if choice is None or isinstance(choice, str) or not 0 <= choice < len(images):
        raise DataError(
            f"{name}: contains {len(images)} images ({', '.join(names)}); choose one with `series`"
        )
    return images[choice]


def _checked_level(name: str, image: Facts, reading: Reading) -> int:
    if reading.level >= len(image["datasets"]):
        raise DataError(
            f"{name}: `level` is {reading.level}, but there are {len(image['datasets'])}, counted from 0"
        )
    return reading.level


def _image_around(name: str, place: str) -> tuple[dict[str, Any] | None, int]:
    """Return the image that an array belongs to, and its level; None if there is none."""
    above, _, last = place.rpartition("/")
    if not above or above.endswith(":/"):
        return None, 0
    try:
        attributes = zarr_node(name, above, needed=False)[1]
    except DataError:  # the parent of an array need not be readable
        return None, 0
    for image in attributes.get("ome", attributes).get("multiscales") or []:
        for level, dataset in enumerate(image.get("datasets", []) if isinstance(image, dict) else []):
            if dataset.get("path") == last:
                return image, level
    return None, 0


def axis_names(image: Facts | None) -> list[str] | None:
    """Return the axes of an image, or None if unnamed (OME-Zarr up to 0.2 has five)."""
    if image is None:
        return None
    axes = image.get("axes")
    if axes is None:
        return None
    return [str(axis["name"]) if isinstance(axis, dict) else str(axis) for axis in axes]


def _array_names(array: Facts, attributes: Facts) -> list[str | None] | None:
    names = array.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS")
    return list(names) if names is not None else None


def _ome_size(image: Facts | None, level: int) -> Size | None:
    """Return the voxel size (z, y, x) of a level in nanometers, as far as scale and unit are stated."""
    axes = axis_names(image)
    if image is None or axes is None:
        return None
    total = [1.0] * len(axes)
    for found in (image["datasets"][level], image):
        for step in found.get("coordinateTransformations", []):
            if step.get("type") == "scale" and len(step["scale"]) == len(axes):
                total = [a * float(b) for a, b in zip(total, step["scale"], strict=True)]
    by_axis = dict(zip(axes, total, strict=True))
    units = {axis["name"]: axis.get("unit") for axis in image["axes"] if isinstance(axis, dict)}
    return told([by_axis.get(axis) for axis in "zyx"], [unit_of(units.get(axis)) for axis in "zyx"])
