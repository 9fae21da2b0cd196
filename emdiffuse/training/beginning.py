"""The model that a training begins from: what there is to be better than.

Conventions
-----------
* It is scored before anything is learned, on the same held-out part, and as it would be used: a network is
  shown factors and thicknesses within the range that it knows, and a training may widen that range.
* Where nothing better is learned, it is what is written, with the range that it had.
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
    """The model that weights are begun from.

    Attributes
    ----------
    factors : tuple of int
        The factors that it was trained for.
    spec : NetworkSpec
        The network that is trained, with the range of factors and thicknesses that its weights know.
    """

    factors: tuple[int, ...]
    spec: NetworkSpec


def what_begun(description: Description | None, spec: NetworkSpec) -> Begun | None:
    """Return the model that a training begins from.

    Parameters
    ----------
    description : Description or None
        Of that model, if there is one.
    spec : NetworkSpec
        The network that is trained.

    Returns
    -------
    Begun or None
        None also where the two cannot be compared: a denoiser that saw the pixels that are hidden now.
    """
    if description is None:
        return None
    own = description.network
    if not (isinstance(spec, NativeSpec) and isinstance(own, NativeSpec)):
        return Begun(description.factors, spec)
    if own.blind_spot != spec.blind_spot:
        logger.info("the model to begin from sees pixels that are hidden here, and cannot be compared with")
        return None
    known = {"factors": own.factors, "thickness": own.thickness}
    return Begun(description.factors, spec.model_copy(update=known))


@contextmanager
def knowing(network: nn.Module, spec: NetworkSpec) -> Iterator[None]:
    """Let a network know the range of factors and thicknesses of another description for a while."""
    if not (isinstance(network, NativeNetwork) and isinstance(spec, NativeSpec)):
        yield
        return
    before = network.factors, network.thickness
    network.factors, network.thickness = spec.factors, spec.thickness
    try:
        yield
    finally:
        network.factors, network.thickness = before
