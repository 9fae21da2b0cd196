"""The starting model of a fine-tuning, which sets the score to beat.

Conventions
-----------
* It is scored before training, on the same held-out part, and as it would be used: a network is shown factors
  and thicknesses within the range that it knows, which a training may widen.
* If nothing better is learned, the starting model is written, with its original range.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from emdiffuse.models.description import Description, NativeSpec, NetworkSpec
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.runtime.progress import logger


@dataclass(frozen=True)
class Begun:
    """The starting model.

    Attributes
    ----------
    factors : tuple of int
        Factors that it was trained for.
    spec : NetworkSpec
        The network to train, with the range of factors and thicknesses that the starting weights know.
    """

    factors: tuple[int, ...]
    spec: NetworkSpec


def what_begun(description: Description | None, spec: NetworkSpec) -> Begun | None:
    """Return the starting model of a training.

    Parameters
    ----------
    description : Description or None
        Description of the starting model, if any.
    spec : NetworkSpec
        The network to train.

    Returns
    -------
    Begun or None
        None also if the two cannot be compared: a denoiser that sees the pixels that are now hidden.
    """
    if description is None:
        return None
    own = description.network
    if not (isinstance(spec, NativeSpec) and isinstance(own, NativeSpec)):
        return Begun(description.factors, spec)
    if own.blind_spot != spec.blind_spot:
        logger.info("the starting model sees pixels that are hidden here, so the two cannot be compared")
        return None
    known = {"factors": own.factors, "thickness": own.thickness}
    return Begun(description.factors, spec.model_copy(update=known))


@contextmanager
def knowing(network: nn.Module, spec: NetworkSpec) -> Iterator[None]:
    """Temporarily give a network the range of factors and thicknesses of another description."""
    if not (isinstance(network, NativeNetwork) and isinstance(spec, NativeSpec)):
        yield
        return
    before = network.factors, network.thickness
    network.factors, network.thickness = spec.factors, spec.thickness
    try:
        yield
    finally:
        network.factors, network.thickness = before
