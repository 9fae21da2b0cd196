"""The report of a calibrated restoration: reliability, coverage and structures."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from browsing import browsed, shot
from helpers import INTENSITY, without_bm3d, write_volume

from emdiffuse.config import Config, Sampler
from emdiffuse.config.settings import parse
from emdiffuse.evaluation.evaluate import evaluate
from emdiffuse.report.reliability import trust_section
from emdiffuse.report.write import write_report
from emdiffuse.stores.facts import CalibrationFacts, Reliability

SIZE = {"z": 50, "y": 5, "x": 5}
SAMPLER = {"steps": 4, "samples": 4}
CONFIG = {
    "datasets": {
        "pairs": {"pairs": {"folder": "p"}, "voxel_size": SIZE},
        **{
            name: {"source": f"{name}.tif", "images": True, "voxel_size": SIZE}
            for name in ("noisy", "clean", "held", "held_clean")
        },
    },
    "models": {"net": {"task": "emdiffuse-n", "datasets": ["pairs"]}},
    "restorations": [
        {
            "dataset": "noisy",
            "model": "net",
            "truth": "clean",
            "sampler": SAMPLER,
            "calibration": {"dataset": "held"},
        },
        {"dataset": "held", "model": "net", "truth": "held_clean", "sampler": SAMPLER},
    ],
}
CALIBRATION = {
    "dataset": "held",
    "scale": 1.6449,
    "alpha": 0.1,
    "delta": 0.1,
    "units": 40,
    "unit": "block of 64 x 64 pixels",
    "sampler": SAMPLER,
    "weights": "0" * 64,
    "levels": [{"alpha": a, "scale": s} for a, s in ((0.5, 0.7), (0.2, 1.35), (0.1, 1.6449), (0.05, None))],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, medulla):
    """Two images with Gaussian errors as stated, but twice as large in the right half."""
    folder = tmp_path_factory.mktemp("run")
    results = folder / "results"
    rng = np.random.default_rng(0)
    truth = medulla[:4:2, :128, :128]
    deviation = np.where(np.arange(128) < 64, 3.0, 8.0) * np.ones(truth.shape)
    error = rng.normal(size=truth.shape) * deviation * np.where(np.arange(128) < 64, 1, 2)
    restored = np.clip(np.rint(truth + error), 0, 255).astype(np.uint8)
    scores = {"scores": [0.05, 0.2], "threshold": 0.12, "slices": [0, 1], "reliable": 1}
    for name, calibration in (("noisy", CALIBRATION), ("held", None)):
        own = results / f"restored/{name}/net/restored.ome.zarr"
        facts = {"task": "emdiffuse-n", "model": "net", "calibration": calibration, "reliability": scores}
        write_volume(own, restored, (50, 5, 5), **facts, dataset=name)
        write_volume(own / "uncertainty", deviation.astype(np.float32), (50, 5, 5), intensity=INTENSITY)
        clean = {"noisy": "clean", "held": "held_clean"}[name]
        given = write_volume(results / f"registered/{name}.ome.zarr", truth[:, ::-1].copy(), (50, 5, 5))
        wanted = write_volume(results / f"registered/{clean}.ome.zarr", truth, (50, 5, 5))
        with pytest.MonkeyPatch.context() as patch:
            without_bm3d(patch)
            evaluate(own, given, wanted, results / f"evaluation/{name}/net.json")
    write_report(parse(Config, CONFIG), results, folder / "experiments", folder / "report.html")
    return folder, (folder / "report.html").read_text()


def test_it_says_what_is_reliable_what_was_promised_and_where_not(made):
    text = made[1].replace("&#39;", "'")
    assert "1 of 2 images count as reliable" in text
    assert "Not reliable: image 2." in text
    assert "1.64 standard deviations were calibrated on held" in text
    assert "40 independent units, each one block of 64 x 64 pixels" in text
    assert "The promise is not kept for all voxels" in text
    assert "The intervals are not calibrated" in text, "of the second restoration"
    assert "10.1145/3478535" in text
    assert "Membranes (white) and large dark regions (grey)" in text
    assert "Structures of: Restored" in text


def test_coverage_stands_in_the_files_too(made):
    folder, _ = made
    trust = json.loads((folder / "report.json").read_text())["evaluations"][0]["trust"]
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    own = [r for r in rows if (r["dataset"], r["measure"]) == ("noisy", "coverage")]
    assert [r["method"] for r in own] == [row["group"] for row in trust["coverage"]]
    assert float(own[0]["mean"]) == trust["coverage"][0]["mean"] < 0.9
    assert float(next(r for r in rows if r["measure"] == "ause")["mean"]) == trust["ause"]
    assert {"membranes_iou", "dark_iou"} < {r["measure"] for r in rows}


def test_without_a_truth_the_scores_are_told_alone():
    scores = Reliability(scores=(0.1, 0.11), threshold=0.12, slices=(1, 2), reliable=2)
    section = trust_section(None, scores, "slice")
    assert section["charts"] == section["rows"] == []
    assert len(section["sentences"]) == 1 and "2 of 2 slices count as reliable" in section["sentences"][0]
    assert trust_section(None, None, "slice") is None


def test_intervals_that_a_second_scan_calibrated_say_so_and_what_is_assumed():
    made = CalibrationFacts(
        dataset="first",
        truth="second",
        scale=2.5,
        unit="image",
        units=30,
        noise=12.5,
        sampler=Sampler(),
        weights="w",
    )
    scores = Reliability(scores=(0.1,), threshold=0.12, slices=(0,), reliable=1)
    (*_, said) = trust_section(None, scores, "image", made)["sentences"]
    assert "a second noisy scan (second) stood in for it" in said and "12.5" in said
    assert "assumes that the noise of the second scan has zero mean" in said


@pytest.fixture(scope="module")
def page(made):
    with browsed(made[0] / "report.html") as page:
        yield page


@pytest.mark.browser
def test_curves_and_table_are_drawn_and_fit_a_phone(page):
    first = page.locator("#restoration-1")
    curves = first.locator(".trust polyline")
    assert curves.count() == 3 + 2
    boxes = [curves.nth(i).bounding_box() for i in range(5)]
    assert all(box["width"] > 50 and box["height"] > 20 for box in boxes)
    label = first.locator(".trust svg").first.get_attribute("aria-label")
    assert "Gaussian" in label and "calibrated" in label and "promised" in label
    table = first.locator("table.coverage")
    assert table.locator("tbody tr").first.inner_text().split()[-1] == "no"
    assert table.locator("tbody tr").count() > 8
    assert page.locator("#restoration-2 table.coverage").count() == 0
    structures = first.locator("img[alt*='Structures of: Ground truth']")
    assert structures.evaluate("image => image.naturalWidth") == 128
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.said == []


def color_of(page, name: str) -> np.ndarray:
    """Return a colour of the page, RGB."""
    text = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')").strip()
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_curves_lie_where_the_numbers_are(made, page, scheme):
    """The screenshot shows the calibrated curve in its colour at every point of the diagram."""
    page.emulate_media(color_scheme=scheme)
    trust = json.loads((made[0] / "report.json").read_text())["evaluations"][0]["trust"]
    expected = [(100 * r["nominal"], 100 * r["calibrated"]) for r in trust["diagram"] if "calibrated" in r]
    drawn = page.locator("#restoration-1 .trust svg").first
    place = """(svg, [x, y]) => {
        const at = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM()), box = svg.getBoundingClientRect();
        return [at.x - box.x, at.y - box.y];
    }"""
    ticks = drawn.locator("text[text-anchor=end]").all()
    scale = [
        (float(tick.inner_html()), float(tick.get_attribute("y")) - 3)
        for tick in ticks if tick.get_attribute("x") == "-6"
    ]  # fmt: skip
    (low, bottom), (high, top) = scale[0], scale[-1]
    last = 100 * max(row["nominal"] for row in trust["diagram"])
    picture, accent, paper = shot(drawn), color_of(page, "--accent"), color_of(page, "--paper")
    for x, y in expected:
        at = [300 * x / last, bottom + (y - low) * (top - bottom) / (high - low)]
        column, row = (round(v) for v in drawn.evaluate(place, at))
        near = picture[row - 3 : row + 4, column - 3 : column + 4]  # other curves may cross there
        assert np.abs(near - accent).sum(axis=-1).min() < 60, (x, y)
    assert np.abs(picture - paper).sum(axis=-1).max() > 200, "text is readable on it"
    assert (np.abs(picture - paper).sum(axis=-1) < 10).mean() > 0.8, "and most of it is paper"
    page.emulate_media(color_scheme="light")


@pytest.mark.browser
def test_other_numbers_are_another_picture(page):
    """The second restoration has the same errors without calibration: one curve fewer in the diagram."""
    first, second = (page.locator(f"#restoration-{n} .trust svg") for n in (1, 2))
    pictures = [shot(first.nth(0)), shot(second.nth(0))]
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()
    curves = [svg.nth(1).evaluate("svg => svg.outerHTML") for svg in (first, second)]
    assert curves[0] == curves[1], "sparsification is the same"


@pytest.mark.browser
def test_all_pictures_have_words_and_are_there(page):
    pictures = page.locator("img, canvas, svg")
    assert pictures.count() > 20
    for picture in pictures.all():
        words = picture.evaluate(
            "node => node.alt || (node.role === 'img' && node.getAttribute('aria-label'))"
        )
        assert words and len(words) > 5
        assert picture.evaluate("node => node.naturalWidth ?? node.width?.baseVal?.value ?? node.width") > 0
    assert page.said == []


@pytest.mark.browser
def test_the_first_screen_leads_to_every_restoration(page):
    """The table of all restorations fits a phone; its links open folded sections."""
    rows = page.locator("table.overview tbody tr")
    assert rows.count() == 2
    assert "Better" in rows.nth(0).inner_text() and "not 90 %" in rows.nth(0).inner_text()
    assert page.evaluate("document.body.scrollWidth <= document.body.clientWidth")
    folded = page.locator("#restoration-2 > details")
    page.locator("#restoration-2 > details > summary").click()
    assert folded.get_attribute("open") is None
    rows.nth(1).locator("a").click()
    page.locator("#restoration-2 > details[open]").wait_for()
