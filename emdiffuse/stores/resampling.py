"""Images on a finer pixel grid.

Conventions
-----------
* Pixels are areas: pixel i of an image enlarged n times covers the n-th part of pixel i // n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


def enlarge(images: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """Enlarge images by cubic convolution (Keys 1981, doi 10.1109/TASSP.1981.1163711).

    Parameters
    ----------
    images : ndarray
        (..., H, W).
    scale : int
        How many pixels a side become of one; 1 changes nothing.

    Returns
    -------
    ndarray
        (..., scale * H, scale * W), float32. A pixel depends on 4 x 4 of the input's, edges are repeated.
    """
    values = np.ascontiguousarray(images, np.float32)
    if scale == 1:
        return values
    # torch's kernel is Keys' (a = -1/2, exact on ramps) with antialiasing, which enlarging does not need
    flat = torch.from_numpy(values).reshape(1, -1, *values.shape[-2:])
    large = F.interpolate(flat, scale_factor=scale, mode="bicubic", antialias=True)
    return large.reshape(*values.shape[:-2], *large.shape[-2:]).numpy()
