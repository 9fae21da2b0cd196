"""Make noisy, blurred or coarse images from the slices of a clean volume, for training or testing.

Conventions
-----------
* The order is that of a microscope: blur, then binning (the mean of `bin` x `bin` pixels), then noise.
* Noise is Poisson noise, with `electrons` at the high end of the slice's range and none at its low end, plus
  Gaussian noise, in units of that range; white, or correlated along x by a first-order autoregressive
  process, like that of a detector that lags behind the scan. The brightness of lines along x may vary.
* Ranges are drawn for every slice. All random numbers depend only on (seed, slice).
* Values are rounded and clipped to the type of the volume; a slice is cropped to a multiple of `bin`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter

from emdiffuse.acquisition.image_pairs import write_fields
from emdiffuse.acquisition.statistics import Statistics
from emdiffuse.acquisition.streaming import default_workers, stream
from emdiffuse.config import Degrade
from emdiffuse.config.datasets import Noise, Range, ends
from emdiffuse.runtime.atomic import replaced
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.progress import progress
from emdiffuse.stores.array import Box, create_image_array, write_plane
from emdiffuse.stores.facts import PairField, PairsFacts, VolumeFacts
from emdiffuse.stores.intensity import Scaling
from emdiffuse.stores.pairs import finish_pairs
from emdiffuse.stores.provenance import Link, listed, made_by, reuse
from emdiffuse.stores.volume import Volume, open_volume, write_image


def degrade(volume: Path, settings: Degrade, out: Path, name: str, images: bool) -> None:
    """Make pairs (degraded, clean) from a volume's slices, or only the degraded images.

    Parameters
    ----------
    volume : Path
        The OME-Zarr image whose slices are degraded.
    settings : Degrade
        Which slices, and how.
    out : Path
        The store to write.
    name : str
        Name of the new dataset.
    images : bool
        Whether to write the degraded images as one stack, to be restored, instead of pairs.

    Raises
    ------
    DataError
        If the images would have no contrast.
    StoreError
        If `volume` cannot be read or `out` cannot be written.
    """
    origin = open_volume(volume)
    kind: Literal["images", "pairs"] = "images" if images else "pairs"
    how = {"kind": kind, **settings.model_dump(mode="json", exclude={"dataset"})}
    made = made_by("degrade", name, how, origin.made)
    parent = origin.facts.dataset or origin.path.name
    told = {"dataset": name, "derived_from": parent, "degraded": settings.model_dump(mode="json")}
    if reuse(out, lambda: made, lambda: {**told, "sources": listed(origin.facts.sources)}):
        return
    missing = origin.facts.missing
    slices = [z for z in range(0, origin.array.shape[0], settings.every) if images or z not in missing]
    with replaced(out, [volume]) as partial:
        write = _write_images if images else _write_pairs
        write(origin, slices, settings, partial, name, made)


def degraded(image: NDArray[Any], settings: Degrade, scaling: Scaling, number: int) -> NDArray[Any]:
    """Degrade one slice.

    Parameters
    ----------
    image : ndarray
        (y, x), of any real type.
    settings : Degrade
        How to degrade it.
    scaling : Scaling
        Intensity scaling of the slice.
    number : int
        Number of the slice, which seeds its noise.

    Returns
    -------
    ndarray
        (y // bin, x // bin), of the same type.
    """
    low, span = float(scaling.low), float(scaling.high - scaling.low)
    values = image.astype(np.float64)
    random = np.random.default_rng([settings.seed, number])
    if blur := _drawn(settings.blur, random):
        values = gaussian_filter(values, blur)
    n = settings.bin
    height, width = (side // n for side in image.shape)
    values = values[: height * n, : width * n].reshape(height, n, width, n).mean((1, 3))
    signal = (values - low) / span
    values = (signal + _noise(signal, settings.noise, random)) * span + low
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(image.dtype)


def _noise(signal: NDArray[np.float64], settings: Noise, random: np.random.Generator) -> NDArray[np.float64]:
    """Draw the noise of an image (y, x), whose range is 0 to 1."""
    noise = np.zeros_like(signal)
    if settings.electrons is not None:
        low, high = np.log(ends(settings.electrons))
        electrons = float(np.exp(_drawn((low, high), random)))
        expected = np.maximum(signal, 0)
        noise = random.poisson(expected * electrons) / electrons - expected
    noise += _drawn(settings.gaussian, random) * random.standard_normal(signal.shape)
    if rho := _drawn(settings.correlation, random):
        # the first column keeps unit variance, so that the process is stationary from the start
        innovations = np.sqrt(1 - rho**2) * noise
        innovations[:, 0] = noise[:, 0]
        noise = lfilter([1], [1, -rho], innovations, axis=1)
    return noise + _drawn(settings.lines, random) * random.standard_normal((len(signal), 1))


def _drawn(value: Range, random: np.random.Generator) -> float:
    """Draw a number from a range; return a single number without drawing."""
    low, high = ends(value)
    return low if low == high else float(random.uniform(low, high))


def _write_images(
    origin: Volume, slices: list[int], settings: Degrade, out: Path, name: str, made: Link
) -> None:
    """Write the degraded slices as separate images, in one stack."""
    depth, height, width = len(slices), *(side // settings.bin for side in origin.array.shape[1:])
    array = create_image_array(out / "0", (depth, height, width), origin.array.dtype)

    def read(box: Box) -> NDArray[Any]:
        images = []
        for z in slices[box[0]]:  # whole slices, because noise is drawn per slice
            clean = _whole_slice(origin, z, settings.bin)
            images.append(degraded(clean, settings, origin.intensity.at(z), z)[box[1:]])
        return np.stack(images)

    rows, columns = (slice(0, side.stop // settings.bin) for side in origin.valid)
    statistics = stream(array, read, f"degrade {name}", default_workers(), (rows, columns))
    facts = VolumeFacts(
        stage="acquire",
        kind="images",
        dataset=name,
        made=made,
        derived_from=origin.facts.dataset or origin.path.name,
        degraded=settings.model_dump(mode="json"),
        sources=tuple(file.model_copy(update={"seen_as": "degraded"}) for file in origin.facts.sources),
        intensity=statistics.intensity(name, images=True, invert=origin.intensity.invert),
        valid=None if origin.facts.valid is None else (0, rows.stop, 0, columns.stop),
    )
    z, y, x = origin.voxel_size
    size = (z, y * settings.bin, x * settings.bin)
    write_image(out, name, size, facts)


def _write_pairs(
    origin: Volume, slices: list[int], settings: Degrade, out: Path, name: str, made: Link
) -> None:
    """Write each slice as a field of pairs: see `emdiffuse.stores.pairs`."""
    n = settings.bin
    z_size, y, x = origin.voxel_size
    sizes = {"moving": (z_size, y * n, x * n), "fixed": (z_size, y, x)}
    statistics = {role: Statistics(origin.array.dtype) for role in sizes}
    fields: list[PairField] = []
    for z in progress(slices, len(slices), f"degrade {name}", "slice"):
        clean = _whole_slice(origin, z, n)[origin.valid]
        clean = clean[: len(clean) // n * n]
        pair = {"moving": degraded(clean, settings, origin.intensity.at(z), z), "fixed": clean}
        group = f"{len(fields):04d}"
        for role, image in pair.items():
            write_plane(out / group / role / "0", image)
            statistics[role].add_image(image)
        fields.append(PairField(group=group, name=f"slice {z}"))
    write_fields(out, fields, sizes, name, statistics, origin.intensity.invert)
    facts = PairsFacts(
        stage="acquire",
        dataset=name,
        made=made,
        derived_from=origin.facts.dataset or origin.path.name,
        degraded=settings.model_dump(mode="json"),
        scale=n,
        sources=origin.facts.sources,
        fields=tuple(fields),
    )
    finish_pairs(out, facts)


def _whole_slice(volume: Volume, z: int, multiple: int) -> NDArray[Any]:
    """Read a slice, cropped to a multiple of pixels a side."""
    height, width = (side // multiple * multiple for side in volume.array.shape[1:])
    if not height or not width:
        raise DataError(f"{volume.array.path}: the slices are too small to be binned")
    return volume.array[z : z + 1, 0:height, 0:width][0]
