"""Faults that happen: killed and doubled workers, a full disk, damaged chunks, changed inputs.

After each of them, a restart gives the bytes of an undisturbed run. Workers are separate processes that run
the command line, like the workflow's jobs.
"""

import multiprocessing
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import raw_file, write_volume
from restoring import chunks, content, cut, flip, run, settings
from safetensors.torch import load_file, save_file

from emdiffuse.restoration.empty import LAYER
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import pyramid, stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.restoration.verify import verify_restoration
from emdiffuse.runtime.errors import StoreError
from emdiffuse.stores.array import Array


def _command(arguments, log):
    """Run the command line in this process."""
    from emdiffuse.cli import main

    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = ["emdiffuse", "--threads", "1", *map(str, arguments)]
    torch.set_num_threads(1)
    main()


@pytest.fixture(scope="module")
def start():
    """Start a command in a separate process with all imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["emdiffuse.restoration.tiles", "emdiffuse.restoration.stitch", "emdiffuse.cli"]
    )

    def start(*arguments, log=Path(os.devnull)):
        process = context.Process(target=_command, args=(arguments, log))
        process.start()
        return process

    return start


@pytest.fixture
def plan(dataset, small_model, tmp_path):
    """The plan of the reference, in another folder."""
    torch.set_num_threads(1)
    return make_plan(dataset, small_model, settings(), tmp_path / "plan.json")


def stages(plan, workers=1):
    """Return the commands from plan to volume, stage by stage."""
    path = plan.folder / "plan.json"
    shares = [
        [
            (
                stage,
                path,
                "--worker",
                f"{n}-of-{workers}",
                "--done",
                plan.folder / f"{mark}-{n}-of-{workers}.done",
            )
            for n in range(1, workers + 1)
        ]
        for stage, mark in (("restore", "restored"), ("stitch", "stitched"))
    ]
    return [*shares, [("pyramid", path)]]


def start_again(plan):
    """Run the commands not marked as done, like a restarted workflow."""
    path = plan.folder / "plan.json"
    for stage, mark in ((restore, "restored"), (stitch, "stitched")):
        if not (plan.folder / f"{mark}-1-of-1.done").exists():
            stage(path, 1, 1)
            (plan.folder / f"{mark}-1-of-1.done").touch()
    pyramid(path)


def test_workers_that_are_killed_again_and_again(plan, reference, start):
    pick = random.Random(0)
    killed = 0
    for commands in stages(plan, workers=2):
        # from 0.01 s, in which no worker ends, to 1 s: some are killed on any machine
        for patience in (*sorted(10 ** pick.uniform(-2, 0) for _ in range(6)), None):
            workers = [start(*command) for command in commands]
            for worker in workers:
                worker.join(patience)
                killed += worker.is_alive()
                worker.kill()
                worker.join()
        assert all(worker.exitcode == 0 for worker in workers)
    assert killed > 4
    assert content(plan.restored) == content(reference.restored)


def test_two_copies_of_each_worker(plan, reference, start):
    for commands in stages(plan)[:2]:
        workers = [start(*command) for command in 2 * commands]
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
    pyramid(plan.folder / "plan.json")
    assert content(plan.restored) == content(reference.restored)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_full_disk_is_one_sentence_and_can_be_gone_on_from(
    dataset, small_model, reference, start, small_disk, stage
):
    disk, leave = small_disk
    plan = make_plan(dataset, small_model, settings(), disk / "plan.json")
    for number, commands in enumerate(stages(plan)):
        if number == stage:
            leave(room=40_000 if stage < 2 else 8_000)
            log = disk.parent / "log"
            worker = start(*commands[0], log=log)
            worker.join()
            lines = [line for line in log.read_text().splitlines() if "INFO" not in line]
            assert worker.exitcode == 1 and len(lines) == 1, lines
            assert lines[0].startswith("error: ") and str(disk) in lines[0]
            assert not (plan.restored / "zarr.json").exists()
            leave(room=None)
        worker = start(*commands[0])
        worker.join()
        assert worker.exitcode == 0
    assert content(plan.restored) == content(reference.restored)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_block_alone_is_made_again(plan, reference, damage):
    start_again(plan)
    shutil.rmtree(plan.restored / "restored/0/c")
    (plan.folder / "stitched-1-of-1.done").unlink()
    before = [path.stat().st_mtime_ns for path in chunks(plan)]
    damage(chunks(plan)[1])
    with pytest.raises(StoreError, match="start again; only those blocks are recomputed"):
        start_again(plan)
    start_again(plan)
    after = [path.stat().st_mtime_ns for path in chunks(plan)]
    assert [n for n in range(len(after)) if after[n] != before[n]] == [1]
    assert content(plan.restored) == content(reference.restored)


def test_a_damaged_block_is_found_before_a_worker_goes_on(plan, reference):
    restore(plan.folder / "plan.json", 1, 1)
    for path, damage in zip(chunks(plan)[:2], (flip, cut), strict=True):
        damage(path)
    start_again(plan)
    assert content(plan.restored) == content(reference.restored)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_shard_alone_is_made_again(plan, reference, damage):
    start_again(plan)
    (plan.restored / "zarr.json").unlink()
    damage(Array(plan.restored / "restored/0").chunk_path((0, 0, 0)))
    with pytest.raises(StoreError, match=r"restored/0.*: .*; start again; only this shard is recomputed"):
        start_again(plan)
    assert not (plan.restored / "zarr.json").exists()
    start_again(plan)
    assert content(plan.restored) == content(reference.restored)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "part",
    [
        "restored/0/c/0/0/0", "uncertainty/0/c/0/0/0", "restored/1/c/0/0/0",
        "zarr.json", "restored/zarr.json", "uncertainty/0/zarr.json", "restored/1/zarr.json",
        "uncertainty", "restored/1",
    ],
)  # fmt: skip
def test_what_of_a_finished_volume_is_lost_is_found_and_made_again(plan, reference, part, damage, caplog):
    """Any file of any level, or a folder; no other shard of level 0 is written."""
    start_again(plan)
    verify_restoration(plan.folder / "plan.json")
    lost = plan.restored / part
    if lost.is_dir():
        shutil.rmtree(lost)
    elif damage is flip and lost.name == "zarr.json":
        lost.write_text(lost.read_text().replace("{", "[", 1))
    else:
        damage(lost)
    kept = {path: path.stat().st_mtime_ns for path in plan.restored.glob("*/0/c/0/0/0") if path != lost}
    kept = {
        path: time for path, time in kept.items() if LAYER not in path.parts
    }  # small; made with the metadata
    before = content(plan.folder)
    with pytest.raises(StoreError, match=r"verify .*/restored.ome.zarr --repair`, then run"):
        verify_restoration(plan.folder / "plan.json")
    assert str(lost) in caplog.text
    assert content(plan.folder) == before, "what is only looked at is not changed"
    verify_restoration(plan.folder / "plan.json", repair=True)
    start_again(plan)
    verify_restoration(plan.folder / "plan.json")
    assert content(plan.restored) == content(reference.restored)
    assert part == "uncertainty" or {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_lost_shard_and_the_block_that_it_is_made_of(plan, reference):
    start_again(plan)
    Array(plan.restored / "restored/0").chunk_path((0, 0, 0)).unlink()
    flip(chunks(plan)[0])
    (plan.tiles / "zarr.json").unlink()
    verify_restoration(plan.folder / "plan.json", repair=True)
    start_again(plan)
    assert content(plan.restored) == content(reference.restored)


@pytest.mark.parametrize("change", ["sources", "values", "size", "missing"])
def test_a_changed_input_is_refused(medulla, small_model, tmp_path, change):
    values = medulla[:19:6, :64, :64]
    path = write_volume(tmp_path / "a.ome.zarr", values, (60, 10, 10), sources=[raw_file("1")])
    make_plan(path, small_model, settings(steps=1, samples=1), tmp_path / "plan.json")
    restore(tmp_path / "plan.json", 1, 1, "cpu")
    facts = {"sources": [raw_file("2" if change == "sources" else "1")]}
    if change == "values":
        facts["intensity"] = {"low": 10.0, "high": 230.0}
    if change == "missing":
        facts["missing"] = [1]
    write_volume(path, values, (50 if change == "size" else 60, 10, 10), **facts)
    for stage in (restore, stitch):
        with pytest.raises(StoreError, match="changed since"):
            stage(tmp_path / "plan.json", 1, 1)
    plan = run(path, small_model, tmp_path, steps=1, samples=1)
    again = run(path, small_model, tmp_path / "again", steps=1, samples=1)
    assert content(plan.restored) == content(again.restored)


def test_a_changed_model_is_refused(dataset, small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    make_plan(dataset, model, settings(), tmp_path / "plan.json")
    restore(tmp_path / "plan.json", 1, 2, "cpu")
    weights = load_file(model / "model.safetensors")
    save_file({name: value * 1.1 for name, value in weights.items()}, model / "model.safetensors")
    with pytest.raises(StoreError, match="model: changed since"):
        restore(tmp_path / "plan.json", 2, 2, "cpu")
    plan = run(dataset, model, tmp_path)
    again = run(dataset, model, tmp_path / "again")
    assert content(plan.restored) == content(again.restored)


def test_what_killed_writers_left_is_no_part_of_the_volume(plan, reference):
    start_again(plan)
    (plan.restored / "zarr.json").unlink()
    for left in ("restored/0/c/0/0/0.__lock", "restored/.zarr.json.abc", ".zarr.json.abc"):
        (plan.restored / left).touch()
    start_again(plan)
    assert content(plan.restored) == content(reference.restored)
