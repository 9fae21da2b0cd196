"""Empty regions, in which there is nothing to restore: a sentence, and an image with them hatched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emdiffuse.report.pictures import View
from emdiffuse.restoration.empty import LAYER
from emdiffuse.stores.facts import RestoredFacts
from emdiffuse.stores.volume import open_volume

PERIOD = 8
"""Distance between hatching lines, in pixels."""


def sentence(restored: RestoredFacts, images: bool) -> list[str]:
    """Return a sentence on the share of empty regions, how they were detected, and what became of them."""
    facts = restored.empty
    if facts is None or not facts.share:
        return []
    if restored.sampler is None or restored.sampler.empty != "mark":
        what = "averaged" if images else "interpolated"
        treated = f"Nothing was generated there; the input is {what}."
    else:
        treated = "It is restored like the rest; any detail there is not to be trusted."
    return [
        f"{max(facts.share, 0.0001):.2%} of the restoration is empty: no contrast above "
        f"{facts.contrast / 2:.1%} of the intensity range and {facts.noisy:g} times the noise. "
        f"{treated} The layer '{LAYER}' marks it."
    ]


def hatched(view: View) -> NDArray[np.float32] | None:
    """Return the xy plane that is shown, with empty regions hatched, or None if there are none.

    Returns
    -------
    ndarray or None
        (y, x), intensities.
    """
    facts = view.volumes["restored"].restoration.empty
    if facts is None:
        return None
    size, (z, _, _) = facts.block, view.middle
    rows, columns = view.box[1:]
    sides = [slice(side.start // size, -(-side.stop // size)) for side in (rows, columns)]
    layer = open_volume(view.volumes["restored"].path / LAYER).array[(slice(z, z + 1), *sides)][0]
    top, left = (side.start - wide.start * size for side, wide in zip((rows, columns), sides, strict=True))
    places = layer.repeat(size, 0).repeat(size, 1)[top : top + len(rows), left : left + len(columns)] > 127
    if not places.any():
        return None
    values = view.plane("restored", 0).copy()
    lines = (np.add.outer(np.arange(len(rows)), np.arange(len(columns))) % PERIOD) < 2
    black, white = view.contrast
    # black on resin, which is bright, and white outside of the field, which is black
    seen_on = np.where(values > (black + white) / 2, black, white).astype(values.dtype)
    return np.where(places & lines, seen_on, values)
