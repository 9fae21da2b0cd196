"""Through Snakemake a user's mistake gives one clean sentence, in the last lines of the output."""

import json
import pickle
import re
import shutil
import subprocess

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from helpers import ROOT
from safetensors import safe_open
from safetensors.numpy import save_file

from emdiffuse.config import validate
from emdiffuse.config.shipped import SHIPPED_FOLDER
from emdiffuse.runtime.errors import EmdiffuseError

LAST = 8
"""Number of last lines in which users look for the error."""
SIZE = {"z": 10, "y": 10, "x": 10}
GOOD = {
    "datasets": {"a": {"source": "good.tif", "voxel_size": SIZE}},
    "models": {"n": {"task": "emdiffuse-n", "weights": "emdiffuse-n"}},
    "restorations": [{"dataset": "a", "model": "n"}],
}
VALUES = np.random.default_rng(0).integers(1, 255, (3, 32, 32)).astype(np.uint8)


def snakemake(folder, environment, *options):
    done = subprocess.run(
        [
            "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--profile",
            str(ROOT / "profiles/local"), "--configfile", "my.yaml", *options,
        ],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return (done.stdout + done.stderr).splitlines()


@pytest.fixture
def folder(tmp_path):
    tifffile.imwrite(tmp_path / "good.tif", VALUES, photometric="minisblack")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name in ("1.tif", "2.png", "3.tif"):
        (tmp_path / "mixed" / name).write_bytes(b"")
    return tmp_path


def dataset(**keys):
    return {**GOOD, "datasets": {"a": {"source": "good.tif", "voxel_size": SIZE, **keys}}}


CONFIGS = {
    "no key of ours": ({**GOOD, "dataset": {}}, "unknown key"),
    "no datasets": ({**GOOD, "datasets": {}}, "`datasets` is missing"),
    "a missing file": (dataset(source="no.tif"), "there is no 'no.tif'"),
    "an empty folder": (dataset(source="empty"), "no image"),
    "several formats": (dataset(source="mixed"), "several formats"),
    "a wrong number": (dataset(data_bar=-1), "rows of a data bar"),
    "a missing model": ({**GOOD, "restorations": [{"dataset": "a", "model": "m"}]}, "there is no 'm'"),
    "missing weights": ({**GOOD, "models": {"n": {"task": "emdiffuse-n", "weights": "x"}}}, "there is no 'x'"),
    "an empty file": ("", None),
    "a list": ("- a\n- b\n", None),
    "a key given twice": (yaml.safe_dump(GOOD) + "models: {}\n", "appears twice"),
    "no YAML": ("datasets: [a\n", None),
}
"""The message for each invalid configuration; None if Snakemake, which reads it first, has its own."""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_configuration(name, folder, commands):
    content, said = CONFIGS[name]
    (folder / "my.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    lines = snakemake(folder, commands, "--dry-run")
    assert len(lines) <= LAST, "\n".join(lines)
    sentences = [line for line in lines if line.startswith("error: ")]
    assert (said is None) or (sentences == lines[-1:] and said in lines[-1]), "\n".join(lines)


def broken(folder):
    """Write raw data that a job finds unusable; return their datasets, and a word of each sentence."""
    whole = (folder / "good.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[:-800])
    (folder / "text.tif").write_text("years of work")
    (folder / "nothing.tif").write_bytes(b"")
    tifffile.imwrite(folder / "one.tif", VALUES[0])
    tifffile.imwrite(folder / "flat.tif", np.full_like(VALUES, 7), photometric="minisblack")
    tifffile.imwrite(folder / "nan.tif", np.full(VALUES.shape, np.nan, np.float32))
    tifffile.imwrite(folder / "colour.tif", np.zeros((32, 32, 3), np.uint8) + VALUES[0][..., None])
    (folder / "unlike").mkdir()
    for z in range(3):
        tifffile.imwrite(folder / f"unlike/{z}.tif", VALUES[0, : 32 - 8 * (z == 1)])
    (folder / "gap").mkdir()
    for z in (0, 1, 3):
        tifffile.imwrite(folder / f"gap/{z}.tif", VALUES[z % 3])
    zarr.create_array(folder / "lost.zarr", data=VALUES, chunks=(1, 32, 32))
    next(path for path in (folder / "lost.zarr/c").rglob("*") if path.is_file()).unlink()
    zarr.create_array(folder / "bad.zarr", data=VALUES)
    (folder / "bad.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "array", "shape": "x"}')
    (folder / "no.mrc").write_bytes(b"MAP " * 300)
    (folder / "no.h5").write_bytes(b"years of work")
    whole = {
        "cut": "cut.tif", "text": "text.tif", "nothing": "nothing.tif", "one": "one.tif", "flat": "flat.tif",
        "nan": "nan.tif", "colour": "colour.tif", "unlike": "unlike", "gap": "gap", "lost": "lost.zarr",
        "bad": "bad.zarr", "mrc": "no.mrc", "hdf5": "no.h5",
    }  # fmt: skip
    return {name: {"source": source, "voxel_size": SIZE} for name, source in whole.items()}


def test_useless_data_are_each_one_sentence_at_the_end(folder, commands):
    found = broken(folder)
    config = {**GOOD, "datasets": found, "restorations": [{"dataset": n, "model": "n"} for n in found]}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    wanted = [f"results/acquired/{name}.ome.zarr/zarr.json" for name in found]
    lines = snakemake(folder, commands, "--keep-going", *wanted)
    again = snakemake(folder, commands, "--keep-going", *wanted)
    for said in (lines, again):
        last = [line for line in said[-len(found) - LAST :] if line.startswith("error: ")]
        assert len(last) == len(found), "\n".join(last)
        for name, dataset in found.items():
            (own,) = (line for line in last if f"logs/acquire/{name}.log" in line)
            assert dataset["source"] in own and len(own) < 400, own


def damaged_models(folder):
    """Write folders of models that a job finds unusable; return their models, and a word of each."""
    given = SHIPPED_FOLDER / "emdiffuse-n"
    for name in ("nan", "cut", "edited", "text"):
        shutil.copytree(given, folder / name)
    with safe_open(given / "model.safetensors", "np") as file:
        weights = {key: file.get_tensor(key).copy() for key in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = file.metadata()
    next(iter(weights.values())).flat[0] = np.nan
    save_file(weights, folder / "nan/model.safetensors", metadata)
    (folder / "cut/model.safetensors").write_bytes((given / "model.safetensors").read_bytes()[:5000])
    description = json.loads((given / "model.json").read_text())
    description["network"]["channels"] //= 2
    (folder / "edited/model.json").write_text(json.dumps(description))
    (folder / "text/model.json").write_text("years of work")
    (folder / "code.pth").write_bytes(pickle.dumps({"a": pickle.loads}))
    said = {
        "nan": "NaN", "cut": "safetensors file", "edited": "shape",
        "text": "JSON", "code.pth": "weights", "vemdiffuse": "task",
    }  # fmt: skip
    return {name: {"task": "emdiffuse-n", "weights": name} for name in said}, said


def test_models_and_outputs_that_cannot_be_used_are_each_one_sentence_at_the_end(folder, commands):
    models, said = damaged_models(folder)
    small = {"task": "emdiffuse-n", "datasets": ["a"], "patches": {"size": 64}}  # of images of 32 x 32
    config = {**GOOD, "models": {**models, "small": small}, "restorations": []}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    (folder / "results/acquired/a.ome.zarr").mkdir(parents=True)
    (folder / "results/acquired/a.ome.zarr/notes.txt").write_text("years of work")
    wanted = [f"experiments/{name}/best/model.json" for name in models]
    lines = snakemake(folder, commands, "--keep-going", *wanted, "results/acquired/a.ome.zarr/zarr.json")
    assert (folder / "results/acquired/a.ome.zarr/notes.txt").read_text() == "years of work"
    (folder / "results/acquired/a.ome.zarr/notes.txt").unlink()
    lines += snakemake(folder, commands, "--keep-going", "experiments/small/best/model.json")
    last = [line for line in lines if line.startswith("error: ") and "(see logs/" in line]
    said |= {"a": "results/acquired/a.ome.zarr", "small": "64 x 64"}
    for name, word in said.items():
        (own,) = (line for line in last if f"/{name}.log)" in line)
        assert word in own and len(own) < 400, own
    assert len(last) == len(said), "\n".join(last)


def test_every_sentence_of_a_wrong_key_is_one_line(folder, monkeypatch):
    """The workflow prints only their sentence: here are many more, without Snakemake."""
    monkeypatch.chdir(folder)
    for path, value in (("datasets.a.crop", {"z": [3, 1]}), ("models.n.task", "x"), ("title", "two\nlines")):
        first, *rest = path.split(".")
        config = yaml.safe_load(yaml.safe_dump(GOOD))
        place = config.setdefault(first, {})
        for key in rest[:-1]:
            place = place[key]
        if rest:
            place[rest[-1]] = value
        else:
            config[first] = value
        with pytest.raises(EmdiffuseError) as error:
            validate(config)
        assert re.fullmatch(r"config: .+", str(error.value))
