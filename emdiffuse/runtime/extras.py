"""Optional dependencies: the extras of the package, and the error if one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from emdiffuse.runtime.errors import ConfigError

EXTRAS: dict[str, tuple[str, ...]] = {
    "workflow": ("snakemake", "tensorboard"),
    "cluster": ("snakemake_executor_plugin_slurm", "submitit"),
    "formats": ("h5py", "hdf5plugin", "mrcfile", "pylibCZIrw", "nrrd", "rsciio"),
    "napari": ("napari",),
    "bioimageio": ("bioimageio.spec",),
    "lpips": ("torchmetrics",),
    "bm3d": ("bm3d",),
}
"""Extras of ``pyproject.toml``, and modules that indicate whether each is installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module that belongs to an extra.

    Parameters
    ----------
    module : str
        Name of the module.
    extra : str
        The extra that installs it, a key of `EXTRAS`.
    purpose : str
        What needs it, as the beginning of a sentence: "A training on SLURM".

    Raises
    ------
    ConfigError
        If it is not installed; states how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the module is installed, but one of its dependencies is not
        raise ConfigError(
            f"{purpose} needs {module.partition('.')[0]}; run pip install 'emdiffuse[{extra}]'"
        ) from None
