"""Patches cut from registered image pairs, for emdiffuse-n and emdiffuse-r.

Conventions
-----------
* Both images of a field are scaled by the range of its moving one, which alone is known when a model is
  applied.
* The condition is the moving image (noisy, or of low resolution and then enlarged to the pixel grid of the
  other), the target the fixed one. Sizes and origins are in pixels of the fixed image.
* The grid of patches begins where the registration's mask does. A patch with a pixel outside the mask is left
  out, and so is a field that registration excluded.
* Whole fields are kept for validation; of a single field, its lower end, `MARGIN` pixels away from what is
  trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Model
from emdiffuse.config.tasks import TASKS
from emdiffuse.patches.origins import TRAINING, VALIDATION, Cut, Origin, training_length
from emdiffuse.restoration.geometry import ceil_to
from emdiffuse.runtime.errors import DataError
from emdiffuse.stores.facts import PairsFacts
from emdiffuse.stores.intensity import shown
from emdiffuse.stores.pairs import holds_pairs, open_pairs
from emdiffuse.stores.resampling import enlarge
from emdiffuse.stores.volume import Volume

MARGIN = 16
MASKED = 0.1
"""Share of a row or column at the edge of a field of which more is masked: the grid begins behind it."""


class PairSource:
    """A store of registered pairs that patches are cut from; see the module, and `origins.PatchSource`."""

    def __init__(self, path: Path, model: Model, validated: bool = True) -> None:
        self.path = path
        self.model = model
        self.validated = validated
        if not holds_pairs(path):
            raise DataError(f"{path}: {model.task} learns from image pairs, but this is a volume")
        self.pairs = open_pairs(path)
        self.scale = self.pairs.scale
        wanted = TASKS[model.task].scale
        if self.scale != wanted:
            raise DataError(
                f"{path}: {model.task} learns from pairs of scale {wanted}, but these have scale {self.scale}"
            )
        self.fields = [field for field in self.pairs.fields if not field.excluded]
        if not self.fields:
            raise DataError(f"{path}: every field was excluded by registration; look at its quality")

    @property
    def facts(self) -> PairsFacts:
        """What the store says of itself."""
        return self.pairs.facts

    def image(self, field: int, name: str) -> Volume:
        """Open an image of a field: "moving", "fixed" or "mask"."""
        return self.pairs.image(self.fields[field], name)

    def origins(self, number: int) -> Iterator[Origin]:
        """Yield the places of all patches: regular grids in the fields, or the region, of each split."""
        size, share = self.model.patches.size, self.model.patches.validation
        trained, _ = training_length(len(self.fields), share, 1, 0)
        for field in range(len(self.fields)):
            (top, bottom), (left, right) = self._shown(field)
            regions = {TRAINING if field < trained or not self.validated else VALIDATION: (top, bottom)}
            if len(self.fields) == 1 and self.validated:
                end, begin = training_length(bottom - top, share, size, MARGIN)
                regions = {TRAINING: (top, top + end), VALIDATION: (top + begin, bottom)}
            for split, (low, high) in regions.items():
                step = size if split == VALIDATION else max(round(size * (1 - self.model.patches.overlap)), 1)
                step = ceil_to(step, self.scale)
                rows = range(ceil_to(low, self.scale), high - size + 1, step)
                columns = range(ceil_to(left, self.scale), right - size + 1, step)
                for y, x in itertools.product(rows, columns):
                    yield Origin(number, field, 0, y, x, 1, split)

    def _shown(self, field: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return begin and end of a field along y and x, without its masked edges."""
        _, height, width = self.image(field, "fixed").array.shape
        if not self.pairs.has_mask(self.fields[field]):
            return (0, height), (0, width)
        return framed(self.image(field, "mask").array[:, :, :][0] > 0)

    def usable(self, origin: Origin) -> bool:
        """Tell whether a patch has contrast, and lies inside the mask."""
        if self.pairs.has_mask(self.fields[origin.axis]):
            mask = self.image(origin.axis, "mask").array[self._box(origin, 1)]
            if not mask.all():
                return False
        return bool(self.cut(origin).target.std() >= self.model.patches.minimum_contrast)

    def cut(self, origin: Origin) -> Cut:
        """Return condition and target, each (1, H, W), and the position of an image, 1/2."""
        moving, fixed = (self.image(origin.axis, name) for name in ("moving", "fixed"))
        scaling = moving.intensity.at([0])
        condition = enlarge(shown(moving.array[self._box(origin, self.scale)], scaling), self.scale)
        target = shown(fixed.array[self._box(origin, 1)], scaling)
        return Cut(condition, target, np.array([0.5], np.float32))

    def _box(self, origin: Origin, scale: int) -> tuple[slice, slice, slice]:
        size = self.model.patches.size // scale
        y, x = origin.y // scale, origin.x // scale
        return slice(0, 1), slice(y, y + size), slice(x, x + size)


def framed(valid: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return begin and end along y and x of a mask without its edges that are `MASKED`."""
    (top, left), (bottom, right) = (0, 0), valid.shape
    while top < bottom and left < right:
        inner = valid[top:bottom, left:right]
        shares = [1 - edge.mean() for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1])]
        worst = int(np.argmax(shares))
        if shares[worst] <= MASKED:
            break
        top, bottom = top + (worst == 0), bottom - (worst == 1)
        left, right = left + (worst == 2), right - (worst == 3)
    return (top, bottom), (left, right)
