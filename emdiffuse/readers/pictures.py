"""PNG, JPEG and other common image formats, through Pillow.

Conventions
-----------
* See `base`. The format is identified by the first bytes, whatever the name. The Exif orientation is
  honoured.
* JPEG and other lossy formats lose detail that a network would learn, so they are read with a warning. Pixel
  sizes are unknown: dots per inch refer to printing.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config.reading import Reading
from emdiffuse.readers.axes import Layout, lay_out
from emdiffuse.readers.base import Source, named
from emdiffuse.runtime.errors import DataError

SIGNS = (
    b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"RIFF", b"\0\0\0\x0cjP", b"P5", b"P2",
)  # fmt: skip
LOSSY = ("JPEG", "WEBP", "JPEG2000")
MODES = {"1": "uint8", "L": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""Values of the Exif orientation that exchange rows and columns."""
_warned: set[tuple[Path, str]] = set()
logger = logging.getLogger(__name__)


class Picture(Source):
    """An image file, decoded at the first read.

    Parameters
    ----------
    file : Path
        The file.
    content : bytes or None
        Its bytes, if already in memory.
    layout : Layout
        Position of the plane in the decoded array.
    dtype : numpy.dtype
        Data type of a pixel.
    """

    def __init__(self, file: Path, content: bytes | None, layout: Layout, dtype: np.dtype[Any]) -> None:
        super().__init__(str(file), layout.shape, dtype, layout.shape, [file])
        self._content = content
        self._layout = layout

    def _read(self, z0: int, z1: int, y: slice, x: slice) -> NDArray[Any]:
        from PIL import Image, ImageOps

        with named(self.name, "picture"):
            content = self._content if self._content is not None else self.files[0].read_bytes()
            with Image.open(io.BytesIO(content)) as picture:
                decoded = picture.convert("RGB") if picture.mode == "P" else picture
                values = np.asarray(ImageOps.exif_transpose(decoded))
        plane = self._layout.arranged(self.name, values)
        return np.ascontiguousarray(plane[:, y, x])

    def _where(self, z: int) -> str:
        return self.name


def is_picture(file: Path, content: bytes | None = None) -> bool:
    """Return whether a file is in one of these formats, by its first bytes."""
    if content is None:
        with named(str(file), "image"), file.open("rb") as opened:
            content = opened.read(16)
    if content.startswith(b"RIFF"):
        return content[8:12] == b"WEBP"
    return content.startswith(SIGNS)


def warn_of_loss(file: Path, kind: str) -> None:
    """Warn once per folder about lossy compression."""
    if (file.parent, kind) not in _warned:
        _warned.add((file.parent, kind))
        logger.warning(
            "%s: %s loses detail that cannot be restored; use the original if there is one", file, kind
        )


def open_picture(file: Path, reading: Reading, content: bytes | None = None) -> Picture:
    """Open an image file.

    Raises
    ------
    DataError
        If it has several frames or cannot be decoded; real colour is refused when read.
    """
    from PIL import Image

    with named(str(file), "picture"):
        Image.MAX_IMAGE_PIXELS = None  # a micrograph may be large
        with Image.open(file if content is None else io.BytesIO(content)) as picture:
            mode, size, kind = picture.mode, picture.size, str(picture.format)
            frames = getattr(picture, "n_frames", 1)
            if picture.getexif().get(ORIENTATION, 1) in TURNED:
                size = size[::-1]
    if frames > 1:
        raise DataError(f"{file}: this is a movie of {frames} images; save them as TIFF")
    if kind in LOSSY:
        warn_of_loss(file, kind)
    if mode not in MODES and mode not in ("P", "RGB", "RGBA", "LA"):
        raise DataError(f"{file}: an image of mode {mode} is not a single grayscale channel; convert it")
    samples = {"P": 3, "RGB": 3, "RGBA": 4, "LA": 2}.get(mode)
    shape = (size[1], size[0]) if samples is None else (size[1], size[0], samples)
    layout = lay_out(str(file), shape, "yx" if samples is None else "yxs", reading)
    return Picture(file, content, layout, np.dtype(MODES.get(mode, "uint8")))
