"""Tiles against the whole image: one evaluation of 512 pixels a side against one of 256 inside it.

    python benchmarks/tile_dependence.py MODEL VOLUME.tif [--published]

MODEL is a trained native vEM model, VOLUME an isotropic volume, mirrored if it is smaller than 512. The error
is the largest difference inside a halo, over the largest value there; `--published` adds a published network
with random weights. The table's header states the default halo.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

from emdiffuse.config import Tiling
from emdiffuse.models.inference import RestorationModel
from emdiffuse.models.networks.build import UNet

SIDE, TILE, FACTOR = 512, 256, 6
LEVELS = (0.0, 0.05, 0.2, 0.5, 0.9, 0.98)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args()
    halos = sorted({8, 16, 24, 32, 48, Tiling().halo})
    model = RestorationModel.load(options.model)
    values = tifffile.imread(options.volume)
    z = len(values) // 2
    stack = values[z - FACTOR : z + 2 * FACTOR + 1 : FACTOR].astype(np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    missing = [(0, max(SIDE - n, 0)) for n in stack.shape[1:]]
    stack = np.pad(stack, [(0, 0), *missing], mode="symmetric")[:, :SIDE, :SIDE]
    condition = torch.from_numpy((stack - low) / (high - low) * 2 - 1).float()[None]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, FACTOR - 1, SIDE, SIDE, generator=generator)
    kind = torch.arange(1, FACTOR)[None] / FACTOR, torch.full((1,), float(FACTOR)), torch.zeros(1)
    print(f"| network | gamma | {' | '.join(f'halo {h}' for h in halos)} |   (default halo: {Tiling().halo})")
    print("| --- " * (len(halos) + 2) + "|")

    def row(name: str, level: float, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        inner = slice((SIDE - TILE) // 2, (SIDE + TILE) // 2)
        whole = call(noise, condition)[..., inner, inner]
        tile = call(noise[..., inner, inner], condition[..., inner, inner])
        errors = []
        for halo in halos:
            inside = (..., slice(halo, TILE - halo), slice(halo, TILE - halo))
            errors.append(((tile - whole)[inside].abs().max() / whole[inside].abs().max()).item())
        print(f"| {name} | {level:g} | {' | '.join(f'{e:.1e}' for e in errors)} |", flush=True)

    for level in LEVELS:
        gamma = torch.tensor([level])

        def native(x: Tensor, c: Tensor, gamma: Tensor = gamma) -> Tensor:
            return model.network(x, gamma, c, *kind)

        row("native", level, native)
    if options.published:
        torch.manual_seed(0)
        network = UNet(2).eval()
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        gamma = torch.tensor([0.5])
        row("published", 0.5, lambda x, c: network(torch.cat([c[:, 1:2], x[:, :1]], 1), gamma))


if __name__ == "__main__":
    main()
