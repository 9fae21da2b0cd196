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
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2

from emdiffuse.atomic import write_atomically
from emdiffuse.config import Config, Restoration, Section
from emdiffuse.geometry import ImageStack
from emdiffuse.report.pictures import COLUMNS, View, open_view, panels, scale_bar, viewer
from emdiffuse.report.text import chart, flatten, table, verdict

BUDGET = 10_000_000
"""Bytes that all pictures together may take; base64 makes them a third larger."""
LABELS = {
    "input": "Input (nearest real slice)",
    "gaussian": "Gaussian",
    "nearest": "Nearest",
    "linear": "Linear interpolation",
    "cubic": "Cubic interpolation",
    "restored": "Restored",
    "truth": "Truth",
    "uncertainty": "Standard deviation of the samples",
}
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
    "heun": ("Karras et al. 2022", "10.48550/arXiv.2206.00364", "the Heun sampler"),
    "ssim": ("Wang et al. 2004", "10.1109/TIP.2003.819861", "SSIM"),
    "fsim": ("Zhang et al. 2011", "10.1109/TIP.2011.2109730", "FSIM"),
    "cubic": ("Keys 1981", "10.1109/TASSP.1981.1163711", "cubic interpolation"),
    "ome": ("Moore et al. 2023", "10.1007/s00418-023-02209-1", "OME-Zarr"),
    "snakemake": ("Mölder et al. 2021", "10.12688/f1000research.29032.2", "Snakemake"),
}


def write_report(config: Config, results: Path, experiments: Path, out: Path) -> None:
    """Write the report.

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
    share = BUDGET // len(config.restorations)
    context = {
        "title": config.report.title,
        "restorations": [
            _restoration(config, item, results, number, share)
            for number, item in enumerate(config.restorations, 1)
        ],
        "alignments": [found for name in _used(config) if (found := _alignment(results, name))],
        "trainings": [found for name in _models(config) if (found := _training(experiments, name))],
        "parameters": _parameters(config),
        "versions": _versions(),
        "references": _references(config),
    }
    loader = jinja2.PackageLoader("emdiffuse", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["label"] = lambda name: LABELS.get(name, name)
    write_atomically(out, environment.get_template("report.html.j2").render(context))


def _restoration(
    config: Config, item: Restoration, results: Path, number: int, budget: int
) -> dict[str, Any]:
    """Gather what is shown of one restoration."""
    truth = config.truth(item)
    view = open_view(config, item, truth, results, budget)
    evaluation = _read_json(results / "evaluation" / item.dataset / f"{item.model}.json")
    images = isinstance(view.grid, ImageStack)
    made = ("input",) if images else ("input", "linear")
    names = [name for name in COLUMNS if name in made or name in view.volumes]
    rows, white = panels(view, names, budget // 2)
    used = sum(len(cell["image"]) for row in rows for cell in row["cells"]) * 3 // 4
    voxel = view.volumes["restored"].voxel_size[2]
    return {
        "number": number,
        "name": item.dataset,
        "model": item.model,
        "sentences": _sentences(config, item, truth, view),
        "estimator": (evaluation or {}).get("estimator") or view.volumes["restored"].facts.get("estimator"),
        "verdict": verdict(evaluation) if evaluation else None,
        "table": table(evaluation) if evaluation else None,
        "evaluation": evaluation,
        "panels": rows,
        "contrast": [f"{value:.4g}" for value in view.contrast],
        "percentiles": config.report.percentiles,
        "reference": view.reference,
        "white": f"{white:.4g}",
        "voxel": f"{voxel:.4g}",
        "viewer": viewer(view, [n for n in names if images or n != "input"], budget - used),
        "images": images,
        "bar": scale_bar(len(view.box[2]), voxel),
        "size": [len(extent) for extent in view.box],
    }


def _sentences(config: Config, item: Restoration, truth: str | None, view: View) -> list[str]:
    """Say in two sentences what was done."""
    model, (depth, _, lateral) = config.models[item.model], view.volumes["input"].voxel_size
    if isinstance(view.grid, ImageStack):
        first = (
            f"{item.dataset}, {view.grid.length} image(s) with pixels of {lateral:.4g} nm, was restored "
            f"by the model {item.model} (task {model.task}), trained on {' and '.join(model.datasets)}."
        )
        if truth is None:
            return [first, WITHOUT_TRUTH]
        return [first, f"All pixels are compared with {truth}, which the model never saw."]
    first = (
        f"{item.dataset}, {view.grid.slices} slices {depth:.4g} nm apart, was restored to {view.grid.length} "
        f"slices {lateral:.4g} nm apart by the model {item.model} (task {model.task}), which was trained on "
        f"{' and '.join(model.datasets)}."
    )
    if truth is None:
        return [first, WITHOUT_TRUTH]
    second = (
        f"Every slice made between two real ones is compared with {truth}, which the model never saw, "
        "beside interpolation of the same slices on the same voxels."
    )
    return [first, second]


def _alignment(results: Path, name: str) -> dict[str, Any] | None:
    """Gather the quality of a dataset's alignment: its conclusion, numbers, and the figure."""
    quality = _read_json(results / "registered" / f"{name}.quality.json")
    if quality is None:
        return None
    figure = results / "registered" / f"{name}.quality.png"
    image = base64.b64encode(figure.read_bytes()).decode() if figure.exists() else None
    skipped = ("dataset", "conclusion", "reason")
    numbers = {key: value for key, value in flatten(quality).items() if value and key not in skipped}
    return {"name": name, "conclusion": quality.get("conclusion"), "numbers": numbers, "image": image}


def _training(experiments: Path, name: str) -> dict[str, Any] | None:
    """Gather how a model was trained: a line of facts, and curves."""
    found = _read_json(experiments / name / "best" / "metrics.json")
    if found is None:
        return None
    facts = [f"{found['steps']} steps"] if "steps" in found else []
    facts += [f"{found['seconds'] / 60:.1f} minutes"] if "seconds" in found else []
    facts += [f"on {found['device']}"] if "device" in found else []
    history = [entry for entry in found.get("history", []) if "step" in entry]
    charts = [
        chart("Training loss", history, {"loss": "training"}),
        chart("Validation PSNR (dB)", history, {"validation_psnr": "model", "plain_psnr": "input or linear"}),
        chart("Validation SSIM", history, {"validation_ssim": "model", "plain_ssim": "input or linear"}),
    ]
    return {"name": name, "facts": ", ".join(facts), "charts": [found for found in charts if found]}


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


def _references(config: Config) -> list[dict[str, str]]:
    """Return the publications that this run rests on."""
    samplers = [item.sampler.name or "dpm++" for item in config.restorations]
    keys = ["emdiffuse", *dict.fromkeys(samplers), "ssim", "fsim", "cubic", "ome", "snakemake"]
    return [dict(zip(("text", "doi", "what"), REFERENCES[key], strict=True)) for key in keys]


def _models(config: Config) -> list[str]:
    return list(dict.fromkeys(item.model for item in config.restorations))


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
