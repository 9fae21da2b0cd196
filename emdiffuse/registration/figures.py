"""Figures of a registration: overlays before and after, and the displacement in colour.

Conventions
-----------
* Images are (y, x), in [-1, 1]; the moving one is shown in magenta, the fixed one in green, so that agreement
  is gray.
* The hue of a displacement is its direction, the saturation its length, up to the length in the title.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdiffuse.registration.warping import Image, Map
from emdiffuse.runtime.atomic import save_figure

LARGEST = 640
"""Maximum height and width of the central part that is shown, in pixels."""
Colors = NDArray[np.float32]


def overlay(moving: Image, fixed: Image) -> Colors:
    """Return the two images in magenta and green, (y, x, 3) in [0, 1]."""
    colors = np.clip((np.stack([moving, fixed, moving], -1) + 1) / 2, 0, 1)
    return np.asarray(colors, np.float32)


def wheel(displacement: Map, longest: float) -> Colors:
    """Return displacements (2, y, x) as colours (y, x, 3): red to the right, white for none."""
    from matplotlib.colors import hsv_to_rgb

    y, x = displacement
    hue = (np.arctan2(y, x) / (2 * np.pi)) % 1
    length = np.clip(np.hypot(y, x) / max(longest, 1e-6), 0, 1)
    return np.asarray(hsv_to_rgb(np.stack([hue, length, np.ones_like(hue)], -1)), np.float32)


def draw_field(title: str, before: Colors, after: Colors, displacement: Map, path: Path) -> None:
    """Draw one field: overlay before and after, and the displacement.

    Parameters
    ----------
    title : str
        Title of the figure.
    before, after : ndarray
        Overlays (y, x, 3).
    displacement : ndarray
        (2, y, x), in pixels; the colours show it minus its median, the shift of the whole image.
    path : Path
        PNG to write.
    """
    from matplotlib.figure import Figure

    shift = np.median(displacement, axis=(1, 2))
    local = displacement - shift[:, None, None]
    longest = max(float(np.percentile(np.hypot(*local), 99)), 0.1)
    pictures = {
        "before": before,
        "after": after,
        f"displacement beside the shift ({shift[0]:+.1f}, {shift[1]:+.1f}) px, up to {longest:.1f} px": wheel(
            local, longest
        ),
    }
    height, width = before.shape[:2]
    stacked = width > 2 * height
    figure = Figure(
        figsize=(9, 3 + 27 * height / width) if stacked else (13, 1 + 4.2 * height / width),
        dpi=100,
        layout="constrained",
    )
    panels = figure.subplots(3, 1) if stacked else figure.subplots(1, 3)
    for axis, (name, picture) in zip(panels, pictures.items(), strict=True):
        axis.imshow(picture[_middle(picture)], interpolation="nearest")
        axis.set_title(name, fontsize="small")
        axis.set_axis_off()
    dial = panels[-1].inset_axes((0.01, 0.01, 0.16, 0.16))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, 65, dtype=np.float32),) * 2, indexing="ij"))
    dial.imshow(np.where(np.hypot(*grid)[..., None] <= 1, wheel(grid, 1), 1))
    dial.set_axis_off()
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, path)


def draw_gallery(pictures: list[tuple[str, Colors]], path: Path, columns: int = 2) -> None:
    """Draw images (y, x, 3) with their titles, in rows."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // columns)
    height, width = pictures[0][1][_middle(pictures[0][1])].shape[:2]
    figure = Figure(
        figsize=(4.4 * columns, rows * (0.4 + 4.4 * height / width)), dpi=110, layout="constrained"
    )
    for axis in (panels := figure.subplots(rows, columns, squeeze=False)).flat:
        axis.set_axis_off()
    for axis, (name, picture) in zip(panels.flat, pictures, strict=False):
        axis.imshow(picture[_middle(picture)], interpolation="nearest")
        axis.set_title(name, fontsize="small")
    save_figure(figure, path)


def _middle(picture: Colors) -> tuple[slice, slice]:
    """Return the centre of an image, of at most `LARGEST` pixels a side."""
    y, x = (
        slice(max((n - LARGEST) // 2, 0), max((n - LARGEST) // 2, 0) + LARGEST) for n in picture.shape[:2]
    )
    return y, x
