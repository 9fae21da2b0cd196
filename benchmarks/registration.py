"""Accuracy of pair registration: on known displacements, on aligned pairs, on real overlaps.

    python benchmarks/registration.py --data FOLDER [--seeds 5] [--mussels mussel_overlaps.npz]

FOLDER contains `brain22_level07_input.tif`, `brain22_level07_gt.tif` and `medulla_training2_250.tif`; see
benchmarks/README.md for their sources. Only parts held out from the shipped weights are used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from emdiffuse.evaluation.metrics import psnr
from emdiffuse.registration.pair import Limits, NotRegistered, coarse_homography, register_pair
from emdiffuse.registration.phase import correlate, peak, spectra
from emdiffuse.registration.raft import Flow
from emdiffuse.registration.refinement import refined
from emdiffuse.registration.warping import (
    composed,
    correlation,
    identity,
    inside,
    mapped,
    normalised,
    smoothed,
    warp,
)

Image = NDArray[np.float32]
Map = NDArray[Any]
"""Position of each pixel in the moving image, (2, Y, X), y before x."""

HELD_OUT = slice(500, 768)
"""Rows of the brain pair held out from the weights."""
EDGE = 12
ANY = Limits(rejected=0.95)
"""Strips that show resin in places are measured where they show tissue."""


def deformation(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    degrees: float = 3.0,
    shift: float = 40.0,
    local: float = 6.0,
) -> Map:
    """Draw a map: rotation, shift, and a smooth local warp with knots 60 to 120 pixels apart."""
    spacing = rng.uniform(60, 120)
    knots = [int(np.ceil(n / spacing)) + 3 for n in shape]
    size = [round(k * spacing) for k in knots]
    parts = [cv2.resize(rng.standard_normal(knots), size[::-1], interpolation=cv2.INTER_CUBIC) for _ in "yx"]
    smooth = np.stack([part[: shape[0], : shape[1]] for part in parts])
    smooth *= local / np.hypot(*smooth).max()
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = (np.array(shape)[:, None, None] - 1) / 2
    away = rng.uniform(-1, 1, 2)[:, None, None] * shift
    return (np.einsum("ij,jyx->iyx", turn, identity(shape) + smooth - centre) + centre + away).astype(
        np.float32
    )


def error(found: Map, truth: Map, shape: tuple[int, ...]) -> float:
    """Return the mean end-point error where the moving image shows the field, away from the edges."""
    known = inside(truth, shape)
    known[:EDGE] = known[-EDGE:] = known[:, :EDGE] = known[:, -EDGE:] = False
    return float(np.hypot(*(found - truth))[known].mean())


def dis_flow(fixed: Image, moving: Image) -> Map:
    """Return OpenCV's dense inverse search flow, at its medium preset."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    first, second = (
        np.clip(128 + 100 * normalised(image), 0, 255).astype(np.uint8) for image in (fixed, moving)
    )
    nothing = np.zeros((*fixed.shape, 2), np.float32)
    return dis.calc(first, second, nothing).transpose(2, 0, 1)[::-1]


def methods(fixed: Image, moving: Image, flow: Flow) -> Iterator[tuple[str, Map]]:
    """Yield the map of each method."""
    places = identity(fixed.shape)
    coarse = coarse_homography(fixed, moving).matrix
    seen = warp(moving, mapped(coarse, places))
    still = np.zeros_like(places)
    yield "none", places
    yield "homography alone", mapped(coarse, places)
    yield "homography + DIS", mapped(coarse, places + dis_flow(fixed, seen))
    yield "homography + RAFT", mapped(coarse, places + flow(fixed, seen))
    yield "homography + least squares", mapped(coarse, places + refined(fixed, seen, still))
    yield "registration (all of it)", places + register_pair(fixed, moving, flow).displacement


def known_fields(data: Path, seed: int, flow: Flow) -> Iterator[tuple[str, Image, Image, Map]]:
    """Yield (name, fixed, moving, truth): clean images deformed, against noisy ones.

    The published noisy scan of the brain is half a pixel off its clean one, so its truth is used both as it
    is and with the displacement that registration finds between the two without deformation.
    """
    rng = np.random.default_rng(seed)
    noisy, clean = (
        tifffile.imread(data / f"brain22_level07_{part}.tif").astype(np.float32) for part in ("input", "gt")
    )
    elsewhere = np.roll(noisy - clean, (211, 307), (0, 1))
    truth = deformation(rng, clean[HELD_OUT].shape)
    fixed = warp(clean[HELD_OUT], truth)
    yield "brain, its noise from elsewhere", fixed, (clean + elsewhere)[HELD_OUT], truth
    own = register_pair(clean[HELD_OUT], noisy[HELD_OUT], flow).displacement
    yield "brain, the noisy scan itself", fixed, noisy[HELD_OUT], truth
    yield "the same, beside its own displacement", fixed, noisy[HELD_OUT], truth + composed(truth, own)
    plane = tifffile.imread(data / "medulla_training2_250.tif", key=int(rng.integers(250))).astype(np.float32)
    truth = deformation(rng, plane.shape)
    noise = rng.normal(0, 0.7 * plane.std(), plane.shape).astype(np.float32)
    yield "medulla, noise of 0.7 deviations", warp(plane, truth), plane + noise, truth


def table_of_errors(data: Path, seeds: int, flow: Flow) -> None:
    """Print the end-point errors."""
    errors: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        for name, fixed, moving, truth in known_fields(data, seed, flow):
            for method, found in methods(fixed, moving, flow):
                errors.setdefault(method, {}).setdefault(name, []).append(error(found, truth, moving.shape))
    names = list(errors["none"])
    print(f"\nMean end-point error in pixels, {seeds} deformations each (the largest in brackets):\n")
    print("| method | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
    for method, own in errors.items():
        cells = [f"{np.mean(own[name]):.2f} ({np.max(own[name]):.2f})" for name in names]
        print(f"| {method} | " + " | ".join(cells) + " |")


def table_of_overlaps(path: Path, flow: Flow) -> None:
    """Print correlations of real overlaps, and the error in recovering a known extra deformation."""
    print(
        "\nReal overlaps of mussel tissue: correlation (Gaussian of sigma 1.5), and the error in pixels with"
    )
    print("which a known extra deformation (2 degrees, 15 px, local warp of 4 px) is recovered:\n")
    print("| overlap | before | homography | registered | masked | extra deformation |\n|" + " --- |" * 6)
    images = np.load(path)
    for number, name in enumerate(sorted(key[:-2] for key in images if key.endswith("_a"))):
        fixed, moving = (images[f"{name}_{side}"].astype(np.float32) for side in "ab")
        places = identity(fixed.shape)
        first = register_pair(fixed, moving, flow, ANY)
        inner = first.mask & inside(places - EDGE, tuple(n - 2 * EDGE for n in fixed.shape))
        maps = places, mapped(coarse_homography(fixed, moving).matrix, places), places + first.displacement
        scores = [
            correlation(smoothed(fixed, 1.5), smoothed(warp(moving, found), 1.5), inner) for found in maps
        ]
        extra = deformation(np.random.default_rng(number), moving.shape, 2.0, 15.0, 4.0)
        try:
            again = register_pair(fixed, warp(moving, extra), flow, ANY)
        except NotRegistered as problem:
            recovered = str(problem)
        else:
            back = composed(places + again.displacement, extra)
            known = inner & again.mask
            recovered = f"{np.hypot(*(back - maps[2]))[known].mean():.2f}"
        cells = [name, *(f"{score:.4f}" for score in scores), f"{first.quality['rejected']:.0%}", recovered]
        print("| " + " | ".join(cells) + " |", flush=True)


def table_of_aligned(data: Path, flow: Flow) -> None:
    """Print shift and PSNR of aligned pairs, before and after registration."""
    noisy, clean = (
        tifffile.imread(data / f"brain22_level07_{part}.tif").astype(np.float32)[HELD_OUT]
        for part in ("input", "gt")
    )
    elsewhere = clean + np.roll(noisy - clean, (111, 307), (0, 1))
    print("\nAligned pairs: residual shift, and PSNR against the clean image:\n")
    print("| pair | shift before (px) | after | PSNR before (dB) | after | changed |\n|" + " --- |" * 6)
    for name, moving in (("brain, as published", noisy), ("brain, its noise from elsewhere", elsewhere)):
        found = register_pair(clean, moving, flow)
        where = np.s_[EDGE:-EDGE, EDGE:-EDGE]
        cells = []
        for image in (moving, found.moving.astype(np.float32)):
            shift = peak(correlate(spectra(clean), spectra(image)).sum(0))
            cells.append((float(np.hypot(*shift)), psnr(image[where], clean[where], 255.0)))
        (shift0, psnr0), (shift1, psnr1) = cells
        changed = "yes" if found.quality["changed"] else "no"
        print(f"| {name} | {shift0:.3f} | {shift1:.3f} | {psnr0:.2f} | {psnr1:.2f} | {changed} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mussels", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weights", default="shipped")
    arguments = parser.parse_args()
    flow = Flow(arguments.weights)
    table_of_errors(arguments.data, arguments.seeds, flow)
    table_of_aligned(arguments.data, flow)
    if arguments.mussels:
        table_of_overlaps(arguments.mussels, flow)


if __name__ == "__main__":
    main()
