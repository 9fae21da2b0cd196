"""Measures restored volumes and images against the truth, beside classical methods, on the same voxels.

Conventions
-----------
* Axes are (z, y, x). Output slice 0 is real slice 0 is truth slice 0; all volumes share the lateral grid.
* Only *generated* slices count: never a real one, which every method passes through (but for the step from a
  generated slice to it, ``real_step_ratio``). In xz and yz planes the structural similarity is mapped on
  whole planes, and its values on generated rows are counted.
* Images (emdiffuse-n, emdiffuse-r) are measured whole, each by itself: only xy planes count.
* A measure is taken a plane at a time, and averaged over planes. Planes that equal the truth have no finite
  PSNR: they are counted as ``identical`` and left out of its mean, which is null when there is no other
  plane. Of images ``psnr_fitted`` is the PSNR after the scale and offset that fit each to its truth best.
* Intervals are 95 % bootstrap intervals of that mean. Neighbouring planes resemble each other, so what is
  drawn again is the gap or image (xy), a run of planes (xz, yz) or a block (shells), the same draws for
  every method; of a large volume, of which a sample of blocks is measured, it is the block (`blocks`).
* Shell correlation (``xyz``) is of blocks as they stand, real slices among them: a gap alone is too thin.
* The classical methods are measured once for each input and truth, and kept plane by plane; each restoration
  is then measured by itself, and compared with them on the same planes.
* Work goes by blocks with the margin that the windows need, so that memory depends on the block size alone,
  and the numbers do not depend on blocks; FSIM, MS-SSIM, LPIPS and the spectra alone are of tiles, and so are
  the baselines that the module `baselines` says it of.
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
from emdiffuse.evaluation.blocks import Layout
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
    """What classical methods make of an input, measured against its truth.

    Attributes
    ----------
    ground : Link
        What they were measured on, and how.
    scores : dict
        The values of all planes, by method, orientation and measure.
    """

    ground: Link
    scores: dict[str, Scores]

    def write(self, out: Path, dataset: str, truth: str) -> None:
        """Write a JSON file."""
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
        """Read what `write` wrote.

        Raises
        ------
        DataError
            If the file is damaged, or of other data.
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
            raise DataError(f"{path}: not a file of measured baselines; delete it and start again") from None
        if found.ground.hash != ground.hash:
            raise DataError(f"{path}: these baselines were measured on other data; delete it and start again")
        return found


def measure_baselines(
    dataset: Path, truth: Path, task: str, out: Path | None = None, lpips: Path | None = None
) -> Baselines:
    """Measure what classical methods make of an input.

    Parameters
    ----------
    dataset, truth : Path
        The registered input, and the registered truth.
    task : str
        What models restore of it: a key of `tasks.TASKS`.
    out : Path, optional
        JSON file to write.
    lpips : Path, optional
        Torchvision's weights of AlexNet: LPIPS is measured too.

    Raises
    ------
    DataError
        If the truth does not fit, or a voxel is not a number.
    """
    if out is not None:
        require_free(out, [dataset, truth], overwrite=None)
    ground = lay_ground(dataset, truth, task)
    names = {"dataset": name_of(ground.input), "truth": name_of(ground.truth)}
    link = _ground_link(ground, lpips)
    if out is not None and put_back(out, link, **names):
        logger.info("%s: measured on the same data already; nothing to do", out)
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
    """Measure a restored volume, and what classical methods make of its input, against the truth.

    Parameters
    ----------
    restored : Path
        Restored volume (z, y, x), isotropic, or a stack of restored images.
    dataset : Path
        The registered volume, or stack, that was restored.
    truth : Path
        The registered volume to compare with: same dtype and lateral shape, at least as deep.
    out : Path
        JSON file to write; a CSV file with the same table is written beside it.
    baselines : Path, optional
        What `measure_baselines` wrote of the same input and truth; measured here where it is not given.
    lpips : Path, optional
        Torchvision's weights of AlexNet: LPIPS is measured too.

    Returns
    -------
    dict
        What was written: ``methods[method][orientation][measure]`` with mean, low and high; ``gain``,
        ``beats`` and ``best`` (`tables.table`); voxels, data_range, estimator and the names of the volumes;
        ``sample``: which part of a large volume was measured; ``absent``: sentences on the methods that
        could not be run; ``ground``: what restorations that are measured on the same voxels share; with an
        uncertainty, ``trust`` (`trust.assess`).

    Raises
    ------
    DataError
        If the truth does not fit the restored volume or was among the model's training data, or a voxel is
        not a number.
    ConfigError
        If LPIPS is asked for, and its weights or library are missing.
    """
    inputs = [path for path in (restored, dataset, truth, baselines) if path is not None]
    for path in (out, out.with_suffix(".csv")):
        require_free(path, inputs, overwrite=None)
    found = compare(restored, dataset, truth)
    link = _ground_link(found, lpips)
    made = _made(found, link)
    if made and (kept := put_back(out, made)):
        logger.info("%s: measured on the same data already; nothing to do", out)
        write_atomically(out.with_suffix(".csv"), as_csv(kept))
        return kept
    known = Baselines.read(baselines, link) if baselines else _baselines(found, lpips)
    sources = {"restored": partial(read, found.restored)}
    scores = known.scores | measure(found, sources, lpips)
    layout = Layout(found.grid, found.shape)
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
    """Return what methods are measured on, and how."""
    layout = Layout(ground.grid, ground.shape)
    settings = {
        # gaps are measured alike whatever their models learned from
        "task": "gaps" if TASKS[ground.task].volumetric else ground.task,
        "methods": list(baselines_of(ground.task, ground.grid.thick)),
        "sample": layout.statement,
        "measures": list(MEASURES),
    }
    links = [own.facts.made or made_by("unknown", str(own.path), {}) for own in (ground.input, ground.truth)]
    weights = [] if lpips is None else [raw_file(lpips)]
    return made_by("baselines", ground.input.facts.dataset or "", settings, *links, *weights)


def _made(found: Comparison, ground: Link) -> Link | None:
    """Return how the measures are made; None where a volume, of another program, does not say how it was."""
    facts, volumes = found.restored.restoration, (found.restored, found.input, found.truth)
    if found.restored.facts.made is None or any(own.facts.made is None for own in volumes):
        return None
    told = {**found.names(), "reliable": facts.reliability and facts.reliability.threshold}
    return made_by("evaluate", facts.dataset or "", told, found.restored.facts.made, ground)
