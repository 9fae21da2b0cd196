"""A stage's numbers and figures replace only its own earlier ones: no foreign file, and no input."""

import json
import shutil

import pytest
from helpers import ROOT
from test_user_data import place, samples, settings, snapshot  # noqa: F401  (fixtures)

from emdiffuse.config import Alignment, Calibration, validate
from emdiffuse.evaluation.calibration import calibrate
from emdiffuse.evaluation.evaluate import evaluate, measure_baselines
from emdiffuse.registration.register import register
from emdiffuse.report.write import write_report
from emdiffuse.restoration.planning import make_plan
from emdiffuse.runtime.errors import OutputError

CONFIG = validate(
    {
        "datasets": {
            "a": {
                "source": str(ROOT / "resources/demo/medulla_test.tif"),
                "voxel_size": {"z": 60, "y": 10, "x": 10},
            }
        },
        "models": {"m": {"task": "vemdiffuse-i", "weights": "vemdiffuse"}},
        "restorations": [{"dataset": "a", "model": "m"}],
    }
)
TASK = "vemdiffuse-i"
THIN, TRUE = "thin.ome.zarr", "volume.ome.zarr"
STAGES = {
    "register, numbers": (
        "q.json",
        lambda w, out: register(w / TRUE, Alignment(), w / "r.ome.zarr", out, w / "q.png"),
    ),
    "register, picture": (
        "q.png",
        lambda w, out: register(w / TRUE, Alignment(), w / "r.ome.zarr", w / "q.json", out),
    ),
    "plan": ("plan.json", lambda w, out: make_plan(w / THIN, w / "model", settings(), out)),
    "baselines": ("b.json", lambda w, out: measure_baselines(w / THIN, w / TRUE, TASK, out)),
    "evaluate": ("e.json", lambda w, out: evaluate(w / TRUE, w / THIN, w / TRUE, out)),
    "evaluate, table": (
        "e.csv",
        lambda w, out: evaluate(w / TRUE, w / THIN, w / TRUE, out.with_suffix(".json")),
    ),
    "calibrate": (
        "c.json",
        lambda w, out: calibrate(w / TRUE, w / THIN, w / TRUE, out, Calibration(dataset="a")),
    ),
    "report": ("r.html", lambda w, out: write_report(CONFIG, w, w, out)),
    "report, numbers": ("r.json", lambda w, out: write_report(CONFIG, w, w, out.with_suffix(".html"))),
    "report, tables": ("r.csv", lambda w, out: write_report(CONFIG, w, w, out.with_suffix(".html"))),
}
FOREIGN = {
    "text": b"years of work",
    "nothing": b"",
    "JSON of another program": json.dumps({"program": "another", "made": None}).encode(),
    "a table of another program": b"plane,measure\nxy,1\n",
    "a page of another program": b'<html><meta name="generator" content="another"></html>',
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("stage", STAGES)
def test_a_file_of_somebody_else_stays(place, stage, content):  # noqa: F811
    name, make = STAGES[stage]
    (place / name).write_bytes(FOREIGN[content])
    before = snapshot(place)
    with pytest.raises(OutputError, match=f"{name}: this file was not written by emdiffuse; move it"):
        make(place, place / name)
    assert snapshot(place) == before


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", ["folder", "link to an input"])
def test_a_folder_or_an_input_in_the_way_stays(place, stage, what):  # noqa: F811
    name, make = STAGES[stage]
    if what == "folder":
        shutil.copytree(place / "slices", place / name)
    else:
        (place / name).symlink_to(place / TRUE / "zarr.json")
    before = snapshot(place)
    with pytest.raises(OutputError, match=name):
        make(place, place / name)
    assert snapshot(place) == before


def test_the_numbers_that_a_stage_reads_are_not_replaced_by_its_own(place):  # noqa: F811
    baselines = place / "b.json"
    baselines.write_text(json.dumps({"program": "emdiffuse", "made": {"stage": "baselines"}}))
    with pytest.raises(OutputError, match=r"b\.json: this is the input"):
        evaluate(place / TRUE, place / THIN, place / TRUE, baselines, baselines)
    with pytest.raises(OutputError, match=r"b\.json: this is the input"):
        make_plan(place / THIN, place / "model", settings(), baselines, calibration=baselines)
