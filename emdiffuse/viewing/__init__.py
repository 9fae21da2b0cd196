"""View a volume: in Neuroglancer, through a small web server, or in napari."""

from __future__ import annotations

from pathlib import Path

from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import logger
from emdiffuse.viewing.images import find_images, napari_layers, neuroglancer_link
from emdiffuse.viewing.server import LOOPBACK, Server


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
