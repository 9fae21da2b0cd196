"""Every option and argument of every command is given hostile texts, with valid ones for all others."""

import http.server
import json
import shutil

import pytest
import tifffile
import typer
from helpers import write_pairs, write_volume
from hostile import TEXTS, bounded
from learning import model_settings
from restoring import image_model, run, settings

import emdiffuse.cli  # noqa: F401  (registers the commands)
from emdiffuse.cli.app import app
from emdiffuse.runtime.errors import ConfigError

SIZE = (10.0, 10.0, 10.0)
DATASET = json.dumps({"source": "stack.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}})
DEGRADE = json.dumps({"dataset": "a", "noise": {"electrons": 20}})
MODEL = model_settings(steps=1, batch=1, validate_every=1).model_dump_json()
RESTORATION = settings().model_dump_json()
CALIBRATION = json.dumps({"dataset": "a"})

GOOD = {
    "": "--log log.txt --threads 1 models",
    "acquire": ["acquire", "a", "acquired.ome.zarr", "--settings", DATASET],
    "keep-every": "keep-every volume.ome.zarr 3 a thin2.ome.zarr --thickness 0",
    "degrade": ["degrade", "volume.ome.zarr", "a", "noisy.ome.zarr", "--settings", DEGRADE],
    "register": "register volume.ome.zarr registered.ome.zarr quality.json quality.png --settings {}",
    "patches": ["patches", "volume.ome.zarr", "--out", "patches.zarr", "--settings", MODEL],
    "train": [
        "train", "no.zarr", "m", "experiment", "--settings", MODEL, "--device", "cpu", "--processes", "1",
        "--launcher", "local", "--resources", "{}",
    ],
    "plan": [
        "plan", "thin.ome.zarr", "gaps", "plans/plan.json", "--settings", RESTORATION,
        "--calibration", "no.json",
    ],
    "restore": "restore plan/plan.json --worker 1-of-1 --done done --device cpu --batch auto "
    "--compile default --precision auto",
    "stitch": "stitch plan/plan.json --worker 1-of-1 --done done",
    "pyramid": "pyramid plan/plan.json",
    "verify": "verify plan/plan.json",
    "calibrate": [
        "calibrate", "plan/restored.ome.zarr", "thin.ome.zarr", "volume.ome.zarr", "c.json",
        "--settings", CALIBRATION,
    ],
    "baselines": "baselines thin.ome.zarr no.ome.zarr b.json --task vemdiffuse-i --lpips no.pth",
    "evaluate": "evaluate plan/restored.ome.zarr thin.ome.zarr no.ome.zarr e.json --baselines no.json "
    "--lpips no.pth",
    "report": "report results experiments report.html --settings {}",
    "enhance": "enhance scan.tif out/clean.tif --model model --device cpu --steps 1",
    "watch": "watch in --out watched --model model --device cpu --once --settle 0 --patience 0",
    "adapt": "adapt no.tif --out adapted --model gaps --minutes 0.01 --seed 0 --device cpu",
    "align": "align scan.tif no.tif aligned.tif --scale 1 --weights shipped",
    "train-raft": "train-raft flow.safetensors --stack no.tif --pair no.tif,no.tif --minutes 0.001 --batch 1 "
    "--seed 0",
    "import-weights": "import-weights model --task emdiffuse-n --out imported",
    "export": "export thin.ome.zarr exported --format precomputed --factor 3 --license MIT --side 64",
    "provenance": "provenance volume.ome.zarr",
    "schema": "schema",
    "progress": "progress results",
    "view": "view volume.ome.zarr --host 127.0.0.1 --port 0",
    "init": "init folder --raw no.tif --voxel-size 10,10,10 --model model --partition p --gpu-partition g "
    "--account a --yes",
    "doctor": "doctor --folder no",
    "estimate": "estimate no.yaml --workers 1 --card H100 --device cpu",
    "models": "models",
    "models verify": "models verify",
}  # fmt: skip
"""A valid use of each command, if quick; slow ones name a missing input."""


def commands(group, before=()):
    for name, command in group.commands.items():
        yield " ".join([*before, name]), command
        if hasattr(command, "commands"):
            yield from commands(command, [*before, name])


COMMANDS = {"": typer.main.get_command(app), **dict(commands(typer.main.get_command(app)))}


FORMATS = {
    "torch": "export model exported.pt2 --format torch --factor 3 --side 64",
    "bioimageio": "export gaps exported.zip --format bioimageio --factor 3 --license MIT",
}
"""Other uses of `export`, all of them refused, since others take seconds."""


def words(name):
    return GOOD[name].split() if isinstance(GOOD[name], str) else list(GOOD[name])


def tries(name, given=None):
    """Yield the command line with each option and argument replaced by each text."""
    known = {"--log": None, "--threads": None}
    if name:
        parameters = [own for own in COMMANDS[name].params if not getattr(own, "is_flag", False)]
        known = {option: own for own in parameters for option in own.opts}
    given = given or words(name)
    own = len(name.split())
    options = [option for option in known if option.startswith("--") and option != "--help"]
    for number, option in enumerate(options, list(GOOD).index(name)):
        for text in TEXTS[
            number % 2 :: 2
        ]:  # half of them: options that commands share meet the other half, too
            rest = list(given)
            if option in rest:
                del rest[rest.index(option) : rest.index(option) + 2]
            yield f"{option}={text!r}", [*rest[:own], f"{option}={text}", *rest[own:]]
    named = {i for i, word in enumerate(given) if word.startswith("--")}
    values = {i + 1 for i in named if given[i] in known}
    places = set(range(own, len(given))) - named - values if name else ()
    for place in places:
        for text in TEXTS:
            yield f"argument {place}: {text!r}", [*given[:place], text, *given[place + 1 :]]


@pytest.fixture(scope="module")
def samples(tmp_path_factory, medulla, small_model):
    folder = tmp_path_factory.mktemp("samples")
    (folder / "in").mkdir()
    tifffile.imwrite(folder / "stack.tif", medulla[:4, :48, :48], photometric="minisblack")
    for name in ("scan.tif", "in/scan.tif"):
        tifffile.imwrite(folder / name, medulla[0, :48, :48])
    write_volume(folder / "volume.ome.zarr", medulla[:13, :48, :48], SIZE)
    write_volume(folder / "thin.ome.zarr", medulla[:13:6, :48, :48], (60.0, 10.0, 10.0))
    write_pairs(folder / "pairs.ome.zarr", [(medulla[0, :48, :48], medulla[0, :48, :48])])
    image_model(folder / "model")
    shutil.copytree(small_model, folder / "gaps")
    run(folder / "thin.ome.zarr", folder / "gaps", folder / "plan")
    return folder


def test_every_command_is_among_them():
    assert GOOD.keys() == COMMANDS.keys(), "give each command a right use"


@pytest.fixture
def call(samples, tmp_path, monkeypatch):
    """Return a function that runs a command in a copy of the samples."""
    place = tmp_path / "a/b/c/w"  # a path that leads out of it leads nowhere else
    shutil.copytree(samples, place)
    monkeypatch.chdir(place)
    monkeypatch.setattr(http.server.HTTPServer, "serve_forever", lambda *_, **__: None)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")

    def call(arguments):
        try:
            with bounded():
                app(arguments, standalone_mode=False)
        except (typer.Exit, typer.Abort):
            pass
        except Exception as error:
            if type(error).__module__.startswith(("click", "typer")):  # a sentence on how it is used
                raise ConfigError(" ".join(str(error).split()) or "it is used otherwise") from None
            raise

    return call


@pytest.mark.parametrize("name", GOOD)
def test_options_and_arguments(name, call, attempt):
    for what, arguments in tries(name):
        attempt(f"{name} {what}", lambda arguments=arguments: call(arguments))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_an_export(format, call, attempt):
    for what, arguments in tries("export", FORMATS[format].split()):
        attempt(f"{format} {what}", lambda arguments=arguments: call(arguments))
