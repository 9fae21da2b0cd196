"""View a volume: a small web server for one OME-Zarr store, with a link to Neuroglancer; or napari.

Conventions
-----------
* The server listens on the loopback address alone unless told otherwise, answers GET, HEAD and OPTIONS, and
  gives nothing but the files below its folder: links that lead out of it are not followed, folders are not
  listed.
* Every address begins with a secret token, new at each start: other users and web pages do not know it. Only
  Neuroglancer's page may read the answers in a browser (CORS).
* Byte ranges are answered, which sharded Zarr is read by. Files are sent in pieces, to at most
  `CONNECTIONS` clients at a time. A client that does not read, or has not asked in full, is left after
  `IDLE_SECONDS`, however slowly it goes on: memory and threads are bounded, whatever clients do.
* An *image* is a group with ``multiscales`` of OME-Zarr 0.4 or 0.5; its place is its path from the folder.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

import zarr

from emdiffuse.runtime.disks import read_plain
from emdiffuse.runtime.errors import AccessError, DataError, StoreError
from emdiffuse.runtime.progress import logger

NEUROGLANCER = "https://neuroglancer-demo.appspot.com"
LOOPBACK = "127.0.0.1"
CONNECTIONS = 64
IDLE_SECONDS = 60
PIECE = 2**18
"""Bytes of a file buffered per client."""


@dataclass(frozen=True)
class Image:
    """An image of a store.

    Attributes
    ----------
    place : str
        Path of its group from the store; empty for the store itself.
    name : str
        Display name.
    levels : tuple of str
        Paths of the resolution levels from the group, finest first.
    scale : tuple of float
        Voxel size of the finest level per axis; in our stores (z, y, x) in nanometers.
    units : tuple of str
        Units of the axes; "pixel" for axes without a unit of length.
    contrast : tuple of float, optional
        Intensities shown as black and white, if the store states them.
    """

    place: str
    name: str
    levels: tuple[str, ...]
    scale: tuple[float, ...]
    units: tuple[str, ...]
    contrast: tuple[float, float] | None


def find_images(store: Path) -> list[Image]:
    """List the images of a store: those in its groups, up to two levels deep, or else the store itself.

    Raises
    ------
    StoreError
        If there are none.
    """
    own = _attributes(store)
    found = []
    for group in sorted({path.parent for depth in ("*", "*/*") for path in _marks(store, depth)}):
        attributes = _attributes(group)
        if "multiscales" in attributes.get("ome", {}):
            found.append(_image(store, group, own | attributes))
    if not found and "multiscales" in own.get("ome", {}):
        found.append(_image(store, store, own))
    if not found:
        raise StoreError(f"{store}: there is no OME-Zarr image; give the folder that ends in .ome.zarr")
    return sorted(found, key=lambda image: image.name != "restored")


def _marks(store: Path, depth: str) -> Iterator[Path]:
    """Yield the metadata files of groups, of Zarr 3, and of Zarr 2 (OME-Zarr 0.4)."""
    for name in ("zarr.json", ".zattrs"):
        yield from store.glob(f"{depth}/{name}")


def _attributes(group: Path) -> dict[str, Any]:
    """Return the attributes of a group in the form of OME-Zarr 0.5; in 0.4 they are one level higher."""
    new, old = group / "zarr.json", group / ".zattrs"
    try:
        if new.exists():
            node = json.loads(read_plain(new))
            return _mappings(node.get("attributes", {})) if node.get("node_type") == "group" else {}
        attributes = json.loads(read_plain(old)) if old.exists() else {}
        return _mappings({"ome": attributes}) if "multiscales" in attributes else {}
    except AccessError:
        raise
    except (ValueError, RecursionError, AttributeError, TypeError):
        raise StoreError(f"{group}: its metadata cannot be parsed; copy the store again") from None


def _mappings(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes; raise TypeError if a known part is not a mapping."""
    if not all(isinstance(attributes.get(key, {}), dict) for key in ("ome", "emdiffuse")):
        raise TypeError("a part of the attributes is not a mapping")
    return dict(attributes)


def _image(store: Path, group: Path, attributes: dict[str, Any]) -> Image:
    place = group.relative_to(store).as_posix().removeprefix(".")
    try:
        image = attributes["ome"]["multiscales"][0]
        levels = tuple(str(level["path"]) for level in image["datasets"])
        found = image["datasets"][0]["coordinateTransformations"][0]["scale"]
        scale = tuple(float(side) for side in found)
        units = tuple(str(axis.get("unit", "pixel")) for axis in image["axes"])
        intensity = attributes.get("emdiffuse", {}).get("intensity") or {}
        known = {"low", "high"} <= intensity.keys() and not place.endswith("uncertainty")
        contrast = (float(intensity["low"]), float(intensity["high"])) if known else None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{group}: its OME-Zarr metadata cannot be read; write it again") from None
    name = store.name.removesuffix(".zarr").removesuffix(".ome")
    return Image(place, place or name, levels, scale, units, contrast)


def neuroglancer_link(address: str, images: list[Image]) -> str:
    """Return a link that shows images in Neuroglancer; `address` is the URL of the store."""
    layers = []
    for number, image in enumerate(images):
        layer: dict[str, Any] = {
            "type": "image",
            "name": image.name,
            "source": f"zarr://{address}{image.place}",
            "visible": number == 0,
        }
        if image.contrast:
            layer["shaderControls"] = {"normalized": {"range": list(image.contrast)}}
        layers.append(layer)
    state = {"layers": layers, "selectedLayer": {"layer": images[0].name}, "layout": "4panel"}
    return f"{NEUROGLANCER}/#!{quote(json.dumps(state, separators=(',', ':')))}"


class Server(http.server.ThreadingHTTPServer):
    """Web server for the files of one folder, under a secret token.

    Parameters
    ----------
    folder : Path
        Folder to serve.
    host : str
        Address to listen on.
    port : int
        Port; 0 for a free one.
    """

    daemon_threads = True

    def __init__(self, folder: Path, host: str = LOOPBACK, port: int = 0) -> None:
        self.folder = folder.resolve()
        self.token = secrets.token_urlsafe(24)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        """URL of the folder, with a trailing slash."""
        host = (
            f"[{self.server_address[0]!s}]" if ":" in str(self.server_address[0]) else self.server_address[0]
        )
        return f"http://{host!s}:{self.server_address[1]}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a client in a new thread when one is free; others wait to be accepted."""
        self._room.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client, then free its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error in one line; ignore clients that disconnected or did not read."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.warning("a request failed: %r", error)


class _Asked(io.RawIOBase):
    """What a client sends, until a moment: one that sends a letter now and then would hold its thread."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.until = time.monotonic()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for the next bytes, but not beyond the moment."""
        patience = self._client.gettimeout()
        self._client.settimeout(max(self.until - time.monotonic(), 1e-3))
        try:
            return self._client.recv_into(buffer)
        finally:
            self._client.settimeout(patience)  # of what is sent


class _Handler(http.server.BaseHTTPRequestHandler):
    """Handler of requests for files."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: Server

    def setup(self) -> None:
        """Read what the client sends in time."""
        super().setup()
        self.rfile.close()
        self._asked = _Asked(self.connection)
        self.rfile = io.BufferedReader(self._asked)

    def handle_one_request(self) -> None:
        """Answer the next request of a client, which it has sent in full after `IDLE_SECONDS`."""
        self._asked.until = time.monotonic() + self.timeout
        super().handle_one_request()

    def do_OPTIONS(self) -> None:
        """Answer the preflight request of a browser (CORS)."""
        self._begin(HTTPStatus.NO_CONTENT, 0)

    def do_HEAD(self) -> None:
        """Send the size of a file."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Send a file, or a range of its bytes."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        try:
            _, token, *parts = unquote(urlsplit(self.path).path).split("/", 2)
        except ValueError:  # not a path
            return self._begin(HTTPStatus.BAD_REQUEST, 0)
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self._begin(HTTPStatus.FORBIDDEN, 0)
        try:
            path = (self.server.folder / (parts[0] if parts else "")).resolve()
            if not path.is_relative_to(self.server.folder) or not path.is_file():
                return self._begin(HTTPStatus.NOT_FOUND, 0)
            file = path.open("rb")
        except (OSError, ValueError):  # unreadable, or not a path
            return self._begin(HTTPStatus.NOT_FOUND, 0)
        with file:
            kind = "application/json" if path.suffix == ".json" else "application/octet-stream"
            self._send(file, os.fstat(file.fileno()).st_size, kind, body)
        return None

    def _send(self, file: BinaryIO, size: int, kind: str, body: bool) -> None:
        wanted = byte_range(self.headers.get("Range"), size)
        if wanted is None:
            self._begin(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, f"bytes */{size}")
            return
        if len(wanted) == size:
            self._begin(HTTPStatus.OK, size, kind=kind)
        else:
            told = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
            self._begin(HTTPStatus.PARTIAL_CONTENT, len(wanted), told, kind)
        if not body:
            return
        file.seek(wanted.start)
        left = len(wanted)
        while left and (piece := file.read(min(left, PIECE))):
            self.wfile.write(piece)
            left -= len(piece)
        if left:  # the file was truncated meanwhile: the client must not wait for the rest
            self.close_connection = True

    def _begin(
        self, status: HTTPStatus, length: int, content_range: str | None = None, kind: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Access-Control-Allow-Origin", NEUROGLANCER)
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Allow-Headers", "Range")
        self.send_header("Access-Control-Expose-Headers", "Content-Length, Content-Range")
        self.send_header("Access-Control-Allow-Private-Network", "true")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests: there are thousands, and they contain the token."""


def byte_range(header: str | None, size: int) -> range | None:
    """Return the bytes that a Range header requests (RFC 9110, section 14), or None if there are none.

    Anything but a single byte range returns the whole file, as the RFC allows.
    """
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header or "")
    if asked is None or not (asked[1] or asked[2]):
        return range(size)
    if not asked[1]:
        found = range(max(size - int(asked[2]), 0), size)
    else:
        found = range(int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size))
    return found or None


def view(store: Path, host: str = LOOPBACK, port: int = 0) -> None:
    """Serve a store until Ctrl-C, and print the link that shows it in Neuroglancer.

    Raises
    ------
    StoreError
        If there is no image.
    DataError
        If the address or port is not available.
    """
    images = find_images(store)
    try:
        server = Server(store, host, port)
    except (OSError, OverflowError, TypeError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(f"{host}:{port} cannot be listened on ({said}); choose another") from None
    if host not in (LOOPBACK, "localhost", "::1"):
        logger.warning("anyone who can reach %s and knows the link can read %s", host, store)
    with server:
        print(f"Serving {store} at {server.address} (stop with Ctrl-C). Open:")
        print(neuroglancer_link(server.address, images), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def napari_layers(store: Path) -> list[dict[str, Any]]:
    """Return the arguments of napari's ``add_image`` for every image of a store, without reading voxels."""
    layers = []
    for number, image in enumerate(find_images(store)):
        group = store / image.place
        layers.append(
            {
                "data": [zarr.open_array(group / level, mode="r") for level in image.levels],
                "multiscale": True,
                "name": image.name,
                "scale": image.scale,
                "units": image.units,
                "contrast_limits": image.contrast,
                "visible": number == 0,
            }
        )
    return layers


def view_in_napari(store: Path) -> None:
    """Show a store in napari until its window is closed.

    Raises
    ------
    DataError
        If napari is not installed.
    """
    try:
        import napari
    except ImportError:
        raise DataError(
            "napari is not installed; run pip install 'napari[all]', or omit --napari to use a browser"
        ) from None
    viewer = napari.Viewer(title=str(store))
    for layer in napari_layers(store):
        viewer.add_image(**layer)
    napari.run()
