"""Image quality: how close an image is to the truth, each measure with its definition, unit and source.

Conventions
-----------
* Images are planes (rows, columns) of any real dtype, boxes (z, y, x) where a measure says so; arithmetic is
  in float64, phase congruency and spectra in float32.
* `data_range` is the range of intensities that a measure refers to, in the unit of the intensities: 255 for
  8-bit data, elsewhere the range that the data occupy. It is never guessed.
* The truth is the second argument; only NRMSE and the power ratio depend on which of the two it is.
* Functions that end in `_map`, `_pool` or `_sums` return what a streaming evaluation adds up piece by piece.
"""

from emdiffuse.evaluation.metrics.fidelity import (
    SSIM_RADIUS,
    inside,
    ms_ssim,
    nrmse,
    psnr,
    psnr_of,
    ssim,
    ssim_map,
)
from emdiffuse.evaluation.metrics.spectral import (
    RINGS,
    correlation_resolution,
    decorrelation_resolution,
    high_frequency_power,
    high_frequency_power_ratio,
    ring_sums,
    spectrum,
)
from emdiffuse.evaluation.metrics.structure import fsim, fsim_features, fsim_pool, phase_congruency

__all__ = [
    "RINGS",
    "SSIM_RADIUS",
    "correlation_resolution",
    "decorrelation_resolution",
    "fsim",
    "fsim_features",
    "fsim_pool",
    "high_frequency_power",
    "high_frequency_power_ratio",
    "inside",
    "ms_ssim",
    "nrmse",
    "phase_congruency",
    "psnr",
    "psnr_of",
    "ring_sums",
    "spectrum",
    "ssim",
    "ssim_map",
]
