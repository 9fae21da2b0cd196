"""The report: right pictures at the right contrast, right words, and controls that work in a browser."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from emdiffuse.config import Config
from emdiffuse.evaluation import evaluate
from emdiffuse.report import write_report
from emdiffuse.report.pictures import encode, scale_bar, to_gray
from emdiffuse.report.text import chart, flatten, table, verdict
from emdiffuse.settings import parse
from emdiffuse.volume import create_image_array, write_image

CHROMIUM = Path("/usr/bin/chromium")
CONFIG = {
    "datasets": {
        "train": {"source": "a.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        "whole": {"source": "b.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        "thin": {"keep_every": {"dataset": "whole", "factor": 4}},
    },
    "models": {"net": {"task": "vemdiffuse-i", "datasets": ["train"], "factor": 4}},
    "restorations": [{"dataset": "thin", "model": "net"}],
    "report": {"title": "Ramps & <steps>", "width": 64, "percentiles": [0, 100]},
}


def write(
    path: Path, values: np.ndarray, voxel_size: tuple[float, ...] = (10, 10, 10), **facts: object
) -> None:
    array = create_image_array(path / "0", values.shape, values.dtype)
    array[:, :, :] = values
    write_image(path, path.name, voxel_size, {"sources": [], **facts})


def run(folder: Path, restored: np.ndarray, truth: np.ndarray) -> None:
    """Write what the stages before the report write, but training and registration."""
    results = folder / "results"
    write(results / "registered/whole.ome.zarr", truth)
    write(results / "registered/thin.ome.zarr", truth[::4], (40, 10, 10))
    facts = {"dataset": "thin", "model": "net", "estimator": "mean of 4 samples of 4 calls"}
    write(results / "restored/thin/net/restored.ome.zarr", restored, **facts)


def measure(folder: Path) -> dict:
    results = folder / "results"
    paths = ("restored/thin/net/restored.ome.zarr", "registered/thin.ome.zarr", "registered/whole.ome.zarr")
    return evaluate(*(results / path for path in paths), results / "evaluation/thin/net.json")


def report(folder: Path, config: dict = CONFIG) -> str:
    write_report(parse(Config, config), folder / "results", folder / "experiments", folder / "report.html")
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run: the truth is a ramp along x and z with a bright corner, the restored one is near it."""
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
    (best / "metrics.json").write_text(json.dumps({"history": history, "steps": 100, "device": "cpu"}))
    quality = {"conclusion": "The slices are aligned.", "aligned": True, "drift": {"largest": 0.25}}
    (folder / "results/registered/thin.quality.json").write_text(json.dumps(quality))
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
        "Truth, xy plane at z = 100 nm": truth[10],
        "Truth, xz plane at y = 240 nm": truth[:, 24],
        "Truth, yz plane at x = 320 nm": truth[:, :, 32],
        "Input (nearest real slice), xy plane at z = 100 nm": truth[8],
        "Input (nearest real slice), xz plane at y = 240 nm": truth[np.repeat(range(0, 24, 4), 4)[1:22], 24],
    }
    for name, plane in expected.items():
        np.testing.assert_array_equal(panels[name], to_gray(plane, low, high), err_msg=name)
    stated = re.search(r"black is (\S+) and white (\S+):", text)
    assert [float(v) for v in stated.groups()] == [low, high]
    assert panels["Truth, xy plane at z = 100 nm"][0, 0] > panels["Truth, xy plane at z = 100 nm"][-1, -1]


def test_words_and_escapes(made):
    _, _, text = made
    assert "<h1>Ramps &amp; &lt;steps&gt;</h1>" in text
    assert "6 slices 40 nm apart, was restored to 21 slices 10 nm apart by the model net" in text
    assert "beats linear interpolation in both PSNR" in text
    assert "mean of 4 samples of 4 calls" in text
    assert "The slices are aligned." in text
    assert "100 steps, on cpu" in text
    assert "10.1038/s41467-024-49125-z" in text
    assert "<strong>" in text
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text).lower().replace("nanometer", "")


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
    assert "There is no truth to compare with" in text
    assert "<table>" not in text
    assert "of the input" in text
    assert {alt.split(",")[0] for alt, _ in pictures(text)} == {
        "Input (nearest real slice)",
        "Linear interpolation",
        "Restored",
    }


def test_uncertainty_is_shown_beside_the_differences(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (9, 16, 16), np.uint8)
    run(tmp_path, volume, volume)
    measure(tmp_path)
    nested = tmp_path / "results/restored/thin/net/restored.ome.zarr/uncertainty"
    write(nested, np.full(volume.shape, 1e6, np.float32))
    panels = dict(pictures(report(tmp_path)))
    assert (panels["Standard deviation of the samples, xy plane at z = 60 nm"] == 255).all()
    assert (panels["|Restored \u2212 truth|, xy plane at z = 60 nm"] == 0).all()


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
    rows = table({"methods": {"linear": numbers(20.0, 0.5), "restored": numbers(None, 0.25)}})["rows"]
    linear, restored = (row["cells"] for row in rows)
    assert linear[1] == {"mean": "0.500", "interval": "0.500 to 0.500", "best": True}
    assert restored[0]["mean"] == "identical"
    assert not linear[0]["best"]
    assert not any(row[3]["best"] for row in (linear, restored))


@pytest.mark.parametrize(
    ("psnr", "ssim", "words"),
    [
        (0.5, 0.01, r"beats linear interpolation in both PSNR \(\+0\.50 dB; .*\) and SSIM \(\+0\.010;"),
        (-0.5, -0.01, r"neither in PSNR \(-0\.50 dB; .*\) nor in SSIM \(-0\.010;"),
        (-0.5, 0.01, r"does not beat .* in both: better in SSIM \(.*\), not in PSNR"),
    ],
)
def test_the_verdict_is_plain(psnr, ssim, words):
    gain = {
        name: {"mean": v, "low": v - 0.1, "high": v + 0.1} for name, v in (("psnr", psnr), ("ssim", ssim))
    }
    said = verdict({"reference": "linear", "beats": {"psnr": psnr > 0, "ssim": ssim > 0}, "gain": gain})
    assert re.search(words, said)


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
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists() or shutil.which(str(CHROMIUM)) is None:
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on(
            "request", lambda r: None if r.url.startswith(("data:", "file:")) else page.said.append(r.url)
        )
        page.goto((made[0] / "report.html").as_uri())
        yield page
        browser.close()


def pixels(page) -> np.ndarray:
    page.wait_for_function("[...document.images].every(image => image.complete)")
    shot = imagecodecs.png_decode(page.locator(".stage").screenshot())
    return shot[1:-1, 1:-1, 0].astype(int)  # the stage may lie between pixels: its edge shows the page


@pytest.mark.browser
def test_the_boundary_moves_by_keyboard(page):
    before = pixels(page)
    page.locator(".cut").focus()
    page.keyboard.press("Home")
    after = pixels(page)
    assert page.locator(".cut").input_value() == "0"
    assert (before != after).any()
    assert page.said == []


@pytest.mark.browser
def test_the_scrubber_changes_the_slice(page):
    before, text = pixels(page), page.locator("output").inner_text()
    page.locator(".slice").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() != text
    assert (pixels(page) != before).any()
    page.keyboard.press("Home")
    assert page.locator("output").inner_text() == "z = 0 nm, real slice"
    assert page.said == []


@pytest.mark.browser
def test_the_left_picture_can_be_the_truth(page):
    page.locator(".cut").fill("100")
    page.locator(".slice").fill("1")
    linear = pixels(page)
    page.locator("select").select_option("truth")
    assert (pixels(page) != linear).any()
    assert "Truth" in page.locator(".over").get_attribute("alt")
    assert page.said == []


@pytest.mark.browser
def test_nothing_is_wider_than_a_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.browser
def test_dark_mode_is_dark_and_pictures_stay_the_same(page):
    picture = pixels(page)
    page.emulate_media(color_scheme="dark")
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(v) for v in re.findall(r"\d+", color)) < 64
    np.testing.assert_array_equal(pixels(page), picture)
