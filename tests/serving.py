"""A web server for a test, of which nothing is left when the test ends."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path


class Quiet(http.server.ThreadingHTTPServer):
    """A server that writes nothing to the terminal: another test may be reading what is written there.

    Closing it waits for its threads, so a late response cannot reach the next test.
    """

    daemon_threads = False

    def __init__(self, handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> None:
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, *_: object) -> None:
        """Ignore clients that left."""


class Files(http.server.SimpleHTTPRequestHandler):
    """Serve files; wait, before it answers for a path with `silent` in it, until the test ends."""

    server: Quiet
    silent = "never"

    def do_GET(self) -> None:
        """Answer, or do not."""
        if self.silent in self.path:
            self.server.ended.wait()
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextlib.contextmanager
def served(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on this machine.

    Yields
    ------
    str
        The server's address.
    """
    with Quiet(handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def served_folder(folder: Path, files: type[Files] = Files) -> contextlib.AbstractContextManager[str]:
    """Serve the files of a folder on this machine."""
    return served(partial(files, directory=str(folder)))
