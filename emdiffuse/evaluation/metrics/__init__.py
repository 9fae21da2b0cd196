"""Image-quality metrics against ground truth, each with its definition, unit and source.

Conventions
-----------
* Functions take planes (rows, columns) of any real dtype, or boxes (z, y, x) where stated.
* `data_range` is the intensity range that a metric refers to, in the unit of the intensities: 255 for
  8-bit data, otherwise the range that the data occupy. It is never guessed.
* The truth is the second argument; only NRMSE and the power ratio depend on which of the two it is.
* A *metric* is an object with `add` (a block) and `score` (all planes). Each module contains one, with the
  functions that define it. `METRICS` lists them all.
* MS-SSIM and FSIM are ours: piq gives the same to 2e-5 and 2e-4, but needs torch, 2 s and 500 MB a stage.
"""

from emdiffuse.evaluation.metrics.base import Measure, Metric, Piece, Scores, Setting, Vector
from emdiffuse.evaluation.metrics.continuity import Continuity
from emdiffuse.evaluation.metrics.features import (
    FeatureSimilarity,
    fsim,
    fsim_features,
    fsim_pool,
    phase_congruency,
)
from emdiffuse.evaluation.metrics.fidelity import Fidelity, nrmse, psnr, psnr_of
from emdiffuse.evaluation.metrics.perceptual import Perceptual
from emdiffuse.evaluation.metrics.similarity import Similarity, ms_ssim, ssim, ssim_map
from emdiffuse.evaluation.metrics.spectral import (
    RINGS,
    Resolution,
    correlation_resolution,
    decorrelation_resolution,
    high_frequency_power,
    high_frequency_power_ratio,
    ring_sums,
    spectrum,
)
from emdiffuse.evaluation.metrics.structures import Structures

METRICS: tuple[type[Metric], ...] = (
    Fidelity,
    Similarity,
    FeatureSimilarity,
    Resolution,
    Perceptual,
    Structures,
    Continuity,
)
RELATIVE = Measure(
    "frc_ratio",
    "Ring correlation (input = 1)",
    "fraction of the frc_resolution of the plain input (of volumes: its nearest slice)",
    2,
    -1,
)
"""Columns that also need the scores of the plain input."""
MEASURES = {measure.name: measure for metric in METRICS for measure in metric.measures} | {
    RELATIVE.name: RELATIVE
}
"""All columns, by name."""

__all__ = [
    "MEASURES",
    "METRICS",
    "RELATIVE",
    "RINGS",
    "Measure",
    "Metric",
    "Piece",
    "Scores",
    "Setting",
    "Vector",
    "correlation_resolution",
    "decorrelation_resolution",
    "fsim",
    "fsim_features",
    "fsim_pool",
    "high_frequency_power",
    "high_frequency_power_ratio",
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
