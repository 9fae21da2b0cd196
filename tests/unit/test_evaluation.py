"""Evaluation on tiny volumes with known answers, and against whole planes measured at once."""

from __future__ import annotations

import csv
import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
from helpers import raw_file, volume_facts, without_bm3d, write_volume
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from emdiffuse.evaluation import blocks
from emdiffuse.evaluation.baselines import interpolate
from emdiffuse.evaluation.blocks import BlockLayout
from emdiffuse.evaluation.evaluate import evaluate, measure_baselines
from emdiffuse.evaluation.methods import absent_baselines, baselines_of
from emdiffuse.evaluation.metrics import MEASURES, METRICS, Measure, Metric, psnr, ssim
from emdiffuse.evaluation.metrics.base import ratio
from emdiffuse.evaluation.tables import summary
from emdiffuse.restoration.slice_grid import SliceGrid
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.array import create_image_array
from emdiffuse.stores.intensity import cast_to
from emdiffuse.stores.resampling import enlarge
from emdiffuse.stores.volume import write_image

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def tissue(shape, seed=0, dtype=np.uint8):
    """Return smooth random blobs, which interpolation restores partly."""
    noise = np.random.default_rng(seed).normal(size=shape)
    spectrum = np.fft.fftn(noise) / (
        0.02 + sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    )
    values = np.fft.ifftn(spectrum).real
    values = (values - values.min()) / np.ptp(values)
    return (values * (250 if dtype == np.uint8 else 3000)).astype(dtype)


def digest(name):
    return name.encode().hex().zfill(64)


class Case:
    """Volumes on disk: truth, its thinned version, and a restored volume, to be measured."""

    def __init__(self, folder, truth, factor=4, restored=None):
        self.folder, self.truth, self.factor = folder, truth, factor
        self.thin = truth[::factor]
        self.grid = SliceGrid(len(self.thin), Fraction(factor))
        self.put("truth", truth)
        self.put("thin", self.thin, (10 * factor, 10, 10))
        self.put("restored", truth if restored is None else restored)

    def linear(self):
        return interpolate(self.thin, self.grid, range(self.grid.length), "linear")

    def put(self, name, values, voxel_size=(10, 10, 10), **facts):
        path = self.folder / f"{name}.ome.zarr"
        shutil.rmtree(path, ignore_errors=True)
        array = create_image_array(path / "0", values.shape, values.dtype)
        array[:, :, :] = values
        own = {
            "intensity": {"low": 100.0, "high": 2900.0},
            "sources": [raw_file(name)],
        }
        if name == "restored":
            own |= {"dataset": "thin", "model": "m", "estimator": "posterior mean in one network evaluation"}
        write_image(path, name, voxel_size, volume_facts(values, voxel_size, **own | facts))

    def run(self):
        paths = (self.folder / f"{name}.ome.zarr" for name in ("restored", "thin", "truth"))
        return evaluate(*paths, self.folder / "out.json")


def test_restored_equal_to_the_truth(tmp_path):
    result = Case(tmp_path, tissue((13, 24, 30))).run()
    psnr, ssim, *steps = (
        result["methods"]["restored"]["xy"][m] for m in ("psnr", "ssim", "step_ratio", "real_step_ratio")
    )
    assert [step["mean"] for step in steps] == [1, 1]
    assert psnr == {"mean": None, "low": None, "high": None, "identical": 9}
    assert ssim["mean"] == pytest.approx(1)
    assert result["beats"] == {"psnr": True, "ssim": True}
    assert result["voxels"] == 9 * 24 * 30
    assert result["estimator"] == "posterior mean in one network evaluation"
    assert (result["dataset"], result["model"], result["truth"]) == ("thin", "m", "truth")


def test_restored_equal_to_linear(tmp_path):
    case = Case(tmp_path, tissue((13, 24, 30)))
    case.put("restored", case.linear())
    result = case.run()
    assert result["methods"]["restored"] == result["methods"]["linear"]
    assert result["beats"] == {"psnr": False, "ssim": False}
    assert result["gain"]["psnr"] == {"mean": 0, "low": 0, "high": 0}


def test_real_slices_do_not_count(tmp_path):
    case = Case(tmp_path, tissue((13, 24, 30)))
    restored = case.linear()
    before = case.put("restored", restored) or case.run()
    restored[::4] = 0
    case.put("restored", restored)
    after = case.run()
    ours, theirs = (r["methods"]["restored"]["xy"] for r in (after, before))
    assert ours.pop("real_step_ratio")["mean"] > 2 * theirs.pop("real_step_ratio")["mean"]  # that alone
    assert ours == theirs
    for plane in ("xz", "yz"):
        psnr = [r["methods"]["restored"][plane]["psnr"] for r in (before, after)]
        assert psnr[0] == psnr[1]


@pytest.mark.parametrize("tile", [20, 256])
def test_blocks_give_what_whole_planes_give(tmp_path, monkeypatch, tile):
    """In many blocks or one, the numbers are scikit-image's on whole planes."""
    monkeypatch.setattr(blocks, "TILE", tile)
    monkeypatch.setattr(blocks, "DEPTH", 8)
    truth = tissue((21, 44, 50))
    case = Case(tmp_path, truth)
    linear = case.linear()
    measured = case.run()["methods"]["linear"]
    rows = [z for z in range(21) if z % 4]

    def mean(function, values):
        return pytest.approx(np.mean([function(*v) for v in values]), abs=1e-6)

    def psnr(a, b):
        return peak_signal_noise_ratio(a, b, data_range=255)

    def xz(a, b):
        return structural_similarity(a, b, data_range=255, full=True, **WANG)[1][rows, 5:-5].mean()

    def xy(a, b):
        return structural_similarity(a, b, data_range=255, **WANG)

    pairs = list(zip(truth, linear, strict=True))
    assert measured["xy"]["psnr"]["mean"] == mean(psnr, [pairs[z] for z in rows])
    assert measured["xy"]["ssim"]["mean"] == mean(xy, [pairs[z] for z in rows])
    for name, axis in (("xz", 1), ("yz", 2)):
        planes = list(zip(np.moveaxis(truth, axis, 0), np.moveaxis(linear, axis, 0), strict=True))
        assert measured[name]["psnr"]["mean"] == mean(psnr, [(a[rows], b[rows]) for a, b in planes])
        assert measured[name]["ssim"]["mean"] == mean(xz, planes)
    changes = np.abs(np.diff(np.stack([linear, truth]).astype(float), axis=1)).mean(axis=(2, 3))
    ratio = changes[0] / changes[1]
    for measure, places in (("step_ratio", (1, 2)), ("real_step_ratio", (0, 3))):
        wanted = np.mean([ratio[z] for z in range(20) if z % 4 in places])
        assert measured["xy"][measure]["mean"] == pytest.approx(wanted)


def test_factors_that_are_not_integers(tmp_path):
    """Factor 5/2: of the output slices 0 to 7, slices 0 and 5 are real."""
    truth = tissue((8, 16, 16))
    case = Case(tmp_path, truth)
    case.put("thin", truth[[0, 2, 5, 7]], (25, 10, 10))
    case.put("restored", truth)
    assert case.run()["voxels"] == 6 * 16 * 16


def test_other_dtypes_use_the_range_of_the_truth(tmp_path):
    case = Case(tmp_path, tissue((9, 16, 16), dtype=np.uint16))
    result = case.run()
    assert result["data_range"] == 2800
    expected = [
        10 * np.log10(2800**2 / np.mean((case.truth[z].astype(float) - case.linear()[z]) ** 2))
        for z in range(9)
        if z % 4
    ]
    assert result["methods"]["linear"]["xy"]["psnr"]["mean"] == pytest.approx(np.mean(expected))


def test_two_slices_and_one_gap_give_no_interval(tmp_path):
    value = Case(tmp_path, tissue((3, 16, 16)), factor=2).run()["methods"]["cubic"]["xy"]["ssim"]
    assert value["low"] is None
    assert 0 < value["mean"] < 1


def test_files_hold_the_same_table(tmp_path):
    result = Case(tmp_path, tissue((13, 24, 30))).run()
    assert json.loads((tmp_path / "out.json").read_text()) == result
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * (13 + 2 + 2 + 1)
    row = next(r for r in rows if (r["plane"], r["measure"], r["method"]) == ("xz", "ssim", "cubic"))
    assert float(row["low"]) == result["methods"]["cubic"]["xz"]["ssim"]["low"]
    assert next(r for r in rows if r["method"] == "restored")["mean"] == ""


def test_slices_that_were_kept_may_be_learned_from(tmp_path):
    """vemdiffuse-a learns from the thinned volume; the omitted slices are measured."""
    case = Case(tmp_path, tissue((9, 16, 16)))
    kept = {**raw_file("truth"), "kept_every": 4}
    case.put("thin", case.thin, (40, 10, 10), sources=[kept])
    case.put("restored", case.truth, training_sources=[kept])
    assert case.run()["beats"]["psnr"]
    for other in ({**kept, "kept_every": 2}, raw_file("truth")):
        case.put("restored", case.truth, training_sources=[kept, other])
        with pytest.raises(DataError, match="trained on these files"):
            case.run()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: c.put("truth", c.truth[:, :-1]), "same field"),
        (lambda c: c.put("truth", c.truth[:-1]), "be at least as deep"),
        (lambda c: c.put("truth", c.truth.astype(np.uint16)), "uint16"),
        (lambda c: c.put("truth", c.truth, (12, 12, 12)), "12 x 12 x 12 nm"),
        (lambda c: c.put("restored", c.truth[:-2]), "run the stage"),
        (
            lambda c: c.put("restored", c.truth, training_sources=[raw_file("truth")]),
            "trained",
        ),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(tmp_path, spoil, words):
    case = Case(tmp_path, tissue((9, 16, 16)))
    spoil(case)
    with pytest.raises(DataError, match=words):
        case.run()
    assert not (tmp_path / "out.json").exists()


def test_voxels_that_are_not_numbers_are_refused(tmp_path):
    values = tissue((9, 16, 16), dtype=np.float32)
    case = Case(tmp_path, values)
    broken = values.copy()
    broken[2, 3, 4] = np.nan
    case.put("restored", broken)
    with pytest.raises(DataError, match=r"restored\.ome\.zarr.*not finite"):
        case.run()


def test_summary_by_hand():
    value = summary(np.array([1.0, 3.0, np.nan, np.inf]), np.array([0, 1, 2, 3]))
    assert value["mean"] == 2
    # Two groups drawn twice: means 1, 2 and 3 with chances 1/4, 1/2 and 1/4.
    assert (value["low"], value["high"]) == (1, 3)
    assert value["identical"] == 1


def test_interval_covers_the_mean_of_the_population():
    """Of 200 samples of 30 groups, about 95 % of the intervals contain the true mean, 0."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 3)
    hits = 0
    for _ in range(200):
        value = summary(np.repeat(rng.normal(size=30), 3) + 0.1 * rng.normal(size=90), groups)
        hits += value["low"] <= 0 <= value["high"]
    assert 0.89 <= hits / 200 <= 0.99


def test_resolutions_are_those_of_the_input_scaled(tmp_path):
    """The blurred truth has a lower resolution than the truth; ratios are to the nearest slice's."""
    truth = np.random.default_rng(0).integers(0, 256, (9, 64, 64), np.uint8)
    case = Case(tmp_path, truth, restored=gaussian_filter(truth, (0, 1, 1)))
    measured = case.run()["methods"]
    restored, nearest = measured["restored"]["xy"], measured["nearest"]["xy"]
    assert restored["frc_resolution"]["mean"] == 20, "a blur keeps the phases: in nm, two pixels"
    assert nearest["frc_ratio"]["mean"] == 1
    assert restored["frc_ratio"]["mean"] < 0.5
    assert measured["restored"]["xyz"]["fsc_resolution"]["mean"] == 20
    assert measured["restored"]["xyz"].keys() == {"fsc_resolution"}


@pytest.mark.parametrize(("task", "scale"), [("emdiffuse-n", 1), ("emdiffuse-r", 2)])
def test_images_stand_beside_their_own_baselines(medulla, tmp_path, monkeypatch, task, scale):
    """Each kind equals its value on whole images; the restored one is compared with its reference."""
    without_bm3d(monkeypatch)
    truth = medulla[:2, :300, :280]
    coarse = truth[:, ::scale, ::scale]
    noise = np.random.default_rng(0).normal(0, 20, coarse.shape)
    given = np.clip(np.rint(coarse + noise), 0, 255).astype(np.uint8)
    little = np.random.default_rng(1).normal(0, 2, truth.shape)
    better = np.clip(np.rint(truth + little), 0, 255).astype(np.uint8)
    paths = [
        write_volume(tmp_path / "restored", better, (5, 5, 5), task=task),
        write_volume(tmp_path / "input", given, (5, 5 * scale, 5 * scale)),
        write_volume(tmp_path / "truth", truth, (5, 5, 5)),
    ]
    result = evaluate(*paths, tmp_path / "e.json")
    by_hand = {
        "input": given,
        "gaussian": cast_to(gaussian_filter(given.astype(np.float32), (0, 1, 1)), given.dtype),
        "nearest": given.repeat(scale, 1).repeat(scale, 2),
        "cubic": cast_to(enlarge(given, scale), given.dtype),
        "restored": better,
    }
    assert list(result["methods"]) == [*baselines_of(task), "restored"]
    assert result["methods"].keys() >= {"nlm"} if scale == 1 else {"cubic"}
    for method, orientations in result["methods"].items():
        assert list(orientations) == ["xy"]
        if method not in by_hand:
            continue
        for measure, function in (("psnr", psnr), ("ssim", ssim)):
            wanted = np.mean([function(a, b, 255.0) for a, b in zip(by_hand[method], truth, strict=True)])
            assert orientations["xy"][measure]["mean"] == pytest.approx(wanted, rel=1e-5)
    fitted = []
    for image, wanted in zip(better, truth, strict=True):
        slope, offset = np.polyfit(image.ravel(), wanted.ravel(), 1)
        fitted.append(psnr(slope * image + offset, wanted, 255))
    assert result["methods"]["restored"]["xy"]["psnr_fitted"]["mean"] == pytest.approx(np.mean(fitted))
    assert result["reference"] == ("input" if scale == 1 else "cubic")
    assert result["beats"] == {"psnr": True, "ssim": True}


@pytest.mark.parametrize("task", ["vemdiffuse-i", "vemdiffuse-a"])  # which share their baselines
def test_baselines_are_measured_once_for_all_restorations(tmp_path, monkeypatch, task):
    """With existing baselines, a restoration gives the same numbers, and measures only itself."""
    case = Case(tmp_path, tissue((13, 24, 30)))
    case.put("restored", case.linear())
    alone = case.run()
    given, truth = tmp_path / "thin.ome.zarr", tmp_path / "truth.ome.zarr"
    known = tmp_path / "baselines.json"
    measure_baselines(given, truth, task, known)
    monkeypatch.setattr("emdiffuse.evaluation.evaluate.make", None)
    restored, out = tmp_path / "restored.ome.zarr", tmp_path / "e.json"
    assert evaluate(restored, given, truth, out, known) == alone
    case.put("truth", case.truth, sources=[raw_file("other")])
    with pytest.raises(DataError, match=r"baselines\.json: these baselines were measured on other data"):
        evaluate(restored, given, truth, out, known)
    known.write_text("torn")
    with pytest.raises(DataError, match=r"baselines\.json: not a file of baselines"):
        evaluate(restored, given, truth, out, known)


def test_the_best_classical_method_is_the_one_to_beat(tmp_path):
    case = Case(tmp_path, tissue((13, 24, 30)))
    case.put("restored", case.linear())
    result = case.run()
    for measure, best in result["best"].items():
        means = {name: own["xy"][measure]["mean"] for name, own in result["methods"].items()}
        assert means[best["method"]] == max(means.values())
        assert best["mean"] == pytest.approx(means["restored"] - means[best["method"]])
        assert best["low"] <= best["mean"] <= best["high"]


def large(tmp_path, monkeypatch, chosen):
    """A volume treated as large: 16 blocks, of which some are measured."""
    for name, value in {"TILE": 32, "DEPTH": 8, "BLOCKS": chosen, "COSTLY": 1}.items():
        monkeypatch.setattr(blocks, name, value)
    return Case(tmp_path, tissue((33, 64, 64)))


def test_of_a_large_volume_a_stated_sample_of_blocks_is_measured(tmp_path, monkeypatch):
    case = large(tmp_path, monkeypatch, 5)
    linear = case.linear()
    case.put("restored", linear)
    result = case.run()
    assert result["sample"].startswith("Measured on 5 of 16 blocks of up to 32 x 32 pixels, drawn at random")
    assert result["voxels"] == 5 * 6 * 32 * 32
    assert result["interval"] == "95 % bootstrap interval over blocks"
    values, similarities = [], []
    for block in BlockLayout(case.grid, case.truth.shape).blocks():
        z, y, x = (c + b.start for c, b in zip(block.counted, block.box, strict=True))
        assert all(at % 4 for at in z) and len(z) == 6
        for at in z:
            pair = [volume[np.ix_([at], y, x)] for volume in (case.truth, linear)]
            values.append(peak_signal_noise_ratio(*pair, data_range=255))
            whole = structural_similarity(case.truth[at], linear[at], data_range=255, full=True, **WANG)[1]
            similarities.append(whole[np.ix_(*(own[(own >= 5) & (own < 59)] for own in (y, x)))].mean())
    found = result["methods"]["linear"]
    assert found["xy"]["psnr"]["mean"] == pytest.approx(np.mean(values)), "each tile is a plane of its own"
    assert found["xy"]["ssim"]["mean"] == pytest.approx(np.mean(similarities), abs=1e-6)
    assert found["xyz"]["fsc_resolution"]["mean"] is not None
    assert result["methods"]["restored"] == found, "every method on the same sample"


def test_costly_metrics_look_at_every_place_in_a_gap_in_turn(tmp_path, monkeypatch):
    case = large(tmp_path, monkeypatch, 16)
    layout = BlockLayout(case.grid, case.truth.shape)
    looked = [
        (block.counted[0] + block.box[0].start)[list(block.costly)]
        for block in layout.blocks()
        if block.own[1].start == block.own[2].start == 0
    ]
    places = np.concatenate(looked)
    assert (places // 4).tolist() == list(range(8)), "one slice of each gap"
    assert sorted(np.bincount(places % 4)[1:]) == [2, 3, 3], "each place in a gap as often as the others"
    assert "1 of the up to 3 generated slices of each gap" in layout.statement
    monkeypatch.setattr(blocks, "COSTLY", 10**9)
    assert BlockLayout(case.grid, case.truth.shape).statement == "", "of a small volume all"


class Brightness(Metric):
    """The brightness of a plane, as a fraction of the truth's."""

    measures = (Measure("brightness", "Brightness (truth = 1)", "relative to the mean of the truth", 2, 0),)

    def __init__(self, setting):
        super().__init__(setting)
        self.per_plane("ours", "true")

    def add(self, ours, truth, block):
        for name, piece in (("ours", ours), ("true", truth)):
            self.sums[name][block.places[0]] += [piece.plane(row).sum() for row in range(len(piece.planes))]

    def score(self):
        return {"xy": {"brightness": ratio(self.sums["ours"], self.sums["true"])}}


def test_a_new_metric_is_one_class(tmp_path, monkeypatch):
    """Added to the list of metrics, it is measured over all blocks and listed for all methods."""
    monkeypatch.setattr(blocks, "TILE", 12)
    monkeypatch.setattr("emdiffuse.evaluation.measuring.METRICS", (*METRICS, Brightness))
    monkeypatch.setitem(MEASURES, "brightness", Brightness.measures[0])
    case = Case(tmp_path, tissue((13, 24, 30)), restored=tissue((13, 24, 30)) // 2)
    case.run()
    with (tmp_path / "out.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "brightness"]
    assert [row["method"] for row in rows] == [*baselines_of("vemdiffuse-i"), "restored"]
    wanted = [(case.truth[z] // 2).sum() / case.truth[z].sum() for z in range(13) if z % 4]
    assert float(rows[-1]["mean"]) == pytest.approx(np.mean(wanted))


def test_numbers_do_not_depend_on_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "TILE", 12)
    case = Case(tmp_path, tissue((13, 24, 30)))
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(case.run())
    assert found[0] == found[1]


def test_what_is_not_there_is_said(tmp_path, monkeypatch, caplog):
    """BM3D is an extra; without it the evaluation states what is missing and how to install it."""
    noisy = tissue((1, 40, 40))
    paths = [
        write_volume(tmp_path / "restored", noisy, (5, 5, 5), task="emdiffuse-n"),
        write_volume(tmp_path / "input", noisy, (5, 5, 5)),
        write_volume(tmp_path / "truth", noisy, (5, 5, 5)),
    ]
    without_bm3d(monkeypatch)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level("WARNING", logger="emdiffuse"):
        (sentence,) = evaluate(*paths, tmp_path / "e.json")["absent"]
    assert sentence in caplog.text
    assert "pip install 'emdiffuse[bm3d]'" in sentence
    monkeypatch.setattr("emdiffuse.evaluation.methods.find_spec", lambda name: name)
    assert absent_baselines("emdiffuse-n") == absent_baselines("emdiffuse-r") == []
