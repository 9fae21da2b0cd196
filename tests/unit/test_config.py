# ruff: noqa: E501  (a table of mistakes, one a line)
"""The configuration: valid values, and one sentence that names the key for every mistake."""

import copy
import re
import unicodedata
from fractions import Fraction
from pathlib import Path

import jsonschema
import pytest
import yaml

from emdiffuse.config import Config, anisotropy_factor, json_schema, validate
from emdiffuse.config.settings import parse
from emdiffuse.runtime.errors import ConfigError
from emdiffuse.stores.provenance import digest

ROOT = Path(__file__).parents[2]
DEMO = yaml.safe_load((ROOT / "config/demo-train.yaml").read_text())


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def changed(path, value):
    """Return the demo configuration with one key set (or, with ..., removed)."""
    config = copy.deepcopy(DEMO)
    *parents, last = path
    node = config
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return config


def test_the_demo_is_valid_and_its_factor_is_six():
    config = validate(DEMO)
    assert config.voxel_size("medulla_test_60nm") == (60, 10, 10)
    assert config.truth(config.restorations[0]) == "medulla_test"


VOXEL = ("datasets", "medulla_test", "voxel_size")
MISTAKES = {
    "unknown section": (("dataset",), {}, "dataset: unknown key; did you mean 'datasets'?"),
    "unknown key": (("models", "gap6", "training", "learning_rat"), 1, "models.gap6.training.learning_rat: unknown key; did you mean 'learning_rate'?"),
    "missing key": (("models", "gap6", "factor"), ..., "models.gap6: `factor` is missing"),
    "wrong type": (("models", "gap6", "training", "steps"), "many", "models.gap6.training.steps: .*'many'"),
    "not positive": (("models", "gap6", "training", "learning_rate"), -1, "learning_rate: .*greater than 0.*-1"),
    "missing file": (("datasets", "medulla_test", "source"), "nowhere.tif", "datasets.medulla_test.source: there is no 'nowhere.tif'"),
    "wrong unit": ((*VOXEL, "unit"), "pixel", "datasets.medulla_test.voxel_size.unit: .*nanometer.*'pixel'"),
    "zero voxel": ((*VOXEL, "z"), 0, "datasets.medulla_test.voxel_size.z: .*greater than 0"),
    "no voxel size": (("datasets", "medulla_test"), {"source": "bare.raw"}, "datasets.medulla_test: `voxel_size` is missing"),
    "a unit that is missing": (VOXEL, {"z": 0.03, "y": 0.004, "x": 0.004}, "medulla_test.voxel_size: pixels of 0.004 nm would be smaller than atoms; state the `unit`"),
    "an empty crop": (("datasets", "medulla_test", "crop"), {"z": [4, 4]}, "medulla_test.crop: z: .4, 4. is empty"),
    "a channel of what has no source": (("datasets", "medulla_test_60nm", "channel"), 1, "`channel` applies only to a `source`"),
    "rectangular pixels": ((*VOXEL, "x"), 12, "datasets.medulla_test.voxel_size: pixels must be square"),
    "isotropic input": (("restorations", 0, "dataset"), "medulla_test", "restorations.0.dataset: the anisotropy factor z/y is 1;"),
    "hardly anisotropic input": ((*VOXEL, "z"), 2.5, "restorations.0.dataset: the anisotropy factor z/y is 1.5;"),
    "huge factor": ((*VOXEL, "z"), 100, "the anisotropy factor z/y is 60; it must be between 2 and 12"),
    "impossible model factor": (("models", "gap6", "factor"), 1, "models.gap6.factor: .*greater than or equal to 2"),
    "fractional keep": (("datasets", "medulla_test_60nm", "keep_every", "factor"), 2.5, "keep_every.factor: .*2.5"),
    "unknown dataset": (("restorations", 0, "dataset"), "other", "restorations.0.dataset: there is no 'other'; known: "),
    "unknown model": (("restorations", 0, "model"), "other", "restorations.0.model: there is no 'other'; known: gap6"),
    "unknown origin": (("datasets", "medulla_test_60nm", "keep_every", "dataset"), "other", "there is no raw dataset named 'other'"),
    "unknown training data": (("models", "gap6", "datasets"), ["other"], "models.gap6.datasets: there is no 'other'"),
    "trained on the test": (("models", "gap6", "datasets"), ["medulla_test"], "cannot be evaluated on it"),
    "trained on the test file": (("datasets", "medulla_train", "source"), "resources/demo/medulla_test.tif", "cannot be evaluated on it"),
    "tile too small": (("restorations", 0, "tiling", "tile"), 32, "tiling: `tile` is too small"),
    "unknown sampler": (("restorations", 0, "sampler"), {"name": "euler"}, "sampler.name: .*'euler'"),
    "odd name": (("models",), {"a{b}": DEMO["models"]["gap6"]}, "models.a{b}: .*'a_b'"),
    "not a mapping": (("datasets",), [1], "datasets: "),
    "weights and training": (("models", "gap6", "weights"), "resources", "models.gap6: `datasets` is for training, but `weights` are given"),
    "neither weights nor data": (("models", "gap6", "datasets"), ..., "models.gap6: `datasets` is missing: name the training data"),
    "weights in a folder of something else": (("models", "denoise_medulla"), {"task": "emdiffuse-n", "weights": "resources"}, "'resources' is not the folder of a model: it has no model.json"),
    "weights from nowhere": (("models", "denoise_medulla"), {"task": "emdiffuse-n", "weights": "no.pth"}, "models.denoise_medulla.weights: there is no 'no.pth'"),
    "LPIPS without weights": (("lpips",), "no.pth", "config: lpips: there is no file 'no.pth'"),
    "begun from nothing": (("models", "denoise", "training", "init_from"), "nothing", "models.denoise.training.init_from: 'nothing' is neither"),
    "begun from itself": (("models", "denoise_medulla", "training", "init_from"), "denoise", "would start from itself"),
    "begun from another network": (("models", "denoise_medulla", "network"), {"channels": 16}, "'denoise_medulla' has a different network"),
    "begun from what it is tested on": (("datasets", "medulla_noisy", "degrade", "dataset"), "brain_test_clean", "model 'denoise' was trained on 'brain_test_clean'"),
    "degraded of nothing": (("datasets", "medulla_noisy", "degrade", "dataset"), "medulla_test_60nm", "medulla_noisy.degrade.dataset: there is no raw dataset"),
    "pairs as images": (("datasets", "medulla_test_coarse", "images"), False, "set `images: true` beside `degrade`"),
    "learned from the truth": (("models", "gap6", "datasets"), ["medulla_train", "medulla_test"], "cannot be evaluated on it"),
    "axes of images": (("models", "denoise", "patches", "axes"), ["x"], "`patches.axes` is for vemdiffuse-i"),
    "context of gaps": (("models", "gap6", "patches", "context"), 1, "`patches.context` is for emdiffuse-n"),
    "neighbours of separate pairs": (("models", "denoise", "patches", "context"), 1, "models.denoise.patches.context: '.*' contains separate images"),
    "a blind spot of gaps": (("models", "gap6", "training", "blind_spot"), [0, 1], "`training.blind_spot` is for emdiffuse-n"),
    "a scan named twice": (("datasets", "x"), {"pairs": {"folder": "resources", "scans": ["a", "A"]}, "voxel_size": {"z": 1, "y": 1, "x": 1}}, "`scans` names a scan twice"),
    "a second scan that is the first": (("restorations", 2, "second_scan"), "brain_test_noisy", "`second_scan` is the dataset itself|`second_scan` stands in for"),
    "a second scan of gaps": (("restorations", 1, "second_scan"), "brain_test_noisy", "restorations.1.second_scan: this key is for emdiffuse-n"),
    "a second scan of nothing": (("restorations", 1, "second_scan"), "other", "restorations.1.second_scan: there is no 'other'"),
    "a size no voxel has": (VOXEL, {"z": 1e-320, "y": 1e-320, "x": 1e-320, "unit": "nanometer"}, "a voxel of .* nanometers is implausible"),
    "a list for a size": (VOXEL, [60, 10, 10], "voxel_size: a mapping of keys to values is expected, but it is a list"),
    "a mapping for a list": (("restorations",), {"dataset": "a"}, "restorations: a list is expected, but it is a mapping"),
    "an empty source": (("datasets", "medulla_train", "source"), "", "medulla_train.source: "),
    "a name that is too long": (("models",), {"x" * 90: DEMO["models"]["gap6"]}, "a name may have at most 80 letters"),
    "names that differ in case alone": (("datasets", "MEDULLA_test"), DEMO["datasets"]["medulla_test"], "'medulla_test' and 'MEDULLA_test' differ only in case"),
    "task of another day": (("models", "gap6", "task"), "vemdiffuse-z", "models.gap6.task: .*'vemdiffuse-z'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_key(name):
    path, value, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=message) as caught:
        validate(changed(path, value))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_yaml_is_refused():
    with pytest.raises(ConfigError, match="settings: not valid YAML"):
        parse(Config, "{a: [", "settings")


def test_units_are_converted():
    config = validate(changed(VOXEL, {"z": 0.01, "y": 0.01, "x": 0.01, "unit": "micrometer"}))
    assert config.voxel_size("medulla_test") == pytest.approx((10, 10, 10))


def test_a_model_may_learn_from_the_slices_that_were_kept():
    config = validate(DEMO)
    assert config.truth(config.restorations[1]) == "medulla_test"
    assert config.models["lateral6"].datasets == ("medulla_test_60nm",)


def test_restorations_of_one_dataset_stand_beside_each_other():
    config = validate(DEMO)
    first, second, *others = config.restorations
    assert config.beside(first) == [second] and config.beside(second) == [first]
    assert all(config.beside(other) == [] for other in others)
    apart = validate(changed(("restorations", 0, "truth"), "brain_test_clean"))
    assert apart.beside(apart.restorations[0]) == [], "another truth"


def test_a_model_of_noisy_images_draws_no_samples_and_may_restore_what_it_learned_from():
    scans = {
        "source": "resources/demo/brain_test_noisy.tif",
        "images": True,
        "voxel_size": {"z": 4, "y": 4, "x": 4},
    }
    item = {"dataset": "scans", "model": "own"}
    values = {
        "datasets": {"scans": scans, "clean": {**scans, "source": "resources/demo/brain_test_clean.tif"}},
        "models": {"own": {"task": "emdiffuse-n", "datasets": ["scans"]}},
        "restorations": [{**item, "truth": "clean"}],
    }
    config = validate(values)
    assert config.learns_from_noisy("own") and config.truth(config.restorations[0]) == "clean"
    for sampler in ({"samples": 2}, {"steps": 4}, {"texture": 0.5}):
        with pytest.raises(
            ConfigError, match=r"restorations.0.sampler: 'own' learns from noisy images alone"
        ):
            validate({**values, "restorations": [{**item, "sampler": sampler}]})
    with pytest.raises(ConfigError, match="cannot be evaluated on it"):
        validate({**values, "restorations": [{**item, "truth": "scans"}]})
    values["datasets"]["twice"] = {
        "pairs": {"folder": "resources", "scans": ["a", "b"]},
        "voxel_size": scans["voxel_size"],
    }
    values["models"]["own"]["datasets"] = ["scans", "twice"]
    with pytest.raises(ConfigError, match=r"models.own.datasets: .* repeated scans .* and single images"):
        validate(values)


def test_a_model_may_be_there_already(tmp_path):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).touch()
    given = {"task": "emdiffuse-n", "weights": str(tmp_path)}
    config = validate(changed(("models", "denoise_medulla"), given))
    assert config.models["denoise_medulla"].datasets == ()
    assert parse(Config, config.canonical()) == config, "what a stage is given is what was read"


def test_what_follows_from_a_degraded_dataset():
    config = validate(DEMO)
    assert config.voxel_size("medulla_test_coarse") == (10, 20, 20)
    assert config.voxel_size("medulla_coarse") == (10, 10, 10)  # of pairs: that of the clean images
    assert config.truth(config.restorations[3]) == "medulla_test"
    assert config.lineage("denoise") == ["denoise", "denoise_medulla"]


def test_factors_are_exact():
    assert anisotropy_factor((45, 8, 8)) == Fraction(45, 8)
    assert anisotropy_factor((0.03, 0.005, 0.005)) == 6


def test_hash_sees_every_value_and_no_order():
    demo, other = validate(DEMO), validate(changed(("models", "gap6", "training", "learning_rate"), 2e-3))
    assert digest(demo) == digest(validate(dict(reversed(DEMO.items())))) != digest(other)


def test_every_key_is_explained():
    text = (ROOT / "config/README.md").read_text()
    schema = json_schema()
    for name, section in {"Config": schema, **schema["$defs"]}.items():
        for key in section["properties"]:
            assert f"`{key}`" in text, f"config/README.md does not explain {name}.{key}"


def calibrated(**changes):
    """Return the demo with a second place for calibrating its gaps, and some keys changed."""
    config = copy.deepcopy(DEMO)
    config["datasets"] |= {
        "other": {"source": "resources/demo/medulla_train.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
        "thin": {"keep_every": {"dataset": "other", "factor": 6}},
    }
    config["models"]["gap6"]["datasets"] = ["apart"]
    config["datasets"]["apart"] = {
        "source": "docs/figures/volume.png",
        "voxel_size": {"z": 1, "y": 1, "x": 1},
    }
    sampler = {"steps": 4, "samples": 4}
    first = {
        "dataset": "medulla_test_60nm",
        "model": "gap6",
        "sampler": sampler,
        "calibration": {"dataset": "thin"},
    }
    second = {"dataset": "thin", "model": "gap6", "sampler": sampler | {"seed": 7}}
    config["restorations"] = [first | changes.get("first", {}), second | changes.get("second", {})]
    return config


def denoised(**changes):
    """Return the demo with gaps filled between denoised slices, and some keys of both restorations changed."""
    config = copy.deepcopy(DEMO)
    first = {"dataset": "medulla_test_60nm", "model": "denoise_medulla"}
    second = {"dataset": "medulla_test_60nm", "model": "gap6", "real_slices": "denoise_medulla"}
    config["restorations"] = [first | changes.get("first", {}), second | changes.get("second", {})]
    return config


def test_the_slices_of_a_volume_may_be_denoised_first():
    """They have no ground truth: the whole volume's pixels are elsewhere."""
    config = validate(denoised())
    assert [config.truth(item) for item in config.restorations] == [None, "medulla_test"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second": {"real_slices": "nothing"}}, "1.real_slices: there is no 'nothing'; known: gap6"),
        ({"second": {"real_slices": "lateral6"}}, "1.real_slices: 'lateral6' is not an emdiffuse-n model"),
        (
            {"second": {"real_slices": "denoise"}},
            "'medulla_test_60nm' is not restored by 'denoise'; add that",
        ),
        (
            {"first": {"real_slices": "denoise"}},
            "0.real_slices: emdiffuse-n already restores every slice; remove this",
        ),
        (
            {"second": {"sampler": {"steps": 4, "samples": 2}, "calibration": {"dataset": "medulla_train"}}},
            "restorations.1: `calibration` cannot cover slices that `real_slices` restores",
        ),
    ],
)
def test_real_slices_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate(denoised(**changes))
    assert "\n" not in str(caught.value)


def test_what_denoised_the_slices_never_saw_the_truth():
    config = denoised()
    config["datasets"]["medulla_noisy"]["degrade"]["dataset"] = "medulla_test"
    with pytest.raises(ConfigError, match="model 'gap6' or 'denoise_medulla' was trained on 'medulla_test'"):
        validate(config)


def test_a_restoration_knows_what_it_is_calibrated_on():
    config = validate(calibrated())
    assert config.calibrated_on(config.restorations[0]) is config.restorations[1]
    assert config.calibrated_on(config.restorations[1]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": {"calibration": {"dataset": "apart"}}}, "0.calibration.dataset: 'apart' must be restored by 'gap6' too"),
        ({"first": {"calibration": {"dataset": "medulla_test_60nm"}}}, "is the dataset being restored; calibrate on other data"),
        ({"second": {"sampler": {"steps": 2, "samples": 4}}}, "'thin' is restored with a different `sampler`; use the same"),
        ({"first": {"sampler": {"steps": 4}}}, "`calibration` needs `sampler.samples` of 2 or more"),
        ({"first": {"sampler": {"samples": 4, "texture": 0.5}}}, "`calibration` sets intervals around the mean"),
        ({"second": {"real_slices": "denoise"}}, "'thin' is restored with `real_slices`; remove it there"),
        ({"first": {"calibration": {"dataset": "thin", "alpha": 1}}}, "calibration.alpha: .*less than 1"),
    ],
)  # fmt: skip
def test_a_calibration_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate(calibrated(**changes))
    assert "\n" not in str(caught.value)


def test_two_restorations_whose_logs_would_be_one_are_refused():
    config = copy.deepcopy(DEMO)
    first = config["restorations"][0]
    dataset, model = first["dataset"], first["model"]
    config["datasets"][f"{dataset}-x"] = config["datasets"][dataset]
    config["models"][f"x-{model}"] = config["models"][model]
    config["restorations"] = [{**first, "model": f"x-{model}"}, {**first, "dataset": f"{dataset}-x"}]
    with pytest.raises(ConfigError, match="would share their log files; rename one of them"):
        validate(config)


@pytest.mark.parametrize(
    "name",
    ["denoise v1.2", "modèle", "mode\u0300le", "-5deg", "mon volume", "(1) #2 + b", "हिन्दी", "組織", "-"],
)
def test_names_as_people_write_them_are_taken(name):
    config = copy.deepcopy(DEMO)
    config["datasets"] |= {
        name: config["datasets"]["medulla_train"],
        "thinned": {"keep_every": {"dataset": name, "factor": 2}},
    }
    jsonschema.validate(config, json_schema())
    accepted = validate(config)
    assert accepted.datasets["thinned"].keep_every.dataset == unicodedata.normalize("NFC", name)
    assert accepted.datasets["thinned"].keep_every.dataset in accepted.datasets


@pytest.mark.parametrize(
    "name", [" a", "a ", "", ".a", "..", "a/b", "a\\b", "a\nb", "a\n", "{a}", "it's", "a,b", "a=b", "50%", "a*"]
)  # fmt: skip
def test_a_name_that_cannot_be_part_of_a_path_or_command_is_refused_with_one_that_can(name):
    def named(name):
        return {**DEMO, "datasets": {**DEMO["datasets"], name: DEMO["datasets"]["medulla_train"]}}

    with pytest.raises(ConfigError, match=r"write for instance '[^']+'") as caught:
        validate(named(name))
    proposed = re.search("for instance '([^']+)'", str(caught.value))[1]
    assert proposed in validate(named(proposed)).datasets
