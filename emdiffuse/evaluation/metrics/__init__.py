"""Image quality: how close an image is to the truth, each measure with its definition, unit and source.

Conventions
-----------
* Functions take planes (rows, columns) of any real dtype, boxes (z, y, x) where a measure says so.
* `data_range` is the intensity range that a measure refers to, in the unit of the intensities: 255 for
  8-bit data, elsewhere the range that the data occupy. It is never guessed.
* The truth is the second argument; only NRMSE and the power ratio depend on which of the two it is.
* A *metric* is one object with `add` (a block) and `score` (all planes), whatever it is a metric of; a module
  holds one, beside the functions that define it. `METRICS` is the list of all.
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
    "share of the frc_resolution of the plain input (of volumes: its nearest slice)",
    2,
    -1,
)
"""What is known once the plain input is measured, too."""
MEASURES = {measure.name: measure for metric in METRICS for measure in metric.measures} | {
    RELATIVE.name: RELATIVE
}
"""Every measure by name."""

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
