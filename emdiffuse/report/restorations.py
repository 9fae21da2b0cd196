"""The content of the report for each restoration: text, tables and images, within a budget of bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from emdiffuse.config import Config, Model, Restoration
from emdiffuse.config.shipped import SHIPPED
from emdiffuse.report import plain
from emdiffuse.report.files import read_evaluation
from emdiffuse.report.overview import overview_row
from emdiffuse.report.pictures import COLUMNS, PERCENTILES, View, open_view, panels, picture_bytes, scale_bar
from emdiffuse.report.reliability import trust_section
from emdiffuse.report.tables import long_table, short_table, with_others
from emdiffuse.report.verdicts import surpassing, verdict
from emdiffuse.report.viewer import viewer
from emdiffuse.restoration.slice_grid import ImageStack
from emdiffuse.stores.facts import VolumeFacts
from emdiffuse.stores.volume import open_volume

WITHOUT_TRUTH = "There is no ground truth to compare with: the report shows images, but no metrics."


def gather(config: Config, results: Path, left: int) -> list[dict[str, Any]]:
    """Return the content for each restoration; small ones first, whose unused budget passes to the rest."""

    def voxels(place: int) -> int:
        item = config.restorations[place]
        store = results / "restored" / item.dataset / item.model / "restored.ome.zarr"
        return math.prod(open_volume(store).array.shape)

    count = len(config.restorations)
    gathered: dict[int, dict[str, Any]] = {}
    for done, place in enumerate(sorted(range(count), key=voxels)):
        item = config.restorations[place]
        gathered[place] = _restoration(config, item, results, place + 1, left // (count - done))
        left -= gathered[place]["bytes"]
    return [gathered[place] for place in range(count)]


def _restoration(
    config: Config, item: Restoration, results: Path, number: int, budget: int
) -> dict[str, Any]:
    """Return the content for one restoration, with images of at most `budget` bytes."""
    truth = config.truth(item)
    view = open_view(config, item, truth, results, budget)
    evaluation = read_evaluation(results, item)
    if evaluation:
        others = [found for other in config.beside(item) if (found := read_evaluation(results, other))]
        evaluation = with_others(evaluation, others)
    images = isinstance(view.grid, ImageStack)
    made = ("input",) if images else ("input", "linear")
    names = [name for name in COLUMNS if name in made or name in view.volumes]
    rows, white = panels(view, names, budget // 4, plain.hatched(view))
    used = sum(picture_bytes(cell["image"]) for row in rows for cell in row["cells"])
    seen = viewer(
        view, config.models[item.model].task, white if "truth" in view.volumes else None, budget - used
    )
    used += sum(picture_bytes(sheet["image"]) for sheet in seen["sheets"].values())
    voxel = view.volumes["restored"].voxel_size[2]
    return {
        "number": number,
        "name": item.dataset,
        "model": item.model,
        "overview": overview_row(config, item, number, evaluation),
        "sentences": [
            *_sentences(config, item, truth, view),
            *plain.sentence(view.volumes["restored"].restoration, images),
        ],
        "estimator": (evaluation or {}).get("estimator") or view.volumes["restored"].restoration.estimator,
        "verdict": verdict(evaluation) if evaluation else None,
        "surpassing": surpassing(evaluation) if evaluation else "",
        "table": short_table(evaluation) if evaluation else None,
        "measures": long_table(evaluation) if evaluation else None,
        "evaluation": evaluation,
        "trust": trust_section(
            evaluation,
            view.volumes["restored"].restoration.reliability,
            "image" if images else "slice",
            view.volumes["restored"].restoration.calibration,
        ),
        "provenance": _provenance(view),
        "panels": rows,
        "contrast": [f"{value:.4g}" for value in view.contrast],
        "percentiles": PERCENTILES,
        "reference": view.reference,
        "white": f"{white:.4g}",
        "voxel": f"{voxel:.4g}",
        "viewer": seen,
        "bytes": used,
        "images": images,
        "bar": scale_bar(len(view.box[2]), voxel),
        "cropped": view.cropped,
    }


def _provenance(view: View) -> str | None:
    """Return how a restored volume was made from the raw files, or None if not recorded."""
    made = view.volumes["restored"].facts.made
    return made.told() if made else None


def _sentences(config: Config, item: Restoration, truth: str | None, view: View) -> list[str]:
    """Return a few sentences on what was done."""
    model, (depth, _, lateral) = config.models[item.model], view.volumes["input"].voxel_size
    if isinstance(view.grid, ImageStack):
        sentence = (
            f"{item.dataset} ({_count(view.grid.length, 'image')} with pixels of {lateral:.4g} nm) was "
            f"restored by the model {item.model} (task {model.task}), {learned(model)}."
        )
        known = [sentence, *_artefacts(view.volumes["input"].facts)]
        if truth is None:
            return [*known, WITHOUT_TRUTH]
        return [*known, f"All pixels are compared with {truth}{_unseen(item, model)}."]
    first = (
        f"{item.dataset} ({view.grid.slices} slices {depth:.4g} nm apart) was restored to {view.grid.length} "
        f"slices {lateral:.4g} nm apart by the model {item.model} (task {model.task}), {learned(model)}."
    )
    sentences = [first]
    sentences += _artefacts(view.volumes["input"].facts)
    if before := view.volumes["restored"].restoration.real_slices:
        sentences.append(
            f"Its real slices were first restored by the model {before.model} ({before.estimator}); "
            "the gaps were filled, and interpolated, between the restored slices."
        )
    if truth is None:
        return [*sentences, WITHOUT_TRUTH]
    second = (
        f"Generated slices are compared with {truth}{_unseen(item, model)}, and so are interpolated "
        "slices, on the same voxels."
    )
    return [*sentences, second]


def _artefacts(facts: VolumeFacts) -> list[str]:
    """Return a sentence on the structured artefacts of the raw data."""
    if not facts.artefacts:
        return []
    named = "; ".join(artefact.told for artefact in facts.artefacts)
    done = "stripes were removed (`repair: stripes`)" if facts.destriped else "they were not removed"
    return [f"The raw slices have {named} (standard deviations); {done}."]


def learned(model: Model) -> str:
    """Return where the weights of a model come from."""
    if model.weights in SHIPPED:
        return "which is shipped with emdiffuse (its card lists the training data)"
    if model.weights is not None:
        name = Path(model.weights).name
        return f"whose weights were read from {name} (training data unknown)"
    return f"trained on {' and '.join(model.datasets)}"


def _unseen(item: Restoration, model: Model) -> str:
    """Return a clause that the model never saw the ground truth, if that is known."""
    if model.weights is not None:
        return ""
    seen = "whose slices between the kept ones" if item.dataset in model.datasets else "which"
    return f", {seen} the model never saw"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
