"""The report: one self-contained HTML file with pictures, tables, curves and parameters.

Conventions
-----------
* Nothing here changes a number: what is shown was measured by `evaluation`, `registration` and `training`,
  and what they did not write is left out.
* The file needs no network, and refuses to use one (its content security policy). Below 15 MB.
"""

from __future__ import annotations

import base64
import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2

from emdiffuse.config import Config, Model, Restoration, Section
from emdiffuse.evaluation.methods import label
from emdiffuse.report.pictures import COLUMNS, View, open_view, panels, picture_bytes, scale_bar
from emdiffuse.report.reliability import trust_section
from emdiffuse.report.tables import as_csv, field_rows, heading, long_table, short_table, with_others
from emdiffuse.report.text import chart, flatten, surpassing, verdict
from emdiffuse.report.times import stage_times
from emdiffuse.report.viewer import viewer
from emdiffuse.restoration.geometry import ImageStack
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.stores.volume import open_volume

SIZE, LEAST = 14_000_000, 4_000_000
"""Characters that all pictures of the file may take together, and those of the restorations in any case."""
WITHOUT_TRUTH = "There is no truth to compare with: the report shows pictures, but no measures."
PACKAGES = (
    *("emdiffuse", "torch", "numpy", "scipy", "zarr", "tensorstore", "ome-zarr", "opencv-python-headless"),
    *("imagecodecs", "snakemake"),
)
REFERENCES = {
    "emdiffuse": ("Lu et al. 2024, Nature Communications", "10.1038/s41467-024-49125-z", "EMDiffuse"),
    "ddpm": ("Ho et al. 2020", "10.48550/arXiv.2006.11239", "the DDPM sampler"),
    "ddim": ("Song et al. 2021", "10.48550/arXiv.2010.02502", "the DDIM sampler"),
    "dpm++": ("Lu et al. 2022", "10.48550/arXiv.2211.01095", "the DPM-Solver++ sampler"),
    "unipc": ("Zhao et al. 2023", "10.48550/arXiv.2302.04867", "the UniPC sampler"),
    "heun": ("Karras et al. 2022", "10.48550/arXiv.2206.00364", "the Heun sampler"),
    "ssim": ("Wang et al. 2004", "10.1109/TIP.2003.819861", "SSIM"),
    "fsim": ("Zhang et al. 2011", "10.1109/TIP.2011.2109730", "FSIM"),
    "ms_ssim": ("Wang et al. 2003", "10.1109/ACSSC.2003.1292216", "MS-SSIM"),
    "lpips": ("Zhang et al. 2018", "10.48550/arXiv.1801.03924", "LPIPS"),
    "frc_resolution": ("Saxton & Baumeister 1982", "10.1111/j.1365-2818.1982.tb00405.x", "ring correlation"),
    "decorrelation_resolution": (
        "Descloux et al. 2019",
        "10.1038/s41592-019-0515-7",
        "decorrelation analysis",
    ),
    "flow": ("Kroeger et al. 2016", "10.1007/978-3-319-46493-0_29", "optical flow between slices"),
    "nlm": ("Buades et al. 2005", "10.1109/CVPR.2005.38", "non-local means"),
    "bm3d": ("Dabov et al. 2007", "10.1109/TIP.2007.901238", "BM3D"),
    "trust": ("Ilg et al. 2018", "10.1007/978-3-030-01234-2_40", "sparsification"),
    "calibration": ("Bates et al. 2021", "10.1145/3478535", "risk-controlling prediction sets"),
    "raft": ("Teed & Deng 2020", "10.48550/arXiv.2003.12039", "RAFT, optical flow"),
    "cubic": ("Keys 1981", "10.1109/TASSP.1981.1163711", "cubic interpolation"),
    "ome": ("Moore et al. 2023", "10.1007/s00418-023-02209-1", "OME-Zarr"),
    "zarr": ("Zarr developers 2020", "10.5281/zenodo.3773449", "Zarr"),
    "snakemake": ("Mölder et al. 2021", "10.12688/f1000research.29032.2", "Snakemake"),
}


def write_report(config: Config, results: Path, experiments: Path, out: Path) -> None:
    """Write the report, and its numbers as ``.json`` and its tables as ``.csv`` beside it.

    Parameters
    ----------
    config : Config
        The configuration of the run.
    results, experiments : Path
        Folders that the stages wrote to.
    out : Path
        HTML file to write.

    Raises
    ------
    StoreError
        If a restored volume, or one that it is compared with, is missing.
    """
    alignments = [found for name in _used(config) if (found := _alignment(results, name))]
    trainings = {name: _read_json(experiments / name / "best" / "metrics.json") for name in _models(config)}
    trained = [_training(experiments / name, name, found) for name, found in trainings.items() if found]
    embedded = sum(len(found["image"] or "") for found in alignments)
    embedded += sum(len(found["batch"] or "") for found in trained)
    restorations = _restorations(config, results, max(SIZE - embedded, LEAST) * 3 // 4)
    evaluations = [found for item in config.restorations if (found := _evaluation(results, item))]
    seconds = {name: found["seconds"] for name, found in trainings.items() if found and "seconds" in found}
    times = stage_times(results, _subjects(config), seconds)
    numbers = {
        "title": config.report.title,
        "evaluations": evaluations,
        "trainings": {name: found for name, found in trainings.items() if found},
        "times": [{key: value for key, value in row.items() if key != "texts"} for row in times],
        "versions": _versions(),
    }
    context = {
        "title": config.report.title,
        "restorations": restorations,
        "alignments": alignments,
        "trainings": trained,
        "times": times,
        "parameters": _parameters(config),
        "chains": [found["chain"] for found in restorations if found["chain"]],
        "versions": numbers["versions"],
        "references": _references(config, evaluations),
    }
    loader = jinja2.PackageLoader("emdiffuse.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["label"] = label
    environment.filters["heading"] = heading
    write_atomically(out.with_suffix(".json"), json.dumps(numbers, indent=2))
    write_atomically(out.with_suffix(".csv"), as_csv(evaluations))
    write_atomically(out, environment.get_template("report.html.j2").render(context))


def _restorations(config: Config, results: Path, left: int) -> list[dict[str, Any]]:
    """Gather what is shown of every restoration: the small first, what they leave is for the large."""

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
    """Gather what is shown of one restoration, in pictures of at most so many bytes."""
    truth = config.truth(item)
    view = open_view(config, item, truth, results, budget)
    evaluation = _evaluation(results, item)
    if evaluation:
        others = [found for other in config.beside(item) if (found := _evaluation(results, other))]
        evaluation = with_others(evaluation, others)
    images = isinstance(view.grid, ImageStack)
    made = ("input",) if images else ("input", "linear")
    names = [name for name in COLUMNS if name in made or name in view.volumes]
    rows, white = panels(view, names, budget // 4)
    used = sum(picture_bytes(cell["image"]) for row in rows for cell in row["cells"])
    seen = viewer(
        view, config.models[item.model].task, white if "truth" in view.volumes else None, budget - used
    )
    used += sum(picture_bytes(sheet["image"]) for sheet in seen["sheets"].values())
    voxel = view.volumes["restored"].voxel_size[2]
    return {
        "number": number,
        "chain": _chain(item, view),
        "name": item.dataset,
        "model": item.model,
        "sentences": _sentences(config, item, truth, view),
        "estimator": (evaluation or {}).get("estimator") or view.volumes["restored"].restoration.estimator,
        "verdict": verdict(evaluation) if evaluation else None,
        "surpassing": surpassing(evaluation) if evaluation else "",
        "table": short_table(evaluation) if evaluation else None,
        "measures": long_table(evaluation) if evaluation else None,
        "evaluation": evaluation,
        "trust": trust_section(
            evaluation, view.volumes["restored"].restoration.reliability, "image" if images else "slice"
        ),
        "panels": rows,
        "contrast": [f"{value:.4g}" for value in view.contrast],
        "percentiles": config.report.percentiles,
        "reference": view.reference,
        "white": f"{white:.4g}",
        "voxel": f"{voxel:.4g}",
        "viewer": seen,
        "bytes": used,
        "images": images,
        "bar": scale_bar(len(view.box[2]), voxel),
        "cropped": view.cropped,
    }


def _evaluation(results: Path, item: Restoration) -> dict[str, Any] | None:
    return _read_json(results / "evaluation" / item.dataset / f"{item.model}.json")


def _chain(item: Restoration, view: View) -> dict[str, str] | None:
    """Return how a restored volume was made, from the raw files on; None where it does not say."""
    made = view.volumes["restored"].facts.made
    if made is None:
        return None
    return {"name": f"{item.dataset} by {item.model}", "text": made.told()}


def _sentences(config: Config, item: Restoration, truth: str | None, view: View) -> list[str]:
    """Say in a few sentences what was done."""
    model, (depth, _, lateral) = config.models[item.model], view.volumes["input"].voxel_size
    if isinstance(view.grid, ImageStack):
        first = (
            f"{item.dataset}, {_count(view.grid.length, 'image')} with pixels of {lateral:.4g} nm, was "
            f"restored by the model {item.model} (task {model.task}), {_learned(model)}."
        )
        if truth is None:
            return [first, WITHOUT_TRUTH]
        return [first, f"All pixels are compared with {truth}{_unseen(item, model)}."]
    first = (
        f"{item.dataset}, {view.grid.slices} slices {depth:.4g} nm apart, was restored to {view.grid.length} "
        f"slices {lateral:.4g} nm apart by the model {item.model} (task {model.task}), {_learned(model)}."
    )
    sentences = [first]
    if before := view.volumes["restored"].restoration.real_slices:
        sentences.append(
            f"Its real slices were restored first, by the model {before.model} ({before.estimator}); "
            "the gaps are filled, and interpolated, between what that made of them."
        )
    if truth is None:
        return [*sentences, WITHOUT_TRUTH]
    second = (
        f"Every slice made between two real ones is compared with {truth}{_unseen(item, model)}, beside "
        "interpolation of the same slices on the same voxels."
    )
    return [*sentences, second]


def _learned(model: Model) -> str:
    """Say where a model has its weights from."""
    if model.weights is not None:
        name = Path(model.weights).name
        return f"whose weights were read from {name} (what they learned from is not known here)"
    return f"trained on {' and '.join(model.datasets)}"


def _unseen(item: Restoration, model: Model) -> str:
    """Say that a model never saw the truth, where that is known."""
    if model.weights is not None:
        return ""
    seen = "whose slices between the kept ones" if item.dataset in model.datasets else "which"
    return f", {seen} the model never saw"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _alignment(results: Path, name: str) -> dict[str, Any] | None:
    """Gather the quality of a dataset's alignment: its conclusion, numbers, and the figure."""
    quality = _read_json(results / "registered" / f"{name}.quality.json")
    if quality is None:
        return None
    figure = results / "registered" / f"{name}.quality.png"
    image = base64.b64encode(figure.read_bytes()).decode() if figure.exists() else None
    skipped = ("dataset", "conclusion", "reason")
    numbers = {key: value for key, value in flatten(quality).items() if value and key not in skipped}
    found = {"name": name, "conclusion": quality.get("conclusion"), "numbers": numbers, "image": image}
    return {**found, "fields": field_rows(quality.get("fields", []))}


def _training(experiment: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Gather how a model was trained: a line of facts, curves, and a picture of a batch."""
    facts = [f"{found['steps']} steps"] if "steps" in found else []
    facts += [f"{found['seconds'] / 60:.1f} minutes"] if "seconds" in found else []
    facts += [f"on {found['device']}"] if "device" in found else []
    history = [entry for entry in found.get("history", []) if "step" in entry]
    charts = [
        chart("Training loss", history, {"loss": "training"}),
        chart("Validation PSNR (dB)", history, {"validation_psnr": "model", "plain_psnr": "input or linear"}),
        chart("Validation SSIM", history, {"validation_ssim": "model", "plain_ssim": "input or linear"}),
    ]
    return {
        "name": name,
        "facts": ", ".join(facts),
        "charts": [drawn for drawn in charts if drawn],
        "batch": _embedded(experiment / "best" / "batch.png"),
    }


def _embedded(path: Path) -> str | None:
    """Return a PNG as a data URI, or None when there is none."""
    if not path.exists():
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _parameters(config: Config) -> list[dict[str, Any]]:
    """Return the settings of every model and restoration."""
    sections: list[tuple[str, Section]] = [(f"Model {name}", config.models[name]) for name in _models(config)]
    sections += [(f"Restoration of {item.dataset} by {item.model}", item) for item in config.restorations]
    return [{"name": name, "values": flatten(section.model_dump(mode="json"))} for name, section in sections]


def _versions() -> dict[str, str]:
    """Return the versions of Python and of what the numbers depend on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _references(config: Config, evaluations: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the publications that this run rests on."""
    samplers: list[str] = [item.sampler.name for item in config.restorations if item.sampler.name]
    samplers += [key for key in REFERENCES if any(f"({key})" in found["estimator"] for found in evaluations)]
    used = {name for found in evaluations for method in found["methods"].values() for name in _deep(method)}
    used |= {name for found in evaluations for name in [*found["methods"], *found]}
    used |= {"calibration" for item in config.restorations if item.calibration}
    pairs = any(dataset.pairs for dataset in config.datasets.values())
    keys = ["emdiffuse", *samplers, *(key for key in REFERENCES if key in used), *["raft"] * pairs]
    keys = list(dict.fromkeys([*keys, "ome", "zarr", "snakemake"]))
    return [dict(zip(("text", "doi", "what"), REFERENCES[key], strict=True)) for key in keys]


def _deep(method: dict[str, Any]) -> set[str]:
    """Return the measures of a method, in whatever orientation."""
    return {measure for measures in method.values() for measure in measures}


def _subjects(config: Config) -> set[str]:
    """Return what a job of this run can be about."""
    pairs = {f"{item.dataset}-{item.model}" for item in config.restorations}
    pairs |= {f"{item.dataset}-{config.baselines(item)}" for item in config.restorations}
    return pairs | set(config.datasets) | set(config.models)


def _models(config: Config) -> list[str]:
    """Return the models that are used, and those that they are begun from."""
    return list(dict.fromkeys(name for item in config.restorations for name in config.lineage(item.model)))


def _used(config: Config) -> list[str]:
    """Return the datasets that are restored or trained on."""
    names = [item.dataset for item in config.restorations]
    return list(dict.fromkeys(names + [name for model in config.models.values() for name in model.datasets]))


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return what a stage wrote, or None when it did not run."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content
