"""Viewing: only files of one folder, only with the token, and readable by Zarr libraries over HTTP."""

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import tensorstore as ts
import zarr
from helpers import write_volume

from emdiffuse.runtime.errors import DataError, StoreError
from emdiffuse.viewing import view_in_napari
from emdiffuse.viewing.images import NEUROGLANCER, find_images, napari_layers, neuroglancer_link
from emdiffuse.viewing.server import Server, _Handler, byte_range


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    values = np.random.default_rng(0).integers(0, 256, (40, 70, 90), np.uint8)
    write_volume(folder / "cell.ome.zarr", values, (40, 8, 8))
    (folder / "secret.txt").write_text("not yours")
    (folder / "cell.ome.zarr" / "way-out").symlink_to(folder / "secret.txt")
    return folder / "cell.ome.zarr", values


@pytest.fixture(scope="module")
def server(store):
    with Server(store[0]) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, path: str, method: str = "GET", **headers: str):
    """Send a raw request, without a client that normalises its path."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


def test_it_listens_on_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert urlsplit(server.address).hostname == "127.0.0.1"


def test_files_need_the_token(server, store):
    whole = (store[0] / "zarr.json").read_bytes()
    assert ask(server, f"/{server.token}/zarr.json")[:2] == (200, whole)
    for path in (
        "/zarr.json",
        "/wrong/zarr.json",
        f"/{server.token}x/zarr.json",
        "/",
    ):
        assert ask(server, path)[:2] == (403, b""), path
    assert server.token not in Server.__doc__ and len(server.token) >= 32


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "0/../../secret.txt",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "way-out",
        "0",
        "",
        "none",
        "%00",
    ],
)
def test_nothing_outside_the_folder_and_no_listing(server, path):
    assert ask(server, f"/{server.token}/{path}")[:2] == (404, b"")


def test_an_absolute_path_is_not_followed(server, store):
    assert ask(server, f"/{server.token}/{store[0].parent}/secret.txt")[0] == 404


def test_ranges_heads_and_other_methods(server, store):
    path, whole = f"/{server.token}/zarr.json", (store[0] / "zarr.json").read_bytes()
    size = len(whole)
    status, body, headers = ask(server, path, Range="bytes=2-5")
    assert (status, body, headers["Content-Range"]) == (206, whole[2:6], f"bytes 2-5/{size}")
    assert ask(server, path, Range="bytes=-7")[:2] == (206, whole[-7:])
    assert ask(server, path, Range=f"bytes={size}-")[0] == 416
    status, body, headers = ask(server, path, "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(size))
    assert ask(server, path, "POST")[0] == 501


def test_only_neuroglancers_page_may_read(server):
    for method in ("GET", "OPTIONS"):
        headers = ask(server, f"/{server.token}/zarr.json", method, Origin="https://evil.example")[2]
        assert headers["Access-Control-Allow-Origin"] == NEUROGLANCER
        assert headers["Access-Control-Allow-Headers"] == "Range"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, range(10)),
        ("bytes=0-", range(10)),
        ("bytes=3-4", range(3, 5)),
        ("bytes=3-400", range(3, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-30", range(10)),
        ("bytes=10-", None),
        ("bytes=-0", None),
        ("bytes=5-2", None),
        ("bytes=0-1,4-5", range(10)),
        ("lines=1-2", range(10)),
    ],
)
def test_byte_ranges(header, expected):
    assert byte_range(header, 10) == expected


def test_zarr_libraries_read_the_volume_over_http(server, store):
    spec = {"driver": "zarr3", "kvstore": {"driver": "http", "base_url": server.address, "path": "0/"}}
    np.testing.assert_array_equal(ts.open(spec, open=True).result().read().result(), store[1])
    array = zarr.open_array(f"{server.address}0", mode="r")
    np.testing.assert_array_equal(array[3:5, 10:20], store[1][3:5, 10:20])


def test_the_link_names_every_image(tmp_path, server):
    folder = tmp_path / "restored.ome.zarr"
    for name in ("restored", "uncertainty"):
        write_volume(folder / name, np.zeros((4, 8, 8), np.uint8), (8, 8, 8))
    link = neuroglancer_link("http://127.0.0.1:1/token/", find_images(folder))
    assert link.startswith(f"{NEUROGLANCER}/#!")
    state = json.loads(unquote(urlsplit(link).fragment.removeprefix("!")))
    assert [(layer["name"], layer["source"], layer["visible"]) for layer in state["layers"]] == [
        ("restored", "zarr://http://127.0.0.1:1/token/restored", True),
        ("uncertainty", "zarr://http://127.0.0.1:1/token/uncertainty", False),
    ]
    assert state["layers"][0]["shaderControls"] == {"normalized": {"range": [20.0, 230.0]}}
    assert "shaderControls" not in state["layers"][1]


def test_napari_gets_every_level_in_nanometers(store, monkeypatch):
    (layer,) = napari_layers(store[0])
    assert (layer["name"], layer["scale"], layer["contrast_limits"]) == ("cell", (40, 8, 8), (20.0, 230.0))
    np.testing.assert_array_equal(layer["data"][0][:2], store[1][:2])
    monkeypatch.setitem(sys.modules, "napari", None)  # as if it were not installed
    with pytest.raises(DataError, match="napari is not installed"):
        view_in_napari(store[0])


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"there is no OME-Zarr image"):
        find_images(tmp_path)


def test_the_command_prints_the_link_and_ends_cleanly(store):
    command = [sys.executable, "-u", "-m", "emdiffuse.cli", "view", str(store[0])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().split(" at ")[1].split()[0]
    assert NEUROGLANCER in process.stdout.readline()
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
    connection.request("GET", f"{where.path}zarr.json")
    assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "")


def test_a_port_that_is_taken_is_one_sentence(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "emdiffuse.cli", "view", str(store[0]), "--port", port],
            capture_output=True, text=True,
        )  # fmt: skip
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: 127.0.0.1:")
        and "Traceback" not in done.stderr
    )


def test_files_are_named_for_what_they_are(server):
    for path, kind in (("zarr.json", "application/json"), ("0/c/0/0/0", "application/octet-stream")):
        status, _, headers = ask(server, f"/{server.token}/{path}")
        assert (status, headers["Content-Type"]) == (200, kind)
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "line",
    ["GET", "GET nothing HTTP/1.1", "GET http://[ HTTP/1.1", "GET * HTTP/1.1", "\x00\xff HTTP/9", "GET /"],
)
def test_what_is_no_request_is_answered_or_left_without_a_traceback(server, capfd, line):
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        connection.sendall(f"{line}\r\n\r\n".encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(4096)
    assert ask(server, f"/{server.token}/zarr.json")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_asks_letter_by_letter_is_left(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(_Handler, "timeout", 1)
    with Server(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        with socket.create_connection(running.server_address[:2], timeout=60) as client:
            client.sendall(b"GET /")
            with pytest.raises(OSError):
                for _ in range(600):
                    client.sendall(b"x")
                    time.sleep(0.1)
        running.shutdown()
        thread.join()
    assert "Traceback" not in capfd.readouterr().err


def test_clients_that_do_not_read_take_little_memory_and_are_left(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(_Handler, "timeout", 5)
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 2**31)
    with Server(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        earlier = set(threading.enumerate())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        request = f"GET /{running.token}/large HTTP/1.1\r\nRange: bytes=1-{2**30}\r\n\r\n".encode()
        clients = [socket.create_connection(running.server_address[:2], timeout=60) for _ in range(8)]
        for client in clients:
            client.sendall(request)
        assert all(client.recv(12) == b"HTTP/1.1 206" for client in clients)
        end = time.monotonic() + 120
        while set(threading.enumerate()) - earlier and time.monotonic() < end:
            time.sleep(0.1)  # until the server has left them all
        assert not set(threading.enumerate()) - earlier
        for client in clients:
            client.close()
        assert (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
        )  # kB; 8 GiB were asked for
        running.shutdown()
        thread.join()
    assert "Traceback" not in capfd.readouterr().err
