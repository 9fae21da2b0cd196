"""Faulty files are refused at once, with the actual reason in plain words."""

import http.server
import os
import re
import subprocess
import sys
import time
import zipfile

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from microscope_files import n5, nrrd
from serving import Files, Quiet, served, served_folder

from emdiffuse.acquisition.acquire import acquire
from emdiffuse.config.reading import Crop, Reading
from emdiffuse.readers import open_source, reasons, stores
from emdiffuse.runtime.errors import DataError, printable

VOLUME = np.random.default_rng(0).integers(1, 255, (4, 16, 16)).astype(np.uint8)


def error_of(place):
    with pytest.raises(DataError) as caught:
        source = open_source(str(place))
        source.read(0, source.shape[0])
    text = str(caught.value)
    assert text.startswith(str(place)) and "\n" not in text and "may be truncated" not in text
    return text


@pytest.mark.parametrize("ending", ["tif", "mrc", "h5", "dm4", "czi", "nrrd", "npy", "am", "dat", "png"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"%PDF-1.4 and so on", "a PDF"),
        (b"hello, this is a note\n" * 9, "a text file"),
        (b"<!DOCTYPE html><html>404</html>" * 9, "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        (b"II\x97\x01\x20\x02\x22\x41" + bytes(900), "a TIA series"),
    ],
)
def test_what_is_no_image_is_named_as_what_it_is(tmp_path, ending, content, sentence):
    place = tmp_path / f"a.{ending}"
    place.write_bytes(content)
    assert sentence in error_of(place)


@pytest.mark.parametrize(
    "ending", ["tif", "mrc", "h5", "dm3", "dm4", "czi", "nrrd", "npy", "am", "dat", "png"]
)
def test_noise_behind_an_ending_is_one_sentence(tmp_path, ending):
    place = tmp_path / f"a.{ending}"
    place.write_bytes(np.random.default_rng(3).integers(128, 255, 5000).astype(np.uint8).tobytes())
    assert "NoneType" not in error_of(place)


@pytest.mark.parametrize(
    ("content", "ending", "remedy"),
    [
        (b"\x93NUMPY" + bytes(900), "tif", "give it the extension .npy"),
        (b"\x1f\x8b" + bytes(900), "tif", "unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(900), "mat", "give it the extension .h5"),
    ],
)
def test_a_remedy_helps(tmp_path, content, ending, remedy):
    (tmp_path / f"a.{ending}").write_bytes(content)
    assert error_of(tmp_path / f"a.{ending}").endswith(remedy)


def test_an_archive_of_other_files_and_arrays_of_other_types(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.tif", b"II*\0")
    assert "this ZIP archive contains no Zarr or N5 image" in error_of(tmp_path / "a.zip")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ctf"] = VOLUME.astype(np.complex64)
    assert "but /ctf (4 x 16 x 16 complex64)" in error_of(tmp_path / "a.h5")
    place = n5(tmp_path, VOLUME, compression={"type": "lz4"})
    assert "compressed with lz4, which cannot be read" in error_of(place)


def test_a_defect_of_ours_keeps_its_traceback():
    with pytest.raises(NameError), reasons.named("a.tif", "TIFF"):
        raise NameError("name 'x' is not defined")


def test_a_tiff_by_another_name_is_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.png", VOLUME, photometric="minisblack")
    assert open_source(str(tmp_path / "a.png")).shape == VOLUME.shape


def cut_mrc(path):
    with mrcfile.new(path, VOLUME.astype(np.int16)):
        pass
    path.write_bytes(path.read_bytes()[:-100])


def cut_hdf5(path):
    with h5py.File(path, "w") as file:
        file["raw"] = VOLUME
    path.write_bytes(path.read_bytes()[:-100])


def cut_tiff(path):
    tifffile.imwrite(path, VOLUME, photometric="minisblack")
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("name", "write"), [("a.mrc", cut_mrc), ("a.h5", cut_hdf5), ("a.tif", cut_tiff)])
def test_truncation_is_said_where_it_was_seen(tmp_path, name, write):
    write(tmp_path / name)
    assert "truncated" in error_of(tmp_path / name)


def slices_mrc(path):
    with mrcfile.new(path, VOLUME.astype(np.uint16)):
        pass


def slices_npy(path):
    np.save(path, VOLUME.astype(np.uint16))


def slices_nrrd(path):
    nrrd(path, VOLUME.astype(np.uint16))


@pytest.mark.parametrize(
    ("name", "write"), [("a.mrc", slices_mrc), ("a.npy", slices_npy), ("a.nrrd", slices_nrrd)]
)
def test_the_whole_slices_of_an_interrupted_recording_can_be_kept(tmp_path, name, write):
    write(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-700])  # of slices of 512 bytes
    assert error_of(tmp_path / name).endswith("or keep the 2 slices that are there by `crop: {z: [0, 2]}`")
    kept = open_source(str(tmp_path / name), reading=Reading(crop=Crop(z=(1, 2), y=(3, 9))))
    np.testing.assert_array_equal(kept.read(0, 1), VOLUME[1:2, 3:9])
    with pytest.raises(DataError, match="the file is truncated"):
        open_source(str(tmp_path / name), reading=Reading(crop=Crop(z=(0, 3))))


def test_a_file_that_another_program_holds(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = VOLUME
    code = (
        "import h5py, sys, time; f = h5py.File(sys.argv[1], 'a'); f['raw'][0] = 1; print('held', flush=True);"
        " time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.h5")], stdout=subprocess.PIPE, text=True
    )
    try:
        holder.stdout.readline()
        assert "another program holds it open for writing" in error_of(tmp_path / "a.h5")
    finally:
        holder.kill()
        holder.wait()


def test_a_filter_that_is_not_installed(tmp_path):
    code = (
        "import h5py, hdf5plugin, numpy, sys\n"
        "with h5py.File(sys.argv[1], 'w') as file:\n"
        "    pixels = numpy.ones((4, 16, 16), 'u1')\n"
        "    file.create_dataset('raw', data=pixels, chunks=(1, 16, 16), **hdf5plugin.LZ4())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], check=True)
    read = (
        "import sys; sys.modules['hdf5plugin'] = None\n"
        "from emdiffuse.readers import open_source\n"
        "from emdiffuse.runtime.errors import DataError\n"
        "try: open_source(sys.argv[1]).read(0, 1)\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path / "a.h5")], capture_output=True, text=True, check=True
    )
    assert "compressed with a filter that is not installed; install hdf5plugin" in done.stdout


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied"), "no permission to read it; check its permissions"),
        (FileNotFoundError(2, "No such file"), "it does not exist, or no longer"),
        (OSError(5, "Input/output error"), r"failed \(Input/output error\)"),
        (OSError(116, "Stale file handle"), r"failed \(Stale file handle\)"),
        (OSError("unable to lock file, errno = 11"), "another program holds it open for writing"),
        (EOFError("Compressed file ended"), "it ends early"),
        (KeyError(8), "its content does not follow the format"),
        (ValueError("word " * 200), r"not a readable TIFF \((word )+…\); export it again"),
    ],
)
def test_reasons(tmp_path, error, sentence):
    (tmp_path / "a.tif").write_bytes(b"\xff\xfe\x80" * 300)
    with pytest.raises(DataError, match=sentence), reasons.named(f"{tmp_path}/a.tif", "TIFF"):
        raise error


@pytest.mark.parametrize("number", [28, 122])
def test_a_full_disk_is_not_the_files_fault(number):
    with pytest.raises(OSError, match="full"), reasons.named("a.tif", "TIFF"):
        raise OSError(number, "full")


class Answering(http.server.BaseHTTPRequestHandler):
    """A server that forbids, fails or never answers, depending on the path."""

    server: Quiet

    def do_GET(self):
        if "silent" in self.path:
            self.server.ended.wait()
        self.send_response(403 if "forbidden" in self.path else 404)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with served(Answering) as address:
        yield address


@pytest.mark.parametrize("ending", [".zarr", ".n5", ""])
def test_what_a_server_answers_is_told_apart(server, ending, monkeypatch):
    assert "reading it is forbidden" in error_of(f"{server}/forbidden{ending}")
    assert "forbidden" not in error_of(f"{server}/nowhere{ending}")
    monkeypatch.setattr(stores, "PATIENCE", 0.5)
    start = time.monotonic()
    assert "no response within 0 seconds" in error_of(f"{server}/silent{ending}")
    assert time.monotonic() - start < 15


READ = """
import sys
from emdiffuse.readers import open_source
open_source(sys.argv[1]).read(0, 4)
"""


def test_a_server_that_stops_answering_while_pixels_are_read(tmp_path):
    """In a separate process, as the timeout of a stalled transfer is read only once."""
    zarr.create_array(tmp_path / "a.zarr", data=VOLUME, chunks=VOLUME.shape)

    class Stalling(Files):
        silent = "/c/"

    with served_folder(tmp_path, Stalling) as address:
        ended = subprocess.run(
            [sys.executable, "-c", READ, f"{address}/a.zarr"],
            env={**os.environ, "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1"},
            capture_output=True,
            text=True,
            timeout=50,
        )
    assert "no response within 30 seconds" in ended.stderr


@pytest.mark.parametrize(
    "name", ["a {b}.tif", "a b\nc.tif", "modèle v1.2.tif", "-5deg.tif", "%s %d.tif", "切片.tif"]
)
def test_unusual_names(tmp_path, name):
    tifffile.imwrite(tmp_path / name, VOLUME, photometric="minisblack")
    acquire(str(tmp_path / name), (50, 8, 8), tmp_path / "out.zarr", "a")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=re.escape(printable(name))):
        open_source(str(tmp_path / name))


def test_a_message_names_what_the_user_gave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zarr.create_array("a.zarr", data=np.ones((2, 3, 4, 5), np.uint8))
    with pytest.raises(DataError, match=r"^a\.zarr: "):
        open_source("a.zarr")
    with pytest.raises(DataError, match=r"^raw: "):
        open_source("raw")
