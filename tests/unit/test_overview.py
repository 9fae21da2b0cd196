"""Progress of restorations, read from their stores."""

import os
import re
import time

import pytest
from restoring import chunks, run, settings

from emdiffuse.restoration import overview
from emdiffuse.restoration.planning import make_plan
from emdiffuse.restoration.stitch import stitch
from emdiffuse.restoration.tiles import restore
from emdiffuse.runtime.errors import StoreError


def lines(folder):
    return overview.table(overview.states(folder)).splitlines()


def test_a_restoration_from_plan_to_volume(dataset, small_model, tmp_path):
    folder = tmp_path / "restored/a/m"
    plan = make_plan(dataset, small_model, settings(), folder / "plan.json")
    assert lines(tmp_path) == ["a by m: restoring, 0 of 8 blocks (0%), no block in the last 10:00"]
    restore(folder / "plan.json", 1, 2)
    now = time.time()
    os.utime(folder / "plan.json", (now - 100, now - 100))
    line = lines(tmp_path)[0]
    assert line.startswith("a by m: restoring, 4 of 8 blocks (50%), ")
    assert float(line.split()[9]) == pytest.approx(25 * 100 * 84 / 2 / 100, rel=0.2)  # in 100 seconds
    minutes, seconds = re.search(r" (\d+):(\d\d) left$", line).groups()
    assert 60 * int(minutes) + int(seconds) == pytest.approx(100, rel=0.2)
    for path in chunks(plan)[::2]:
        os.utime(path, (now - 700, now - 700))
    os.utime(folder / "plan.json", (now - 1000, now - 1000))
    assert lines(tmp_path)[0].endswith("no block in the last 10:00")
    restore(folder / "plan.json", 2, 2)
    assert lines(tmp_path) == ["a by m: stitching, 0 of 2 shards (0%)"]
    stitch(folder / "plan.json", 1, 1)
    assert lines(tmp_path) == ["a by m: stitching, 2 of 2 shards (100%)"]
    run(dataset, small_model, folder)
    assert lines(tmp_path) == ["a by m: finished"]


def test_several_are_summed_up(dataset, small_model, tmp_path):
    for model in ("m", "n"):
        folder = tmp_path / f"restored/a/{model}"
        make_plan(dataset, small_model, settings(), folder / "plan.json")
    restore(folder / "plan.json", 1, 4)
    assert len(lines(tmp_path)) == 3 and "total: 2 restorations, " in lines(tmp_path)[2]


def test_a_folder_without_plans_is_named(tmp_path):
    with pytest.raises(StoreError, match="there is no planned restoration"):
        overview.states(tmp_path)
