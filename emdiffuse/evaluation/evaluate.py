"""Evaluate restored volumes and images against ground truth, beside baselines on the same voxels.

Conventions
-----------
* Axes are (z, y, x). Output slice 0 is real slice 0 is truth slice 0; all volumes share the lateral grid.
* Only *generated* slices count, since every method passes through the real ones (``real_step_ratio``, the
  step from a generated to a real slice, is the exception). In xz and yz planes the structural similarity is
  computed on whole planes, and its values on generated rows are counted.
* Images (emdiffuse-n, emdiffuse-r) are measured whole and separately: only xy planes count.
* A metric is computed per plane and averaged over planes. Planes identical to the truth have no finite
  PSNR: they are counted as ``identical`` and left out of its mean, which is null if there are no others. For
  images, ``psnr_fitted`` is the PSNR after the scale and offset that best fit each image to its truth.
* Intervals are 95 % bootstrap intervals of that mean. Neighbouring planes resemble each other, so the
  bootstrap draws gaps or images (xy), runs of planes (xz, yz) or blocks (shells), the same for every method;
  if a sample of blocks is measured, it draws blocks (`blocks`).
* Shell correlation (``xyz``) uses whole blocks including real slices, because a single gap is too thin.
* Baselines are measured once per input and truth and stored plane by plane; each restoration is measured
  separately, and compared with them on the same planes.
* Blocks include the margin that the windows need. Memory depends only on the block size, and the numbers do
  not depend on blocks, except for FSIM, MS-SSIM, LPIPS and the spectra, which are computed on tiles, and the
  baselines for which the module `baselines` states it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from emdiffuse.config.tasks import TASKS
from emdiffuse.evaluation.baselines import make
from emdiffuse.evaluation.blocks import BlockLayout
from emdiffuse.evaluation.comparison import Comparison, Ground, compare, lay_ground, name_of, read
from emdiffuse.evaluation.measuring import measure, numbers, plain
from emdiffuse.evaluation.methods import absent_baselines, baselines_of, reference_of
from emdiffuse.evaluation.metrics import MEASURES, Scores
from emdiffuse.evaluation.tables import as_csv, table
from emdiffuse.evaluation.trust import assess
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.errors import DataError
from emdiffuse.runtime.outputs import require_free
from emdiffuse.runtime.progress import logger
from emdiffuse.stores.array import Box
from emdiffuse.stores.provenance import Link, made_by, put_back, raw_file, write_and_keep


@dataclass(frozen=True)
class Baselines:
    """Scores of the baselines of an input against its ground truth.

    Attributes
    ----------
    ground : Link
        Data and settings of the measurement.
    scores : dict
        Values of all planes, by method, orientation and metric.
    """

    ground: Link
    scores: dict[str, Scores]

    def write(self, out: Path, dataset: str, truth: str) -> None:
        """Write the scores as JSON."""
        methods = {
            method: {
                orientation: {name: plain(values) for name, values in measures.items()}
                for orientation, measures in scores.items()
            }
            for method, scores in self.scores.items()
        }
        made = self.ground.model_dump(mode="json")
        write_and_keep(out, {"dataset": dataset, "truth": truth, "made": made, "planes": methods})

    @classmethod
    def read(cls, path: Path, ground: Link) -> Baselines:
        """Read scores written by `write`.

        Raises
        ------
        DataError
            If the file is damaged, or belongs to other data.
        """
        try:
            content = json.loads(path.read_text())
            found = cls(
                Link.model_validate(content["made"]),
                {
                    method: {
                        orientation: {name: numbers(values) for name, values in measures.items()}
                        for orientation, measures in scores.items()
                    }
                    for method, scores in content["planes"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: not a file of baselines; delete it and start again") from None
        if found.ground.hash != ground.hash:
            raise DataError(f"{path}: these baselines were measured on other data; delete it and start again")
        return found


def measure_baselines(
    dataset: Path, truth: Path, task: str, out: Path | None = None, lpips: Path | None = None
) -> Baselines:
    """Measure the baselines of an input against its ground truth.

    Parameters
    ----------
    dataset, truth : Path
        Registered input, and registered ground truth.
    task : str
        Task: a key of `tasks.TASKS`.
    out : Path, optional
        JSON file to write.
    lpips : Path, optional
        Torchvision's AlexNet weights, to measure LPIPS too.

    Raises
    ------
    DataError
        If the truth does not match, or a voxel is not a number.
    """
    if out is not None:
        require_free(out, [dataset, truth], overwrite=None)
    ground = lay_ground(dataset, truth, task)
    names = {"dataset": name_of(ground.input), "truth": name_of(ground.truth)}
    link = _ground_link(ground, lpips)
    if out is not None and put_back(out, link, **names):
        logger.info("%s: already measured on the same data; nothing to do", out)
        return Baselines.read(out, link)
    found = _baselines(ground, lpips)
    if out is not None:
        found.write(out, **names)
    return found


def evaluate(
    restored: Path,
    dataset: Path,
    truth: Path,
    out: Path,
    baselines: Path | None = None,
    lpips: Path | None = None,
) -> dict[str, Any]:
    """Measure a restored volume and its baselines against ground truth.

    Parameters
    ----------
    restored : Path
        Restored volume (z, y, x), isotropic, or a stack of restored images.
    dataset : Path
        Registered volume or stack that was restored.
    truth : Path
        Registered ground truth: same dtype and lateral shape, at least as deep.
    out : Path
        JSON file to write; a CSV file with the same table is written beside it.
    baselines : Path, optional
        Result of `measure_baselines` for the same input and truth; measured here if not given.
    lpips : Path, optional
        Torchvision's AlexNet weights, to measure LPIPS too.

    Returns
    -------
    dict
        The written values: ``methods[method][orientation][metric]`` with mean, low and high; ``gain``,
        ``beats`` and ``best`` (`tables.table`); voxels, data_range, estimator and the names of the volumes;
        ``sample``: which part of a large volume was measured; ``absent``: sentences on methods that could
        not be run; ``ground``: a hash shared by restorations measured on the same voxels; with an
        uncertainty, ``trust`` (`trust.assess`).

    Raises
    ------
    DataError
        If the truth does not match the restored volume or was among the training data, or a voxel is
        not a number.
    ConfigError
        If LPIPS is requested and its weights or library are missing.
    """
    inputs = [path for path in (restored, dataset, truth, baselines) if path is not None]
    require_free(out, inputs, overwrite=None)
    require_free(out.with_suffix(".csv"), inputs, overwrite=None)
    found = compare(restored, dataset, truth)
    link = _ground_link(found, lpips)
    made = _made(found, link)
    if made and (kept := put_back(out, made)):
        logger.info("%s: already measured on the same data; nothing to do", out)
        write_atomically(out.with_suffix(".csv"), as_csv(kept))
        return kept
    known = Baselines.read(baselines, link) if baselines else _baselines(found, lpips)
    sources = {"restored": partial(read, found.restored)}
    scores = known.scores | measure(found, sources, lpips)
    layout = BlockLayout(found.grid, found.shape)
    result = {
        **({"made": made.model_dump(mode="json")} if made else {}),
        **found.names(),
        "ground": link.hash,
        "estimator": found.restored.restoration.estimator or "not stated",
        "absent": absent_baselines(found.task),
        "voxels": layout.voxels,
        "sample": layout.statement,
        "data_range": found.data_range,
        "units": {name: measure.unit for name, measure in MEASURES.items()},
        "interval": f"95 % bootstrap interval over {layout.drawn}",
        **table(scores, layout.groups, list(known.scores), reference_of(found.task)),
    }
    trust = assess(found)
    if trust:
        result["trust"] = trust
    write_and_keep(out, result)
    write_atomically(out.with_suffix(".csv"), as_csv(result))
    return result


def _baselines(ground: Ground, lpips: Path | None) -> Baselines:
    for sentence in absent_baselines(ground.task):
        logger.warning(sentence)

    def source(name: str, box: Box) -> NDArray[Any]:
        return make(name, ground.input.array, ground.grid, box, TASKS[ground.task].scale)

    sources = {name: partial(source, name) for name in baselines_of(ground.task, ground.grid.thick)}
    return Baselines(_ground_link(ground, lpips), measure(ground, sources, lpips))


def _ground_link(ground: Ground, lpips: Path | None) -> Link:
    """Return the data and settings that methods are measured with."""
    layout = BlockLayout(ground.grid, ground.shape)
    settings = {
        # gaps share their baselines, whatever the model learned from
        "task": "gaps" if TASKS[ground.task].volumetric else ground.task,
        "methods": list(baselines_of(ground.task, ground.grid.thick)),
        "sample": layout.statement,
        "measures": list(MEASURES),
    }
    links = [own.facts.made or made_by("unknown", str(own.path), {}) for own in (ground.input, ground.truth)]
    weights = [] if lpips is None else [raw_file(lpips)]
    return made_by("baselines", ground.input.facts.dataset or "", settings, *links, *weights)


def _made(found: Comparison, ground: Link) -> Link | None:
    """Return the data and settings of the metrics, or None if the volume lacks its provenance."""
    facts, volumes = found.restored.restoration, (found.restored, found.input, found.truth)
    if found.restored.facts.made is None or any(own.facts.made is None for own in volumes):
        return None
    told = {**found.names(), "reliable": facts.reliability and facts.reliability.threshold}
    return made_by("evaluate", facts.dataset or "", told, found.restored.facts.made, ground)
