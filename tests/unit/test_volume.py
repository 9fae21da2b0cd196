"""Stores: written data are read back, unfinished or damaged ones refused, metadata follow OME-Zarr 0.5."""

import contextlib
import json
import multiprocessing
import os
import resource

import numpy as np
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import Image

from emdiffuse.runtime.atomic import replaced, write_atomically
from emdiffuse.runtime.errors import AccessError, StoreError
from emdiffuse.stores.array import Array, create_array, create_image_array
from emdiffuse.stores.facts import VolumeFacts
from emdiffuse.stores.intensity import cast_to
from emdiffuse.stores.pyramid import build_pyramid
from emdiffuse.stores.volume import multiscale, open_volume, write_group, write_image


@pytest.fixture
def image(tmp_path):
    """An anisotropic volume of 9 x 130 x 100 voxels of 40 x 10 x 10 nm, with three levels."""
    path = tmp_path / "image.ome.zarr"
    values = np.random.default_rng(0).integers(0, 255, (9, 130, 100), dtype=np.uint8)
    array = create_image_array(path / "0", values.shape, values.dtype)
    for index in np.ndindex(*array.grid):
        array[array.box(index)] = values[array.box(index)]
    scales = build_pyramid(path, (40, 10, 10))
    levels = [str(i) for i in range(len(scales))]
    ome = {"version": "0.5", "multiscales": [multiscale("image", (40, 10, 10), levels, scales)]}
    write_group(path, {"ome": ome, "emdiffuse": {"dataset": "test"}})
    return path, values, scales


def test_anisotropic_volumes_become_isotropic_first(image):
    path, _, scales = image
    assert scales == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert [Array(path / str(i)).shape for i in range(3)] == [(9, 130, 100), (9, 65, 50), (9, 33, 25)]


def test_levels_average_and_repeat_the_last_voxel_at_odd_ends(tmp_path):
    values = np.arange(3 * 66 * 66, dtype=np.float32).reshape(3, 66, 66)
    array = create_image_array(tmp_path / "0", values.shape, values.dtype)
    array[array.box((0, 0, 0))] = values
    assert build_pyramid(tmp_path, (1, 1, 1)) == [(1, 1, 1), (2, 2, 2)]
    coarse = Array(tmp_path / "1")[:, :, :]
    assert coarse.shape == (2, 33, 33)
    assert coarse[0, 5, 7] == values[0:2, 10:12, 14:16].mean()
    assert coarse[1, 5, 7] == values[2, 10:12, 14:16].mean()


def test_metadata_is_ome_zarr_0_5(image):
    path, values, _ = image
    Image.from_zarr(zarr.open_group(path, mode="r"))  # raises when anything is wrong
    (node,) = Reader(parse_url(str(path)))()
    np.testing.assert_array_equal(node.data[0].compute(), values)
    assert [axis["unit"] for axis in node.metadata["axes"]] == ["nanometer"] * 3
    assert zarr.open_array(path / "0", mode="r").shards is not None
    volume = open_volume(path)
    assert volume.voxel_size == (40, 10, 10) and volume.facts.dataset == "test"


def test_pixels_of_a_coarse_level_stay_where_they_are(image):
    level = multiscale("image", (40, 10, 10), ["2"], [(1, 4, 4)])["datasets"][0]
    scale, translation = (t[t["type"]] for t in level["coordinateTransformations"])
    assert scale == [40, 40, 40]
    assert translation == [
        0,
        15,
        15,
    ]  # the centre of four 10 nm pixels lies 15 nm behind the centre of the first


def test_a_store_that_is_not_finished_is_refused(tmp_path):
    create_image_array(tmp_path / "a.ome.zarr" / "0", (4, 4, 4), np.uint8)
    with pytest.raises(StoreError, match="no finished Zarr group"):
        open_volume(tmp_path / "a.ome.zarr")


@pytest.mark.parametrize("text", ["{", '{"node_type": "array"}', '{"node_type": "group", "attributes": {}}'])
def test_a_foreign_group_is_refused(tmp_path, text):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_volume(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_chunk_is_found(tmp_path, damage):
    array = create_array(tmp_path / "a", (1, 64, 64), np.float32, chunk=(1, 64, 64))
    array[array.box((0, 0, 0))] = np.random.default_rng(0).random((1, 64, 64), np.float32)
    file = array.chunk_path((0, 0, 0))
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    else:
        del content[-100:]
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Array(tmp_path / "a")[:, :, :]


@contextlib.contextmanager
def no_more_files(chunk):
    """Raise the process's limit of open files to the maximum."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for handle in held:
            os.close(handle)


@contextlib.contextmanager
def instead(chunk, place):
    """Make a chunk's path point to an unreadable place."""
    aside = chunk.with_name("aside")
    chunk.rename(aside)
    chunk.symlink_to(place)
    yield
    assert chunk.is_symlink(), "what could not be read was deleted"
    aside.replace(chunk)


TROUBLES = {
    "Too many open files": no_more_files,
    "Input/output error": lambda chunk: instead(chunk, "/proc/self/mem"),
}


@pytest.mark.parametrize("cause", TROUBLES)
@pytest.mark.parametrize("shard", [None, (2, 64, 64)])
def test_a_trouble_of_the_machine_is_no_damage(tmp_path, cause, shard):
    array = create_array(tmp_path / "a", (2, 64, 64), np.uint8, chunk=(2, 32, 32), shard=shard)
    values = np.random.default_rng(0).integers(0, 255, array.shape, np.uint8)
    array[:, :, :] = values
    for use in (lambda: array.intact((0, 0, 0)), lambda: array[:, :, :], lambda: array.loss((0, 0, 0))):
        with TROUBLES[cause](array.chunk_path((0, 0, 0))), pytest.raises(AccessError, match=cause):
            use()
    np.testing.assert_array_equal(array[:, :, :], values)


def test_too_many_open_files_is_no_unfinished_array(tmp_path):
    create_array(tmp_path / "a", (4, 4), np.uint8, chunk=(2, 2))
    with no_more_files(tmp_path / "a"), pytest.raises(OSError, match="Too many open files"):
        Array(tmp_path / "a")


def test_a_chunk_of_zeros_is_written_too(tmp_path):
    array = create_array(tmp_path / "a", (4, 4), np.float32, chunk=(2, 2))
    array[array.box((1, 0))] = np.zeros((2, 2), np.float32)
    assert array.exists((1, 0)) and not array.exists((0, 0))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_part(partial, name):
    """Write a file as in a store."""
    (partial / "c").mkdir(exist_ok=True)
    (partial / "c" / name).write_text(name)


def test_replaced_keeps_the_old_until_the_new_is_whole(tmp_path):
    path = tmp_path / "store"
    with replaced(path) as partial:
        write_part(partial, "1")
    with pytest.raises(RuntimeError), replaced(path) as partial:
        write_part(partial, "2")
        raise RuntimeError
    assert names(tmp_path) == ["store"] and names(path / "c") == ["1"]


def _build(path, text, started, go):
    with replaced(path) as partial:
        write_part(partial, text)
        started.set()
        go.wait(120)
        write_part(partial, f"{text}-end")


def test_two_processes_that_build_one_store_do_not_mix(tmp_path):
    path = tmp_path / "store"
    context = multiprocessing.get_context("spawn")
    events = [(context.Event(), context.Event()) for _ in range(2)]
    builders = [context.Process(target=_build, args=(path, n, *e)) for n, e in zip("12", events, strict=True)]
    for builder, (started, _) in zip(builders, events, strict=True):
        builder.start()
        assert started.wait(120)
    for builder, (_, go) in zip(builders, events, strict=True):
        go.set()
        builder.join()
        assert builder.exitcode == 0
    assert names(path / "c") == ["2", "2-end"] and names(tmp_path) == ["store"]


def test_what_a_killed_builder_left_is_removed(tmp_path):
    path = tmp_path / "store"
    context = multiprocessing.get_context("spawn")
    started, go = context.Event(), context.Event()
    builder = context.Process(target=_build, args=(path, "1", started, go))
    builder.start()
    assert started.wait(120)
    builder.kill()
    builder.join()
    assert len(list(tmp_path.glob(".store.partial-*"))) == 1
    with replaced(path) as partial:
        write_part(partial, "3")
    assert names(tmp_path) == ["store"]


def test_write_atomically_leaves_no_temporary_file(tmp_path):
    write_atomically(tmp_path / "a.json", json.dumps({"a": 1}))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_cast_rounds_and_clips():
    np.testing.assert_array_equal(
        cast_to(np.array([-3.0, 1.5, 2.4, 300.0]), np.dtype(np.uint8)), [0, 2, 2, 255]
    )


def test_write_image_has_one_level(tmp_path):
    create_image_array(tmp_path / "0", (4, 4, 4), np.uint16)
    write_image(tmp_path, "a", (1, 2, 2), VolumeFacts())
    assert open_volume(tmp_path).voxel_size == (1, 2, 2)
