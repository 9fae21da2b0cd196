"""Separate images, which need no alignment: copied by hard links."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emdiffuse.registration.figures import draw_gallery, overlay
from emdiffuse.runtime.atomic import replaced
from emdiffuse.runtime.json_files import write_json
from emdiffuse.runtime.outputs import PROGRAM
from emdiffuse.stores.intensity import to_unit
from emdiffuse.stores.links import link
from emdiffuse.stores.provenance import made_by
from emdiffuse.stores.volume import open_volume, write_image

SHOWN = 4


def pass_images(volume: Path, out: Path, quality: Path, figure: Path) -> None:
    """Copy separate images by hard links, since there are no neighbouring slices to align.

    Parameters
    ----------
    volume : Path
        Acquired images, (z, y, x).
    out : Path
        The store to write.
    quality, figure : Path
        Results, as JSON and as a figure.
    """
    opened = open_volume(volume)
    count = opened.array.shape[0]
    name = opened.facts.dataset or volume.name.split(".")[0]
    conclusion = f"{count} separate image(s): there are no slices to align"
    write_json(quality, {"program": PROGRAM, "dataset": name, "conclusion": conclusion})
    chosen = np.unique(np.linspace(0, count - 1, SHOWN).astype(int)).tolist()
    shown = [
        to_unit(opened.array[(slice(z, z + 1), *_window(opened.array.shape))][0], opened.intensity.at(z))
        for z in chosen
    ]
    pictures = [(f"image {z + 1}", overlay(image, image)) for z, image in zip(chosen, shown, strict=True)]
    draw_gallery(pictures, figure)
    with replaced(out, [volume]) as partial:
        link(opened.array.path, partial / "0")
        made = made_by("register", name, {"kind": "images"}, opened.made)
        told = {"stage": "register", "made": made, "alignment": {"conclusion": conclusion}}
        facts = opened.facts.model_copy(update=told)
        write_image(partial, name, opened.voxel_size, facts)


def _window(shape: tuple[int, ...], side: int = 1024) -> tuple[slice, slice]:
    """Return the centre of an image, of at most `side` pixels."""
    y, x = (slice(max((n - side) // 2, 0), min((n + side) // 2, n)) for n in shape[1:])
    return y, x
