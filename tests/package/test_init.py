# ruff: noqa: E501  (tables of cases, one a line)
"""`emdiffuse init`: its findings, proposals, questions and files, and the sheet for many datasets."""

import contextlib
import shutil

import pytest
import tifffile
import yaml
from helpers import write_volume

from emdiffuse.config import validate
from emdiffuse.config.sheet import read_sheet
from emdiffuse.models.description import read_description
from emdiffuse.project.initialise import Wishes, initialise, parse_size
from emdiffuse.project.proposal import GivenModel
from emdiffuse.project.survey import survey
from emdiffuse.project.write import Cluster, slurm_profile
from emdiffuse.runtime import machine
from emdiffuse.runtime.errors import ConfigError, EmdiffuseError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Hide a cluster running beside the tests; a test that needs one fakes it."""
    monkeypatch.setattr(machine, "partitions", list)


@pytest.fixture(scope="module")
def raw(tmp_path_factory, medulla):
    """Data of every kind."""
    folder = tmp_path_factory.mktemp("raw")
    tifffile.imwrite(folder / "thick.tif", medulla[:25:6, :64, :64])
    tifffile.imwrite(folder / "cubes.tif", medulla[:16, :64, :64])
    tifffile.imwrite(folder / "more_cubes.tif", medulla[16:32, :64, :64])
    write_volume(folder / "sized.ome.zarr", medulla[:13:6, :64, :64], (60, 10, 10))
    tifffile.imwrite(folder / "noisy.tif", medulla[0, :160, :96])
    for part in ("pairs/noisy", "pairs/clean", "scans", "slices", "empty"):
        (folder / part).mkdir(parents=True)
    for z in range(3):
        tifffile.imwrite(folder / f"pairs/noisy/{z}.tif", medulla[z, :64, :64])
        tifffile.imwrite(folder / f"pairs/clean/{z}.tif", medulla[z, :64, :64])
        tifffile.imwrite(folder / f"slices/s_{z:03}.tif", medulla[6 * z, :64, :64])
        tifffile.imwrite(folder / f"scans/cell_{'abc'[z]}.tif", medulla[z, :64, : 64 + z])
    return folder


def written(folder, raw, *names, train=True, **wishes):
    """Write a workflow folder for some of the data; return its configuration as seen by the workflow."""
    initialise(folder, Wishes(tuple(str(raw / name) for name in names), train=train, **wishes))
    with contextlib.chdir(folder):
        return validate(yaml.safe_load((folder / "config.yaml").read_text()))


THICK, CUBE = (60.0, 10.0, 10.0), (10.0, 10.0, 10.0)
CASES = {
    "an anisotropic volume alone": (("thick.tif",), (THICK,), "vemdiffuse-a", ["thick"], ["thick"]),
    "whose file says its size": (("sized.ome.zarr",), (), "vemdiffuse-a", ["sized"], ["sized"]),
    "numbered slices": (("slices",), (THICK,), "vemdiffuse-a", ["slices"], ["slices"]),
    "with an isotropic one": (("thick.tif", "cubes.tif"), (THICK, CUBE), "vemdiffuse-i", ["cubes"], ["thick"]),
    "two isotropic ones": (("cubes.tif", "more_cubes.tif"), (CUBE,), "vemdiffuse-i", ["cubes"], ["more_cubes_thin"]),
    "pairs and images": (("pairs", "scans"), (CUBE,), "emdiffuse-n", ["pairs"], ["cell_a", "cell_b", "cell_c"]),
    "pairs and a volume": (("pairs", "thick.tif"), (CUBE, THICK), "emdiffuse-n", ["pairs"], ["thick"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_data_of_every_kind_become_a_configuration(case, raw, tmp_path):
    names, sizes, task, learned, restored = CASES[case]
    config = written(tmp_path / "run", raw, *names, sizes=sizes)
    (model,) = config.models.values()
    assert (model.task, list(model.datasets)) == (task, learned)
    assert [item.dataset for item in config.restorations] == restored
    assert (tmp_path / "run/datasets.tsv").exists() == (len(restored) > 1)


@pytest.mark.parametrize(
    ("names", "size", "weights", "restored"),
    [
        (("thick.tif",), THICK, "vemdiffuse", ["thick"]),
        (("scans",), CUBE, "emdiffuse-n", ["cell_a", "cell_b", "cell_c"]),
        (("thick.tif", "scans"), THICK, "vemdiffuse", ["thick"]),
    ],
)
def test_without_anything_to_learn_from_a_shipped_model_restores(
    names, size, weights, restored, raw, tmp_path
):
    config = written(tmp_path / "run", raw, *names, sizes=(size,), train=False)
    assert config.models["restorer"].weights == weights
    assert [item.dataset for item in config.restorations] == restored
    assert all(item.sampler.samples == 1 for item in config.restorations)


@pytest.mark.parametrize("train", [True, False])
def test_noisy_images_alone_are_learned_from(train, raw, tmp_path):
    """With the reason and alternatives in comments, among them the shipped model."""
    config = written(tmp_path / "run", raw, "noisy.tif", "scans", sizes=(CUBE,), train=train)
    model = config.models["denoise"]
    assert (model.task, model.datasets) == ("emdiffuse-n", ("noisy",))  # the others are too small
    assert [item.dataset for item in config.restorations] == ["noisy", "cell_a", "cell_b", "cell_c"]
    assert {item.model for item in config.restorations} == {"denoise"} and model.training.minutes
    text = (tmp_path / "run/config.yaml").read_text()
    assert "learns from the noisy images alone" in text and "`weights: emdiffuse-n` instead of" in text


def test_the_other_way_that_the_comment_tells_is_a_configuration(raw, tmp_path):
    written(tmp_path / "run", raw, "noisy.tif", sizes=(CUBE,))
    values = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    model = values["models"]["denoise"]
    for key in ("datasets", "patches", "network", "training"):
        del model[key]
    model["weights"] = "emdiffuse-n"
    with contextlib.chdir(tmp_path / "run"):
        assert validate(values).models["denoise"].weights == "emdiffuse-n"


@pytest.mark.parametrize("sheet", [True, False])
def test_pixels_that_are_not_square_are_resampled(sheet, raw, tmp_path):
    config = written(tmp_path / "run", raw, "thick.tif", sizes=((60, 12, 10),), sheet=sheet)
    dataset = config.datasets["thick"]
    assert dataset.square_pixels and dataset.voxel_size.nanometers == (60, 10, 10)


def test_a_model_that_is_there_is_used(raw, tmp_path, small_model):
    given = GivenModel(str(small_model), read_description(small_model).task)
    config = written(tmp_path / "run", raw, "thick.tif", sizes=(THICK,), model=given, sheet=True)
    assert config.models["restorer"].weights == str(small_model)
    assert [item.dataset for item in config.restorations] == ["thick"]


def test_sources_within_the_folder_are_told_from_there(raw, tmp_path):
    shutil.copy(raw / "thick.tif", tmp_path / "thick.tif")
    assert written(tmp_path, tmp_path, "thick.tif", sizes=(THICK,)).datasets["thick"].source == "thick.tif"


def test_what_is_not_known_is_asked(raw, tmp_path):
    answers, asked = iter(["v", "sixty", "60,10,10"]), []

    def ask(question, default):
        asked.append(question)
        return next(answers)

    initialise(tmp_path / "run", Wishes((str(raw / "thick.tif"),)), ask)
    assert "volume (v), or separate images" in asked[0] and all("voxel size" in one for one in asked[1:])
    assert "voxel_size: {z: 60, y: 10, x: 10}" in (tmp_path / "run/config.yaml").read_text()


MISTAKES = {
    "nothing there": (("nowhere.tif",), {}, "nowhere.tif: there is no"),
    "an empty folder": (("empty",), {}, "empty"),
    "no voxel size": (("thick.tif",), {}, "thick.tif: the files do not state a voxel size; add --voxel-size"),
    "sizes for others": (("thick.tif",), {"sizes": (THICK, THICK)}, "--voxel-size is given 2 times for 1 of --raw"),
    "an isotropic volume alone": (("cubes.tif",), {"sizes": (CUBE,)}, "nothing to restore; add an anisotropic one"),
    "pairs alone": (("pairs",), {"sizes": (CUBE,)}, "pairs to learn from, but nothing to restore"),
    "small images alone": (("scans",), {"sizes": (CUBE,)}, "64 x 64 pixels are too few to learn from; name a model"),
    "images of no size": (("scans",), {}, "does not state a pixel size; add --voxel-size"),
    "neither cubes nor thick": (("thick.tif",), {"sizes": ((15, 10, 10),)}, "1.5 times as long as wide"),
    "a model for others": (("scans",), {"sizes": (CUBE,), "model": GivenModel("m", "vemdiffuse-i")}, "--raw has none"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(case, raw, tmp_path):
    names, wishes, message = MISTAKES[case]
    with pytest.raises(EmdiffuseError) as caught:
        written(tmp_path / "run", raw, *names, **wishes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_nothing_is_replaced(raw, tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"config.yaml already exists"):
        written(tmp_path, raw, "thick.tif", sizes=(THICK,))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_a_size_is_three_numbers_or_one():
    assert parse_size("60,10,10") == THICK and parse_size("10") == CUBE
    for text in ("", "1,2", "a,b,c", "0,1,1"):
        with pytest.raises(ConfigError, match="Z,Y,X"):
            parse_size(text)


NAMES = {
    "mon volume (1) #2": "mon volume (1) #2", "modèle": "modèle", "2024": "2024", "yes": "yes", "null": "null",
    "-5deg": "-5deg", "1e3": "1e3", "# a": "# a", "a, b": "a_ b", "x{z}=5%": "x_z_5", "v1.2": "v1.2",
}  # fmt: skip


@pytest.mark.parametrize("sheet", [False, True])
def test_the_users_names_are_kept_as_far_as_they_are_allowed(raw, tmp_path, sheet):
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / f"in/{name}.tif").symlink_to(raw / "thick.tif")
    found = written(
        tmp_path / "run",
        tmp_path / "in",
        *(f"{name}.tif" for name in NAMES),
        train=not sheet,
        sheet=sheet,
        sizes=(THICK,),
    )
    assert list(found.datasets) == list(NAMES.values())
    assert [item.dataset for item in found.restorations] == list(NAMES.values())


def test_names_are_told_apart(raw):
    found = survey([str(raw / "thick.tif"), str(raw / "thick.tif")], raw)
    assert [(one.name, one.source) for one in found] == [("thick", "thick.tif"), ("thick_2", "thick.tif")]


SINFO = "short*|1:00:00|(null)\nlong|7-00:00:00|(null)\nfast|infinite|gpu:a100:4(S:0-1)\nfast|infinite|gpu:h100:8\nold|30:00|gpu:2\n"


def test_partitions_are_read_from_slurm():
    found = {one.name: one for one in machine.parse_partitions(SINFO)}
    assert [name for name, one in found.items() if one.default] == ["short"]
    assert {name: one.gpus for name, one in found.items() if one.gpus} == {
        "fast": ("a100", "h100"),
        "old": ("",),
    }
    assert [one.minutes for one in found.values()] == [60, 10080, None, 30]


@pytest.mark.parametrize("gpu", [True, False])
def test_the_profile_of_the_cluster_asks_for_its_partitions(gpu, raw, tmp_path, monkeypatch):
    lines = SINFO if gpu else "short*|1:00:00|(null)\n"
    monkeypatch.setattr(machine, "partitions", lambda: machine.parse_partitions(lines))
    written(tmp_path / "run", raw, "thick.tif", sizes=(THICK,), cluster=Cluster(account="lab7"))
    profile = yaml.safe_load((tmp_path / "run/profiles/slurm/profile.yaml").read_text())
    assert profile["default-resources"]["slurm_partition"] == "short"
    assert profile["default-resources"]["slurm_account"] == "lab7"
    for rule in ("train", "restore"):
        resources = profile["set-resources"][rule]
        assert (resources.get("slurm_partition"), resources.get("gpu")) == (("fast", 1) if gpu else (None, 0))


def test_what_is_not_known_of_a_cluster_stays_marked():
    assert slurm_profile(Cluster()).count("EDIT") == slurm_profile(Cluster(partition="x")).count("EDIT") + 1


SHEETS = {
    "missing": (None, "cannot be read"),
    "empty": ("\n", "the sheet is empty"),
    "no names": ("source\na.tif\n", "no column 'name'"),
    "commas": ("name,source\na,b\n", "no column 'name'; separate the columns by tabs"),
    "unknown column": ("name\tsource\tsize\n", "unknown column 'size'"),
    "no name in a row": ("name\tsource\n\ta.tif\n", "line 2 has no name"),
    "one name twice": ("name\tsource\na\ta.tif\n\na\tb.tif\n", "line 4 has a second 'a'"),
    "too many cells": ("name\tsource\na\ta.tif\t8\n", "line 2 has 3 cells for 2 columns"),
    "no number": ("name\tsource\tz\ty\tx\na\ta.tif\tlarge\t8\t8\n", "datasets.a.voxel_size.z"),
    "twice": ("name\tsource\nthick\ta.tif\n", "'thick' is also a dataset of the configuration"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHEETS)
def test_a_mistake_in_a_sheet_is_one_sentence(case, tmp_path, monkeypatch):
    text, message = SHEETS[case]
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "s.tsv").write_text(text)
    values = {"sheet": "s.tsv", "datasets": {"thick": {"source": "a.n5"}}, "models": {}, "restorations": []}
    with pytest.raises(ConfigError) as caught:
        validate(values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_sheet_says_what_a_configuration_would(tmp_path):
    (tmp_path / "s.tsv").write_text(
        "name\tsource\tz\ty\tx\tunit\timages\ttruth\na\ta b.tif\t0.05\t0.01\t0.01\tmicrometer\t\tc\nb\tb.tif\t1\t1\t1\t\ttrue\n"
    )
    a, b = read_sheet(tmp_path / "s.tsv").values()
    size = {"z": 0.05, "y": 0.01, "x": 0.01, "unit": "micrometer"}
    assert a == {"source": "a b.tif", "voxel_size": size, "truth": "c"}
    assert b == {"source": "b.tif", "voxel_size": {"z": 1, "y": 1, "x": 1}, "images": True}
