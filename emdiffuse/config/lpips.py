"""Requirements of the key `lpips`: a library, and weights that are never downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from emdiffuse.runtime.errors import ConfigError

ALEXNET = "download.pytorch.org/models/alexnet-owt-7be5be79.pth"


def require_lpips(weights: Path, key: str) -> None:
    """Check that LPIPS can be measured.

    Parameters
    ----------
    weights : Path
        Torchvision's AlexNet weights.
    key : str
        What to name in an error.

    Raises
    ------
    ConfigError
        If torchmetrics, which contains the LPIPS weights, is not installed, or the file is missing.
    """
    if find_spec("torchmetrics") is None:
        raise ConfigError(f"{key}: LPIPS needs torchmetrics; run pip install 'emdiffuse[lpips]'")
    if not weights.is_file():
        raise ConfigError(
            f"{key}: there is no file '{weights}'; LPIPS needs the AlexNet weights, which are not "
            f"downloaded automatically: download {ALEXNET} (244 MB), and give its path"
        )
