"""The report: correct images at the correct contrast, correct text, and working controls in a browser."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from browsing import browsed, shot
from helpers import volume_facts

from emdiffuse.config import Config, Model, Restoration
from emdiffuse.config.settings import parse
from emdiffuse.evaluation.baselines import interpolate
from emdiffuse.evaluation.evaluate import evaluate
from emdiffuse.report.charts import chart
from emdiffuse.report.overview import overview_row, summary
from emdiffuse.report.pictures import encode, scale_bar, to_gray
from emdiffuse.report.restorations import learned
from emdiffuse.report.settings import flatten
from emdiffuse.report.tables import as_csv, long_table, short_table
from emdiffuse.report.times import stage_times
from emdiffuse.report.verdicts import gains, short_verdict, surpassing, verdict
from emdiffuse.report.viewer import SIDE, sheet
from emdiffuse.report.write import write_report
from emdiffuse.restoration.slice_grid import SliceGrid
from emdiffuse.runtime.errors import ConfigError, StoreError
from emdiffuse.stores.array import create_image_array
from emdiffuse.stores.volume import write_image

CONFIG = {
    "datasets": {
        "train": {"source": "a.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        "whole": {"source": "b.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        "thin": {"keep_every": {"dataset": "whole", "factor": 4}},
    },
    "models": {"net": {"task": "vemdiffuse-i", "datasets": ["train"], "factor": 4}},
    "restorations": [{"dataset": "thin", "model": "net"}],
    "title": "Ramps & <steps>",
}


@pytest.fixture(scope="module", autouse=True)
def _whole_range():
    """Panels show the smallest value as black and the largest as white; the toy volumes are small."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pictures", "restorations"):
            patch.setattr(f"emdiffuse.report.{module}.PERCENTILES", (0, 100))
        patch.setattr("emdiffuse.report.pictures.SIDE", 64)
        yield


def write(
    path: Path, values: np.ndarray, voxel_size: tuple[float, ...] = (10, 10, 10), **facts: object
) -> None:
    shutil.rmtree(path, ignore_errors=True)
    array = create_image_array(path / "0", values.shape, values.dtype)
    array[:, :, :] = values
    write_image(path, path.name, voxel_size, volume_facts(values, voxel_size, **facts))


def run(folder: Path, restored: np.ndarray, truth: np.ndarray) -> None:
    """Write the outputs of the stages before the report, except training and registration."""
    results = folder / "results"
    write(results / "registered/whole.ome.zarr", truth)
    write(results / "registered/thin.ome.zarr", truth[::4], (40, 10, 10))
    facts = {"dataset": "thin", "model": "net", "estimator": "mean of 4 samples of 4 network evaluations"}
    write(results / "restored/thin/net/restored.ome.zarr", restored, **facts)


def measured(results: Path, name: str, seconds: float, memory: float | str) -> Path:
    """Write what Snakemake measures of a job."""
    path = results / "benchmarks" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\tmean_load\n{seconds}\t0:00:01\t{memory}\t98.0\n")
    return path


def measure(folder: Path) -> dict:
    results = folder / "results"
    paths = ("restored/thin/net/restored.ome.zarr", "registered/thin.ome.zarr", "registered/whole.ome.zarr")
    return evaluate(*(results / path for path in paths), results / "evaluation/thin/net.json")


def report(folder: Path, config: dict = CONFIG) -> str:
    write_report(parse(Config, config), folder / "results", folder / "experiments", folder / "report.html")
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run: the truth is a ramp along x and z with a bright corner, the restoration close to it."""
    folder = tmp_path_factory.mktemp("run")
    z, y, x = np.mgrid[:21, :48, :64]
    truth = (x + 2 * z + 100 * ((y < 8) & (x < 8)) + 5 * (np.sin(z) > 0)).astype(np.uint8)
    restored = truth.copy()
    restored[1::4] += 1
    run(folder, restored, truth)
    measure(folder)
    history = [
        {"step": s, "loss": 1 / (s + 1) if s else math.nan, "validation_psnr": 20 + s / 10}
        for s in (0, 50, 100)
    ]
    best = folder / "experiments/net/best"
    best.mkdir(parents=True)
    said = {"sentences": ["all 100 steps were completed", "more steps would help"]}
    facts = {"history": history, "steps": 100, "device": "cpu", "outlook": said}
    (best / "metrics.json").write_text(json.dumps(facts))
    quality = {"conclusion": "The slices are aligned.", "aligned": True, "drift": {"largest": 0.25}}
    (folder / "results/registered/thin.quality.json").write_text(json.dumps(quality))
    measured(folder / "results", "restore/thin-net-1-of-1", 61, 250)
    return folder, truth, report(folder)


def pictures(text: str) -> list[tuple[str, np.ndarray]]:
    """Return alternative text and grey values of every panel."""
    found = re.findall(r'<img src="data:image/webp;base64,([^"]+)" alt="([^"]+)"', text)
    return [
        (html.unescape(alt), imagecodecs.webp_decode(base64.b64decode(data))[..., 0]) for data, alt in found
    ]


def test_panels_hold_the_planes_unflipped_at_the_stated_contrast(made):
    _, truth, text = made
    panels = dict(pictures(text))
    low, high = (float(v) for v in (truth[:, :, :].min(), truth.max()))
    expected = {
        "Ground truth, xy plane at z = 100 nm": truth[10],
        "Ground truth, xz plane at y = 240 nm": truth[:, 24],
        "Ground truth, yz plane at x = 320 nm": truth[:, :, 32],
        "Input (nearest real slice), xy plane at z = 100 nm": truth[8],
        "Input (nearest real slice), xz plane at y = 240 nm": truth[np.repeat(range(0, 24, 4), 4)[1:22], 24],
    }
    for name, plane in expected.items():
        np.testing.assert_array_equal(panels[name], to_gray(plane, low, high), err_msg=name)
    stated = re.search(r"black is (\S+) and white (\S+):", text)
    assert [float(v) for v in stated.groups()] == [low, high]
    assert (
        panels["Ground truth, xy plane at z = 100 nm"][0, 0]
        > panels["Ground truth, xy plane at z = 100 nm"][-1, -1]
    )


def test_words_and_escapes(made):
    _, _, text = made
    assert "<h1>Ramps &amp; &lt;steps&gt;</h1>" in text
    assert "6 slices 40 nm apart) was restored to 21 slices 10 nm apart by the model net" in text
    assert "better than the best classical method in SSIM" in text
    assert '<span class="standing mixed">No clear difference in PSNR, better in SSIM</span>' in text
    assert "mean of 4 samples of 4 network evaluations" in text
    assert "The slices are aligned." in text
    assert "100 steps, on cpu" in text
    assert "10.1038/s41467-024-49125-z" in text
    assert "<strong>" in text
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]+", "", text), re.IGNORECASE)


def test_the_numbers_lie_beside_the_report(made):
    folder, _, text = made
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["evaluations"] == [json.loads((folder / "results/evaluation/thin/net.json").read_text())]
    assert numbers["trainings"]["net"]["steps"] == 100
    assert "<li>All 100 steps were completed.</li><li>More steps would help.</li>" in made[2]
    assert numbers["trainings"]["net"]["history"][0]["loss"] is None, "JSON has no number for NaN"
    assert [(row["stage"], row["jobs"], row["seconds"]) for row in numbers["times"]] == [("restore", 1, 61.0)]
    assert numbers["versions"]["emdiffuse"]
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    found = numbers["evaluations"][0]["methods"]["linear"]["xz"]["ssim"]
    row = next(r for r in rows if (r["method"], r["plane"], r["measure"]) == ("linear", "xz", "ssim"))
    assert (row["dataset"], row["model"], float(row["mean"])) == ("thin", "net", found["mean"])
    assert "1:01" in text and "250 MiB" in text


def test_any_title_and_any_intensities_make_a_page(tmp_path):
    """Emoji and markup in the title, and NaN voxels, which only a ground truth would refuse."""
    volume = np.random.default_rng(0).normal(size=(9, 16, 16)).astype(np.float32)
    volume[0, 0] = np.nan, np.inf, -np.inf, *[0] * 13
    run(tmp_path, volume, volume)
    thin = {"source": "c.tif", "voxel_size": {"z": 40, "y": 10, "x": 10}}
    title = "\U0001f52c <script>alert(1)</script> {{ 7 * 7 }}"
    config = CONFIG | {"datasets": CONFIG["datasets"] | {"thin": thin}, "title": title}
    text = report(tmp_path, config)
    assert "<h1>\U0001f52c &lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }}</h1>" in text

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    for viewer in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL):
        json.loads(viewer, parse_constant=refuse)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("title", ["two\nlines", "\ud83d", "a\x00b", "x" * 201])
def test_titles_that_a_report_cannot_keep_are_refused_at_once(title):
    with pytest.raises(ConfigError, match="title:"):
        parse(Config, CONFIG | {"title": title})


@pytest.mark.parametrize("content", ["", "torn {", "[1]", "null", '{"methods": {}}', "\x00"])
def test_a_damaged_evaluation_is_named(tmp_path, content):
    volume = np.random.default_rng(0).integers(0, 256, (9, 16, 16), np.uint8)
    run(tmp_path, volume, volume)
    path = tmp_path / "results/evaluation/thin/net.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(StoreError, match=r"thin/net\.json: .*delete it and start again"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_one_file_of_bounded_size_without_references_outside(made):
    text = made[2]
    assert len(text) < 2_000_000
    assert not re.search(r'(?:src|srcset)="(?!data:)', text)
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert all(alt for alt in re.findall(r'<img[^>]+alt="([^"]*)"', text))


def test_a_run_without_truth_training_or_alignment_has_a_report(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (9, 16, 16), np.uint8)
    run(tmp_path, volume, volume)
    thin = {"source": "c.tif", "voxel_size": {"z": 40, "y": 10, "x": 10}}
    config = CONFIG | {"datasets": CONFIG["datasets"] | {"thin": thin}}
    text = report(tmp_path, config)
    assert "There is no ground truth to compare with" in text
    assert "<table>" not in text and text.count("<table") == 1, "the overview alone"
    assert "difference from the ground truth" not in text and "<h2>Training" not in text
    assert (tmp_path / "report.csv").read_text().count("\n") == 1
    assert "of the input" in text
    assert {alt.split(",")[0] for alt, _ in pictures(text)} == {
        "Input (nearest real slice)",
        "Linear interpolation",
        "Restored",
    }


def test_gaps_between_denoised_slices_are_shown_with_these_as_their_input(tmp_path):
    volume = np.random.default_rng(0).integers(0, 200, (9, 16, 16), np.uint8)
    run(tmp_path, volume, volume)
    facts = {
        "dataset": "thin",
        "model": "net",
        "real_slices": {"model": "n", "estimator": "mean of 8 samples", "weights": "w", "hash": "h"},
    }
    write(tmp_path / "results/restored/thin/net/restored.ome.zarr", volume, **facts)
    write(tmp_path / "results/restored/thin/n/restored.ome.zarr", volume[::4] + 50, (40, 10, 10))
    images = {"task": "emdiffuse-n", "datasets": ["pairs"]}
    config = CONFIG | {
        "datasets": CONFIG["datasets"] | {"pairs": {"degrade": {"dataset": "train"}}},
        "models": CONFIG["models"] | {"n": images},
        "restorations": [
            {"dataset": "thin", "model": "n"},
            {"dataset": "thin", "model": "net", "real_slices": "n"},
        ],
    }
    text = report(tmp_path, config)
    assert "first restored by the model n (mean of 8 samples); the gaps were filled" in text
    inputs = [values for alt, values in pictures(text) if alt.startswith("Input (nearest real slice), xy")]
    assert len(inputs) == 1  # of the gaps; images say "Input"
    low, high = (float(v) for v in (volume.min(), volume.max()))
    np.testing.assert_array_equal(inputs[0], to_gray(volume[4] + 50, low, high))


def test_uncertainty_is_shown_beside_the_differences(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (9, 16, 16), np.uint8)
    run(tmp_path, volume, volume)
    measure(tmp_path)
    nested = tmp_path / "results/restored/thin/net/restored.ome.zarr/uncertainty"
    write(nested, np.full(volume.shape, 1e6, np.float32))
    panels = dict(pictures(report(tmp_path)))
    assert (panels["Standard deviation of the samples, xy plane at z = 60 nm"] == 255).all()
    assert (panels["|Restored \u2212 ground truth|, xy plane at z = 60 nm"] == 0).all()


def test_pictures_lose_nothing_within_the_budget_and_stay_within_it_otherwise():
    noise = np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8)
    exact = encode([noise], 10**6)[0]
    decoded = imagecodecs.webp_decode(base64.b64decode(exact.partition(",")[2]))
    np.testing.assert_array_equal(decoded[..., 0], noise)
    assert sum(map(len, encode([noise] * 4, 24_000))) * 3 / 4 < 24_200


def test_contrast_is_linear_and_clipped():
    assert to_gray(np.array([-5, 10, 60, 110, 500]), 10, 110).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("pixels", "voxel", "text", "percent"),
    [
        (184, 10, "500 nm", 27.174),
        (320, 8, "500 nm", 19.531),
        (300, 10, "1 µm", 33.333),
        (100, 1, "20 nm", 20),
    ],
)
def test_scale_bars_are_round_and_true(pixels, voxel, text, percent):
    assert scale_bar(pixels, voxel) == {"percent": percent, "text": text}


def numbers(psnr: float | None, ssim: float) -> dict:
    cell = {"mean": ssim, "low": ssim, "high": ssim}
    first = {"mean": psnr, "low": None, "high": None} | ({"identical": 3} if psnr is None else {})
    plane = {"psnr": first, "ssim": cell, "fsim": cell, "high_frequency_ratio": cell}
    return {"xy": plane, "xz": plane, "yz": plane}


def test_the_best_of_a_column_is_marked_and_equality_is_said():
    rows = short_table({"methods": {"linear": numbers(20.0, 0.5), "restored": numbers(None, 0.25)}})["rows"]
    linear, restored = (row["cells"] for row in rows)
    assert linear[1] == {"mean": "0.500", "interval": "0.500 to 0.500", "best": True}
    assert restored[0]["mean"] == "identical"
    assert not linear[0]["best"]
    assert not any(row[3]["best"] for row in (linear, restored))


def test_every_measure_and_method_is_in_the_long_table_whatever_they_are():
    def value(mean: float) -> dict:
        return {"mean": mean, "low": None, "high": None}

    methods = {
        "flow": {"xy": {"nrmse": value(0.2), "new_measure": value(1.23456)}},
        "restored": {"xy": {"nrmse": value(0.1), "psnr": value(30)}, "xz": {"psnr": value(29)}},
    }
    found = long_table({"methods": methods, "units": {"nrmse": "share"}})
    assert found["names"] == ["flow", "restored"]
    assert [(row["plane"], row["heading"]) for row in found["rows"]] == [
        ("xy", "PSNR (dB)"), ("xy", "NRMSE"), ("xy", "new measure"), ("xz", "PSNR (dB)"),
    ]  # fmt: skip
    assert [cell["mean"] for cell in found["rows"][1]["cells"]] == ["0.200", "0.100"]
    assert [cell["best"] for cell in found["rows"][1]["cells"]] == [False, True], "less error is better"
    assert [cell["mean"] for cell in found["rows"][0]["cells"]] == ["\u2013", "30.00"]
    assert not any(cell["best"] for cell in found["rows"][2]["cells"]), "what is unknown is not ranked"
    assert len(as_csv([{"methods": methods}]).splitlines()) == 6


def test_times_add_up_over_the_jobs_of_this_run(tmp_path):
    measured(tmp_path, "acquire/whole", 2, "NA")
    for worker in (1, 2, 3):  # an earlier run, with three workers
        os.utime(measured(tmp_path, f"restore/thin-net-{worker}-of-3", 1000, 1), (1, 1))
    measured(tmp_path, "restore/thin-net-1-of-2", 60, 300)
    measured(tmp_path, "restore/thin-net-2-of-2", 90.5, 200)
    measured(tmp_path, "restore/other-net-1-of-2", 5000, 200)
    measured(tmp_path, "train/net", 10, 700)
    rows = stage_times(tmp_path, {"whole", "net", "thin-net"}, {"net": 3600.0})
    told = [(r["stage"], r["jobs"], r["seconds"], r["longest"], r["memory"], r["texts"]) for r in rows]
    assert told == [
        ("acquire", 1, 2, 2, None, ["0:02", "0:02"]),
        ("train", 1, 3600, 3600, 700, ["1:00:00", "1:00:00"]),
        ("restore", 2, 150.5, 90.5, 300, ["2:30", "1:30"]),
    ]
    assert stage_times(tmp_path / "nowhere", {"net"}, {}) == []


@pytest.mark.parametrize(("shape", "columns"), [((7, 5, 9), 3), ((1, 5, 9), 1), ((61, 300, 300), 8)])
def test_a_sheet_holds_every_slice_where_the_browser_looks_for_it(shape, columns):
    stack = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    laid = sheet(stack, columns)
    assert max(laid.shape) <= SIDE
    for z in range(shape[0]):
        top, left = z // columns * shape[1], z % columns * shape[2]
        np.testing.assert_array_equal(laid[top : top + shape[1], left : left + shape[2]], stack[z])


def compared(**gains_by_measure) -> dict:
    """Return an evaluation whose gains over the best classical methods are (mean, low, high)."""
    keys = ("mean", "low", "high")
    methods = {"psnr": "linear", "ssim": "flow"}
    return {
        "best": {
            measure: {"method": methods[measure], **dict(zip(keys, gain, strict=True))}
            for measure, gain in gains_by_measure.items()
        }
    }


@pytest.mark.parametrize(
    ("psnr", "ssim", "short", "full"),
    [
        (
            (0.5, 0.4, 0.6),
            (0.01, 0.005, 0.02),
            "Better",
            "better than the best classical method in PSNR and SSIM",
        ),
        (
            (-0.5, -0.6, -0.4),
            (-0.01, -0.02, -0.005),
            "Worse",
            "worse than the best classical method in PSNR and",
        ),
        ((0.5, -0.1, 0.9), (0.01, -0.01, 0.02), "No clear difference", "not clearly better or worse"),
        (
            (0.5, 0.4, 0.6),
            (0.01, -0.01, 0.02),
            "Better in PSNR, no clear difference in SSIM",
            "better than the best classical method in PSNR, and not clearly better or worse than",
        ),
        ((0.5, 0.4, 0.6), (-0.01, -0.02, -0.001), "Better in PSNR, worse in SSIM", "and worse than"),
        ((3.0, None, None), (0.2, None, None), "Too little data to tell", "no verdict"),
        (
            (None, None, None),
            (0.1, 0.05, 0.2),
            "Perfect in PSNR, better in SSIM",
            "equal to the ground truth in PSNR",
        ),
        ((None, None, None), (None, None, None), "Equals the ground truth", "in PSNR and SSIM"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(psnr, ssim, short, full):
    found = compared(psnr=psnr, ssim=ssim)
    assert short_verdict(gains(found)) == short
    said = verdict(found)
    assert full in said
    if psnr[1] is not None:
        assert (
            f"PSNR: {psnr[0]:+.2f} dB (95 % interval {psnr[1]:+.2f} to {psnr[2]:+.2f}) against linear" in said
        )


def test_the_first_screen_has_a_row_for_every_restoration(tmp_path):
    calibration = {"dataset": "held"}
    sampler = {"samples": 4}
    restorations = [
        {"dataset": "thin", "model": "net"},
        {"dataset": "thin", "model": "net", "sampler": sampler, "calibration": calibration},
    ]
    config = parse(Config, CONFIG)
    items = [parse(Restoration, values) for values in restorations]
    better = compared(psnr=(0.5, 0.4, 0.6), ssim=(0.1, 0.05, 0.2))
    held = {"mean": 0.8, "low": 0.7, "high": 0.85}
    rows = [
        overview_row(config, items[0], 1, None),
        overview_row(config, items[1], 2, better | {"trust": {"coverage": [held]}}),
    ]
    assert (
        rows[0]["verdict"] == "Not measured: no ground truth"
        and rows[0]["trust"] == "No: one estimate, no uncertainty"
    )
    assert rows[1]["standing"] == "better" and rows[1]["done"] == "gaps between slices filled"
    assert rows[1]["trust"] == "Yes, but they contain 80.0 % of true values, not 90 %"
    assert summary(rows) == "2 restorations: 1 better than the best classical method, 1 without ground truth."


def test_methods_that_do_better_are_named():
    methods = {
        "linear": numbers(20.004, 0.5),
        "flow": numbers(20.0, 0.6),
        "restored by other": numbers(None, 0.6),
        "restored": numbers(20.0, 0.55),
    }
    said = surpassing({"methods": methods})
    assert (
        said
        == "Higher on average than the restoration: Along the optical flow (SSIM), Restored by other (PSNR "
        "and SSIM)."
    )
    assert surpassing({"methods": {"linear": methods["linear"], "restored": methods["restored"]}}) == ""


def test_charts_leave_out_what_is_not_a_number():
    history = [{"step": 0, "loss": math.nan}, {"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}]
    drawn = chart("Loss", history, {"loss": "training", "other": "missing"})
    assert list(drawn["lines"]) == ["training"]
    assert [x for x, _ in drawn["lines"]["training"]] == [150, 300]
    assert all(0 <= y <= 150 for _, y in drawn["lines"]["training"])
    assert chart("Loss", history[:1], {"loss": "training"}) is None


def test_settings_are_flattened():
    assert flatten({"a": {"b": 0.001, "c": [1, 2]}, "d": None, "e": True, "f": [{"g": 1}]}) == {
        "a.b": "0.001",
        "a.c": "1, 2",
        "e": "yes",
    }


@pytest.fixture(scope="module")
def page(made):
    with browsed(made[0] / "report.html") as page:
        yield page


def canvas(page, plane: str = "xy") -> np.ndarray:
    """Return the pixels of a plane, RGB, once it is drawn."""
    page.locator('.viewer[aria-busy="false"]').wait_for()
    code = """plane => {
        const it = document.querySelector(`.plane.${plane} canvas`);
        const copy = new OffscreenCanvas(it.width, it.height).getContext("2d", {willReadFrequently: true});
        copy.drawImage(it, 0, 0);
        return [it.height, it.width, ...copy.getImageData(0, 0, it.width, it.height).data];
    }"""
    height, width, *values = page.evaluate(code, plane)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def screenshot(page) -> np.ndarray:
    page.locator('.viewer[aria-busy="false"]').wait_for()
    return shot(page.locator(".plane.xy"))[
        1:-1, 1:-1
    ]  # the plane may lie between pixels: its edge shows the page


def choose(page, **values: str | int) -> None:
    for name, value in values.items():
        control = page.locator(f".controls .{name}")
        if control.evaluate("node => node.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.fill(str(value))


def gray(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.repeat(to_gray(values, truth.min(), truth.max())[..., None], 3, axis=2)


def restored_of(truth: np.ndarray) -> np.ndarray:
    restored = truth.copy()
    restored[1::4] += 1
    return restored


@pytest.mark.browser
def test_the_three_planes_show_the_volume_at_the_crosshair(page, made):
    truth = made[1].astype(int)
    restored = restored_of(truth)
    choose(page, left="truth", right="restored", overlay="", cut=50, z=9, y=5, x=20)
    cuts = {"xy": lambda v: v[9], "xz": lambda v: v[:, 5], "yz": lambda v: v[:, :, 20].T}
    for plane, cut_along in cuts.items():
        half = cut_along(truth).shape[1] / 2
        left = np.arange(cut_along(truth).shape[1]) < half
        expected = np.where(left, cut_along(truth), cut_along(restored))
        shown = canvas(page, plane).astype(int)
        assert np.abs(shown - gray(expected, truth)).max() <= 1, plane  # canvases cut off, numpy rounds
    assert page.said == []


@pytest.mark.browser
@pytest.mark.parametrize("name", ["input", "linear", "cubic"])
def test_the_browser_interpolates_as_baselines_do(page, made, name):
    truth = made[1].astype(int)
    kind = "nearest" if name == "input" else name
    expected = interpolate(made[1][::4], SliceGrid(6, Fraction(4)), range(21), kind)
    choose(page, left=name, right="truth", overlay="", cut=100, z=6, y=5, x=20)
    for plane, cut_along in (("xy", expected[6]), ("xz", expected[:, 5])):
        shown = canvas(page, plane).astype(int)
        one = 255 / np.ptp(truth)  # halves are rounded up in the browser, and to even elsewhere
        assert np.abs(shown - gray(cut_along.astype(int), truth)).max() <= one + 1, plane
    assert page.said == []


@pytest.mark.browser
def test_the_boundary_moves_by_keyboard_and_by_pointer(page):
    choose(page, left="input", right="restored", overlay="", z=6)
    page.locator(".cut").focus()
    page.keyboard.press("End")
    all_left = screenshot(page)
    page.keyboard.press("Home")
    assert page.locator(".cut").input_value() == "0"
    all_right = screenshot(page)
    assert (all_left != all_right).any()
    choose(page, cut=50)
    box = page.locator(".plane.xy").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 40)
    page.mouse.up()
    assert 20 <= int(page.locator(".cut").input_value()) <= 30
    mixed, middle = screenshot(page), all_left.shape[1] // 2
    np.testing.assert_array_equal(mixed[:, middle + 8 :], all_right[:, middle + 8 :])
    assert (mixed != all_right).any()
    assert page.said == []


@pytest.mark.browser
def test_the_scrubber_changes_the_slice(page):
    choose(page, overlay="", z=5)
    before, text = screenshot(page), page.locator("output").inner_text()
    page.locator(".controls .z").focus()
    page.keyboard.press("ArrowRight")
    assert (screenshot(page) != before).any()
    assert page.locator("output").inner_text() != text
    page.keyboard.press("Home")
    canvas(page)
    assert page.locator("output").inner_text().startswith("z = 0 nm, real slice")
    assert "z = 0 nm, real slice" in page.locator(".plane.xy canvas").get_attribute("aria-label")
    assert page.said == []


@pytest.mark.browser
def test_a_click_in_one_plane_moves_the_others(page):
    choose(page, left="restored", overlay="", cut=0, z=3, y=3, x=3)
    before = canvas(page, "yz")
    box = page.locator(".plane.xy").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.5)
    assert (canvas(page, "yz") != before).any()
    assert [page.locator(f".controls .{axis}").input_value() for axis in "zyx"] == ["3", "24", "48"]
    assert page.said == []


@pytest.mark.browser
def test_the_overlay_draws_differences_at_its_scale(page, made):
    truth = made[1].astype(int)
    choose(page, left="linear", right="restored", overlay="", cut=0, z=9)
    plain = canvas(page).astype(int)
    choose(page, overlay="truth")
    drawn = canvas(page).astype(int)
    white = json.loads(page.locator(".viewer script").inner_text())["white"]
    expected = plain + (np.array([255, 140, 0]) - plain) * (1 / white)  # one intensity too bright everywhere
    assert np.abs(drawn - expected).max() <= 1
    assert page.locator(".legend").is_visible()
    assert f"+{white:g} or more" in page.locator(".legend").inner_text()
    choose(page, right="truth")
    assert np.abs(canvas(page).astype(int) - gray(truth[9], truth)).max() <= 1, "the truth has no difference"
    choose(page, overlay="")
    assert not page.locator(".legend").is_visible()
    assert page.said == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 800])
def test_nothing_is_wider_than_a_phone(made, page, width):
    page.set_viewport_size({"width": width, "height": 800})
    try:
        assert page.evaluate("document.documentElement.scrollWidth") == width
    finally:
        page.set_viewport_size({"width": 390, "height": 800})


@pytest.mark.browser
def test_all_controls_are_reached_and_worked_by_keyboard(page):
    """Tab visits them in page order; the arrow keys change each, and the image with it."""
    choose(page, left="linear", right="flow", overlay="", cut=50, z=11, y=5, x=20)
    controls = page.locator(".controls input, .controls select")
    controls.first.focus()
    for number in range(controls.count()):
        control = controls.nth(number)
        assert control.evaluate("node => node === document.activeElement"), number
        assert control.evaluate("node => node.labels[0].textContent.trim()"), "it has a name"
        before, value = screenshot(page), control.input_value()
        page.keyboard.press("ArrowDown")
        assert control.input_value() != value
        canvas(page)
        assert (screenshot(page) != before).any(), control.get_attribute("class")
        page.keyboard.press("Tab")
    assert page.said == []


@pytest.mark.browser
def test_dark_mode_is_dark_and_pictures_stay_the_same(page):
    picture = canvas(page)
    page.emulate_media(color_scheme="dark")
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(v) for v in re.findall(r"\d+", color)) < 64
    np.testing.assert_array_equal(canvas(page), picture)


def test_what_a_model_learned_from_is_said_where_it_is_known():
    given = Model.model_validate({"task": "emdiffuse-n", "weights": "old/20_Network_ema.pth"})
    assert learned(given).startswith("whose weights were read from 20_Network_ema.pth")
    shipped = Model.model_validate({"task": "emdiffuse-n", "weights": "emdiffuse-n"})
    assert learned(shipped) == "which is shipped with emdiffuse (its card lists the training data)"
