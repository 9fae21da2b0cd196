"""Full disks, missing devices and closed outputs: one sentence, and no partial output."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import tifffile
from helpers import write_volume
from learning import model_settings
from restoring import image_model

SETTINGS = model_settings(steps=2, batch=2, validate_every=1).model_dump_json()
WRITERS = {
    "train": ["train", "p.zarr", "m", "{disk}/experiment", "--settings", SETTINGS, "--device", "cpu"],
    "import-weights": "import-weights model --task emdiffuse-n --out {disk}/copy",
    "watch": "watch in --out {disk}/out --model model --device cpu --once --settle 0 --patience 0",
    "enhance": "enhance scan.tif {disk}/clean.tif --model model --device cpu",
    "export, precomputed": "export v.ome.zarr {disk}/v --format precomputed",
    "export, torch": "export model {disk}/m.pt2 --format torch --side 64",
    "align": "align scan.tif scan2.tif {disk}/aligned.tif",
    "keep-every": "keep-every v.ome.zarr 3 a {disk}/a.ome.zarr",
    "register": "register v.ome.zarr {disk}/r.ome.zarr {disk}/q.json {disk}/q.png --settings {{}}",
    "patches": ["patches", "v.ome.zarr", "--out", "{disk}/p.zarr", "--settings", SETTINGS],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, medulla, store):
    folder = tmp_path_factory.mktemp("place")
    (folder / "in").mkdir()
    for number, name in enumerate(("scan.tif", "scan2.tif", "in/scan.tif")):
        tifffile.imwrite(folder / name, medulla[number, :128, :128])
    write_volume(folder / "v.ome.zarr", medulla[:48, :64, :64], (10.0, 10.0, 10.0))
    shutil.copytree(store, folder / "p.zarr")
    image_model(folder / "model")
    return folder


def run(command, place, environment, **streams):
    words = command.split() if isinstance(command, str) else command
    kinds = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(["emdiffuse", *words], cwd=place, env=environment, text=True, **kinds)


def on(disk, command):
    words = command.split() if isinstance(command, str) else command
    return [word.replace("{disk}", str(disk)).replace("{{}}", "{}") for word in words]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("room", [24_000])
def test_a_full_disk_is_one_sentence(name, room, place, commands, small_disk):
    disk, leave = small_disk
    leave(room)
    before = set(disk.iterdir())
    done = run(on(disk, WRITERS[name]), place, commands)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done.stderr
    assert len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"the disk at {disk} is full" in said[0]
    left = [path for path in disk.rglob("*") if path.is_file() and path not in before]
    # a training keeps its state for resuming; a watch records the owner of its folder
    kept = [path for path in left if "run" not in path.parts and path.name != ".emdiffuse-watch"]
    kept = [path for path in kept if path.suffix != ".json" or not json.loads(path.read_text())]
    assert not [path for path in kept if path.stat().st_size or "partial" in path.name], left


NO_DEVICE = ["cuda:7", "mps", "tpu", "cuda:x", ""]


@pytest.mark.parametrize("device", NO_DEVICE)
@pytest.mark.parametrize("name", ["train", "watch", "enhance"])
def test_a_device_that_is_not_there_is_one_sentence(name, device, place, commands, tmp_path):
    words = on(tmp_path, WRITERS[name])
    words[words.index("--device") + 1] = device
    done = run(words, place, commands)
    said = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert len(said) == 1 and said[0].startswith("error: "), done.stderr


@pytest.mark.parametrize("name", WRITERS)
def test_a_command_ends_well_without_an_output_to_print_to(name, place, tmp_path):
    """Like a job without its terminal, in a separate process."""
    words = shlex.join(on(tmp_path, WRITERS[name]))
    line = f"{sys.executable} -m emdiffuse.cli {words} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], cwd=place).returncode == 0


@pytest.mark.parametrize("volume", ["in", "scan.tif", "p.zarr", "model", "v.ome.zarr/0", "none"])
@pytest.mark.parametrize("kind", ["precomputed", "torch", "bioimageio"])
def test_export_of_what_is_none_is_one_sentence(volume, kind, place, commands, tmp_path):
    if volume == "model" and kind != "precomputed":
        return  # this is one
    done = run(f"export {volume} {tmp_path}/x --format {kind}", place, commands)
    said = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert done.returncode == 1 and len(said) == 1 and said[0].startswith("error: "), done.stderr
    assert not list(tmp_path.iterdir())
