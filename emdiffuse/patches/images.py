"""Cut patches from images: registered pairs, for emdiffuse-n and emdiffuse-r, or noisy images alone.

Conventions
-----------
* Both images of a field are scaled by the range of the moving one, the only one known when a model is
  applied.
* The condition is the moving image (noisy, or of low resolution and then enlarged to the pixel grid of the
  other), the target the fixed one. Sizes and origins are in pixels of the fixed image.
* For repeated scans, which are all noisy, each image of a field is once the condition and once the target.
* For noisy images alone (separate ones, or the slices of a volume), condition and target are the same image:
  the target pixels are hidden from the network in training (`training.blind_spot`).
* A volume denoiser also sees the slices before and after (`patches.context`), in the order before, the slice
  itself, after; see `stores.neighbours`.
* The grid of patches begins where the registration's mask does. Patches with a pixel outside the mask, and
  fields that registration excluded, are discarded.
* Whole fields are held out for validation; with context, their neighbours are not trained on either. With too
  few fields the lower end is held out, `MARGIN` pixels away from the training region.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdiffuse.config import Model
from emdiffuse.config.tasks import TASKS
from emdiffuse.patches.origins import BLANK, TRAINING, VALIDATION, Cut, Origin, training_length
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.rounding import ceil_to
from emdiffuse.stores.facts import PairsFacts, VolumeFacts
from emdiffuse.stores.intensity import shown
from emdiffuse.stores.neighbours import beside, require_neighbours
from emdiffuse.stores.pairs import holds_pairs, open_pairs
from emdiffuse.stores.resampling import enlarge
from emdiffuse.stores.volume import Volume, open_volume

MARGIN = 16
SAMPLE = 1024
"""Maximum side in pixels of the image part in which the noise correlation is measured."""
MASKED = 0.1
"""Edge rows and columns of a field with a larger masked fraction are excluded from the grid."""


class FieldSource(ABC):
    """Fields from which patches are cut on regular grids; see the module, and `origins.PatchSource`.

    Attributes
    ----------
    count : int
        Number of fields.
    scale : int
        Pixels of the target per pixel of the condition.
    measures : bool
        Whether all fields are held out for validation.
    """

    count: int
    scale = 1
    measures = False
    directions: tuple[int, ...] = (0,)
    """Which image of a field is the condition: 0 the moving, 1 the fixed one."""

    def __init__(self, path: Path, model: Model, validated: bool = True) -> None:
        self.path = path
        self.model = model
        self.validated = validated

    @property
    @abstractmethod
    def facts(self) -> PairsFacts | VolumeFacts:
        """The facts of the store."""

    @abstractmethod
    def area(self, field: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return begin and end of a field along y and x, without its masked edges."""

    @abstractmethod
    def usable(self, origin: Origin) -> bool:
        """Return whether a patch has contrast and is inside the mask."""

    @abstractmethod
    def cut(self, origin: Origin) -> Cut:
        """Return the condition (C, H, W), the target (1, H, W), and the position of an image, 1/2."""

    def origins(self, number: int) -> Iterator[Origin]:
        """Yield the positions of all patches: regular grids in the fields, or the region, of each split."""
        settings = self.model.patches
        size, share, margin = settings.size, settings.validation, 2 * settings.context
        trained, kept = training_length(self.count, share, 1, margin)
        for field in range(self.count):
            (top, bottom), (left, right) = self.area(field)
            regions = {TRAINING: (top, bottom)}
            if self.measures:
                regions = {VALIDATION: (top, bottom)}
            elif self.validated and trained < 1:  # too few fields to hold out whole ones
                end, begin = training_length(bottom - top, share, size, MARGIN)
                regions = {TRAINING: (top, top + end), VALIDATION: (top + begin, bottom)}
            elif self.validated and field >= kept:
                regions = {VALIDATION: (top, bottom)}
            elif self.validated and field >= trained:
                continue  # a neighbour of validation fields
            for split, (low, high) in regions.items():
                step = size if split == VALIDATION else max(round(size * (1 - settings.overlap)), 1)
                step = ceil_to(step, self.scale)
                rows = range(ceil_to(low, self.scale), high - size + 1, step)
                columns = range(ceil_to(left, self.scale), right - size + 1, step)
                for y, x, end in itertools.product(rows, columns, self.directions):
                    yield Origin(number, field, 0, y, x, 1, split, end=end)

    def box(self, origin: Origin, scale: int = 1) -> tuple[slice, slice]:
        """Return the box (y, x) of a patch, in pixels `scale` times as large as those of the target."""
        size = self.model.patches.size // scale
        y, x = origin.y // scale, origin.x // scale
        return slice(y, y + size), slice(x, x + size)


class PairSource(FieldSource):
    """A store of registered pairs from which patches are cut; see the module, and `origins.PatchSource`."""

    def __init__(self, path: Path, model: Model, validated: bool = True) -> None:
        super().__init__(path, model, validated)
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
            raise DataError(f"{path}: every field was excluded by registration; check its quality file")
        self.count = len(self.fields)
        self.directions = (0, 1) if self.facts.scans else (0,)
        degraded = self.facts.degraded or {}
        neighbours = degraded.get("every") == 1 and len(self.fields) == len(self.pairs.fields)
        if model.patches.context and not neighbours:
            raise DataError(
                f"{path}: `patches.context` needs neighbouring slices, but these pairs are separate fields; "
                "use pairs made by `degrade` from every slice, or a noisy volume"
            )

    @property
    def facts(self) -> PairsFacts:
        """The facts of the store."""
        return self.pairs.facts

    def image(self, field: int, name: str) -> Volume:
        """Open an image of a field: "moving", "fixed" or "mask"."""
        return self.pairs.image(self.fields[field], name)

    def area(self, field: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return begin and end of a field along y and x, without its masked edges."""
        _, height, width = self.image(field, "fixed").array.shape
        if not self.pairs.has_mask(self.fields[field]):
            return (0, height), (0, width)
        return framed(self.image(field, "mask").array[:, :, :][0] > 0)

    def usable(self, origin: Origin) -> bool:
        """Return whether a patch has contrast and is inside the mask."""
        if self.pairs.has_mask(self.fields[origin.axis]):
            mask = self.image(origin.axis, "mask").array[slice(0, 1), *self.box(origin)]
            if not mask.all():
                return False
        return bool(self.cut(origin).target.std() >= BLANK)

    def cut(self, origin: Origin) -> Cut:
        """Return the condition (C, H, W), the target (1, H, W), and the position of an image, 1/2."""
        known, wanted = ("fixed", "moving") if origin.end else ("moving", "fixed")
        scaling = self.image(origin.axis, known).intensity.at([0])
        context = self.model.patches.context
        fields = beside(origin.axis, self.count) if context else (origin.axis,)
        parts = []
        for field in fields:
            image = self.image(field, known)
            values = image.array[slice(0, 1), *self.box(origin, self.scale)]
            parts.append(enlarge(shown(values, image.intensity.at([0])), self.scale))
        target = shown(self.image(origin.axis, wanted).array[slice(0, 1), *self.box(origin)], scaling)
        return Cut(np.concatenate(parts), target, np.array([0.5], np.float32))


class NoisySource(FieldSource):
    """Noisy images without ground truth, separate or the slices of a volume; see the module."""

    def __init__(self, path: Path, model: Model, validated: bool = True) -> None:
        super().__init__(path, model, validated)
        if TASKS[model.task].scale > 1:
            raise DataError(f"{path}: {model.task} learns from image pairs, but this is a volume")
        self.volume = open_volume(path)
        if model.patches.context:
            require_neighbours(self.volume)
        lost = frozenset(self.facts.missing)
        self.slices = [z for z in range(self.volume.array.shape[0]) if z not in lost]
        self.count = len(self.slices)

    @property
    def facts(self) -> VolumeFacts:
        """The facts of the store."""
        return self.volume.facts

    def area(self, field: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return begin and end of the images along y and x, without a data bar."""
        rows, columns = self.volume.valid
        return (rows.start, rows.stop), (columns.start, columns.stop)

    def samples(self, count: int) -> Iterator[NDArray[np.float32]]:
        """Yield the centre of up to `count` evenly chosen images, in [-1, 1]."""
        for z in np.unique(np.linspace(0, self.count - 1, count).astype(int)).tolist():
            box = [
                slice(max((a + b - SAMPLE) // 2, a), min((a + b + SAMPLE) // 2, b)) for a, b in self.area(z)
            ]
            number = self.slices[z]
            values = self.volume.array[slice(number, number + 1), *box]
            yield shown(values, self.volume.intensity.at([number]))[0]

    def usable(self, origin: Origin) -> bool:
        """Return whether a patch has contrast."""
        return bool(self.cut(origin).target.std() >= BLANK)

    def cut(self, origin: Origin) -> Cut:
        """Return the noisy image with its neighbours (C, H, W), and the image itself as target (1, H, W)."""
        z = self.slices[origin.axis]
        context = self.model.patches.context
        slices = beside(z, self.volume.array.shape[0], self.facts.missing) if context else (z,)
        values = np.concatenate([self.volume.array[slice(s, s + 1), *self.box(origin)] for s in slices])
        condition = shown(values, self.volume.intensity.at(slices))
        middle = len(slices) // 2
        return Cut(condition, condition[middle : middle + 1], np.array([0.5], np.float32))


def framed(valid: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return begin and end of a mask along y and x, without edges masked by more than `MASKED`."""
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
