"""Reports of a finished run: the times of its stages, and Snakemake's own report with captions."""

import csv
import json
import re

from emdiffuse.report.times import STAGES


def test_every_stage_was_timed(finished):
    numbers = json.loads((finished.folder / "results/report.json").read_text())
    rows = {row["stage"]: row for row in numbers["times"]}
    assert list(rows) == list(STAGES)
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["restore"]["jobs"] == 2 and rows["acquire"]["jobs"] == 3
    trained = json.loads((finished.folder / "experiments/gap v1.2/best/metrics.json").read_text())
    assert rows["train"]["seconds"] == trained["seconds"]


def test_the_tables_lie_beside_the_report(finished):
    with (finished.folder / "results/report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} >= {"nearest", "linear", "cubic", "restored"}
    assert {(row["dataset"], row["model"], row["truth"]) for row in rows} == {("-5deg", "gap v1.2", "test")}


def test_snakemakes_own_report_has_captions(project):
    project.run("--report", "snakemake.html")
    text = (project.folder / "snakemake.html").read_text()
    for words in ("EMDiffuse, Lu et al. 2024", "residual drift between", "beside classical methods"):
        assert words in text, words
    files = re.findall(r"report\\?\.(?:html|csv|json)|gap v1\.2\.csv|-5deg\.quality\.png", text)
    assert {"report.html", "report.csv", "report.json", "gap v1.2.csv", "-5deg.quality.png"} <= set(files)
