"""Dense optical flow by RAFT, with shipped weights, torchvision's, or those of a file.

Conventions
-----------
* Images are (y, x). A flow is float32 (2, y, x): ``moving(p + flow[:, p])`` shows what ``fixed(p)`` shows;
  components are (y, x) in pixels. (Internally, networks use (x, y).)
* The network is torchvision's `raft_small` or `raft_large` (Teed & Deng 2020, "RAFT", ECCV); a gray image,
  normalised by its own median and spread, is repeated in the three channels.
* Weights are "shipped" (`raft_small`, trained by `emdiffuse train-raft`; see the card beside them),
  "torchvision" (its published `raft_small`, downloaded once), or a path: safetensors, or a state
  dictionary with torchvision's names, read with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.optical_flow import Raft_Small_Weights, raft_large, raft_small

from emdiffuse.registration.flow_weights import file_of_weights
from emdiffuse.registration.warping import normalised
from emdiffuse.runtime.errors import DataError

SMALLEST = 128
"""Minimum height and width for the network's coarsest level; smaller images are padded."""
UPDATES = 12
"""Number of flow iterations."""


class Flow:
    """Optical flow between images, by RAFT.

    Parameters
    ----------
    weights : str
        "shipped", "torchvision" or a path; see the module.

    Raises
    ------
    DataError
        If the weights do not exist.
    """

    def __init__(self, weights: str = "shipped") -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = load(weights).eval().to(self.device)

    def __call__(self, fixed: NDArray[np.floating], moving: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the flow (2, y, x) from one image (y, x) to another of the same shape.

        Parameters
        ----------
        fixed, moving : ndarray
            Any range and type; each image is normalised separately.
        """
        height, width = fixed.shape
        pair = as_input(np.stack([normalised(image) for image in (fixed, moving)])).to(self.device)
        missing = [max(SMALLEST, -(-n // 8) * 8) - n for n in fixed.shape]
        pair = torch.nn.functional.pad(pair, (0, missing[1], 0, missing[0]), mode="replicate")
        with torch.inference_mode():
            flow = self.network(pair[:1], pair[1:], num_flow_updates=UPDATES)[-1]
        return np.ascontiguousarray(flow[0, :, :height, :width].flip(0).cpu().numpy())


def as_input(images: NDArray[np.float32]) -> Tensor:
    """Return normalised images (n, y, x) as the network's input (n, 3, y, x)."""
    return torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1).contiguous()


def load(weights: str) -> torch.nn.Module:
    """Return the network with the given weights; see the module for their names.

    Raises
    ------
    DataError
        If they are missing, cannot be downloaded, or do not match the network.
    """
    if weights == "torchvision":
        try:
            known = Raft_Small_Weights.DEFAULT.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError) as error:
            raise DataError(
                f"weights 'torchvision' cannot be downloaded ({error}); use 'shipped', or the path of a file"
            ) from None
        return _built(dict(known), weights)
    path = file_of_weights(weights)
    return _built(_read_weights(path), str(path))


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary from a file, without executing anything in it."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can raise almost any exception
        raise DataError(
            f"{path}: these weights cannot be read ({type(error).__name__}); is the file complete?"
        ) from None
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise DataError(f"{path}: not a state dictionary of RAFT")
    return state


def _built(state: Mapping[str, Tensor], where: str) -> torch.nn.Module:
    """Build the network that a state dictionary belongs to."""
    state = {name: value.float() for name, value in state.items()}
    network = (raft_large if any(name.startswith("mask_predictor") for name in state) else raft_small)(
        weights=None
    )
    try:
        network.load_state_dict(state)
    except RuntimeError:
        own = network.state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or [n for n in own if own[n].shape != state[n].shape]
        raise DataError(
            f"{where}: not weights of RAFT (small or large): {len(wrong)} names or shapes differ, "
            f"such as {wrong[0]}"
        ) from None
    return network
