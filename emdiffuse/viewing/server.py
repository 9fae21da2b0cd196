"""A small web server for the files of one OME-Zarr store.

Conventions
-----------
* The server listens only on the loopback address by default, answers GET, HEAD and OPTIONS, and serves only
  files in its folder: it follows no links out of the folder and lists no folders.
* Every URL begins with a secret token, new at each start and unknown to other users and web pages. Only
  Neuroglancer's page may read the responses in a browser (CORS).
* Byte ranges are supported, as sharded Zarr needs them. Files are sent in pieces, to at most `CONNECTIONS`
  clients at a time. A client that does not read, or whose request is incomplete, is disconnected after
  `IDLE_SECONDS`, so memory and threads stay bounded.
"""

from __future__ import annotations

import http.server
import io
import os
import re
import secrets
import socket
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from emdiffuse.runtime.progress import logger
from emdiffuse.viewing.images import NEUROGLANCER

LOOPBACK = "127.0.0.1"
CONNECTIONS = 64
IDLE_SECONDS = 60
PIECE = 2**18
"""Bytes of a file buffered per client."""


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
    """A client's request, read until a deadline: a client that sends slowly must not block its thread."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.until = time.monotonic()

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for the next bytes, until the deadline at most."""
        patience = self._client.gettimeout()
        self._client.settimeout(max(self.until - time.monotonic(), 1e-3))
        try:
            return self._client.recv_into(buffer)
        finally:
            self._client.settimeout(patience)  # for the response


class _Handler(http.server.BaseHTTPRequestHandler):
    """Handler of requests for files."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: Server

    def setup(self) -> None:
        """Read requests with a deadline."""
        super().setup()
        self.rfile.close()
        self._asked = _Asked(self.connection)
        self.rfile = io.BufferedReader(self._asked)

    def handle_one_request(self) -> None:
        """Answer the next request, which must be complete within `IDLE_SECONDS`."""
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
