"""Every reader is given files with every kind of damage, and hostile values in every field of metadata."""

import gzip
import json
import typing

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from hostile import as_text, bounded, damages, odd_files, variants
from microscope_files import amira, czi, digital_micrograph, fibsem, imaris, n5, nrrd, webknossos

from emdiffuse.config.reading import Raw, Reading
from emdiffuse.config.sources import Kind, parse_source
from emdiffuse.readers import open_source
from emdiffuse.viewing.precomputed import export_precomputed

SHAPE = (4, 16, 16)
VALUES = np.random.default_rng(0).integers(1, 255, SHAPE).astype(np.uint8)


def _mrc(folder):
    with mrcfile.new(folder / "a.mrc", VALUES.astype(np.int16)) as file:
        file.voxel_size = 80.0
    return folder / "a.mrc"


def _hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("v", data=VALUES, chunks=(1, 16, 16), compression="gzip")
    return folder / "a.h5"


def _precomputed(folder):
    group = zarr.create_group(folder / "a.zarr")
    zarr.create_array(folder / "a.zarr/0", data=VALUES)
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    transformations = [{"type": "scale", "scale": [40.0, 8.0, 8.0]}]
    levels = [{"path": "0", "coordinateTransformations": transformations}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    export_precomputed(folder / "a.zarr", folder / "p")
    return folder / "p"


def _zarr(folder, version):
    array = zarr.create_array(folder / "a.zarr", data=VALUES, chunks=(1, 16, 16), zarr_format=version)
    array.attrs["note"] = "x"
    return folder / "a.zarr"


def _bare(folder):
    (folder / "a.raw").write_bytes(VALUES.tobytes())
    return folder / "a.raw"


def _array(folder):
    np.save(folder / "a.npy", VALUES)
    return folder / "a.npy"


def _tiff(folder):
    known = {"axes": "ZYX", "spacing": 0.04, "unit": "um"}
    tifffile.imwrite(folder / "a.tif", VALUES, imagej=True, metadata=known)
    return folder / "a.tif"


def _packed(folder):
    (folder / "a.mrc.gz").write_bytes(gzip.compress(_mrc(folder).read_bytes()))
    return folder / "a.mrc.gz"


MAKERS = {
    "image": _tiff,
    "mrc": _mrc,
    "mrc, packed": _packed,
    "hdf5": _hdf5,
    "imaris": lambda folder: imaris(folder, VALUES),
    "zarr, version 2": lambda folder: _zarr(folder, 2),
    "zarr, version 3": lambda folder: _zarr(folder, 3),
    "n5": lambda folder: n5(folder, VALUES),
    "precomputed": _precomputed,
    "webknossos": lambda folder: webknossos(folder, VALUES),
    "dm3": lambda folder: digital_micrograph(folder / "a.dm3", [VALUES]),
    "dm4": lambda folder: digital_micrograph(folder / "a.dm4", [VALUES], 4),
    "czi": lambda folder: czi(folder, VALUES),
    "amira": lambda folder: amira(folder / "a.am", VALUES),
    "amira, packed": lambda folder: amira(folder / "a.am", VALUES, "HxZip"),
    "fibsem": lambda folder: fibsem(folder / "a.dat", VALUES[0][..., None]),
    "nrrd": lambda folder: nrrd(folder / "a.nrrd", VALUES),
    "nrrd, packed": lambda folder: nrrd(folder / "a.nrrd", VALUES, gzipped=True),
    "npy": _array,
    "raw": _bare,
}
READING = {"raw": Reading(raw=Raw(shape=SHAPE, dtype="uint8"))}
MOST = 4
"""Damaged files of a store: its metadata, and some chunks."""


def read(source, reading):
    """Read like a stage: its metadata and its slices."""
    with bounded():
        opened = open_source(source, reading=reading)
        if np.prod(opened.shape, dtype=float) < 2**24:  # what is larger is another's business: of its memory
            for z in range(opened.shape[0]):
                opened.read(z, z + 1)


@pytest.mark.parametrize("maker", MAKERS)
def test_readers(maker, tmp_path, attempt):
    (tmp_path / "in").mkdir()
    source = str(MAKERS[maker](tmp_path / "in"))
    reading = READING.get(maker)
    read(source, reading)
    place = parse_source(source).place
    files = [path for path in (tmp_path / "in").rglob("*") if path.is_file() and str(path).startswith(place)]
    for path in sorted(files, key=lambda path: (path.suffix != ".json" and path.name[0] != ".", path))[:MOST]:
        good = path.read_bytes()
        changes = list(damages(good))
        try:
            known = json.loads(good)
        except ValueError:
            pass
        else:
            changes += [(what, as_text(content).encode()) for what, content in variants(known)]
        for what, content in changes:
            path.write_bytes(content)
            attempt(f"{maker}, {path.name}, {what}", lambda: read(source, reading))
        path.unlink()
        attempt(f"{maker}, {path.name}, gone", lambda: read(source, reading))
        path.write_bytes(good)


@pytest.mark.parametrize(
    "ending", [".tif", ".mrc", ".h5", ".dm3", ".czi", ".am", ".dat", ".nrrd", ".npy", ".zip"]
)
def test_strange_files_of_every_format(ending, tmp_path, attempt):
    for what, path in odd_files(tmp_path, b"years of work", ending).items():
        attempt(f"{ending}, {what}", lambda path=path: read(str(path), None))


def test_every_reader_is_among_them(tmp_path):
    kinds = set()
    for number, make in enumerate(MAKERS.values()):
        (tmp_path / str(number)).mkdir()
        kinds.add(parse_source(str(make(tmp_path / str(number)))).kind)
    assert kinds == set(typing.get_args(Kind))
