"""The model card, ``README.md`` in the model's folder: use, training data, quality and limits.

Conventions
-----------
* A card contains only what ``model.json`` and ``metrics.json`` record; whoever shares a model adds to it.
* The front matter follows the Hugging Face hub (Mitchell et al. 2019, "Model cards", arXiv 1810.03993).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import Description, evaluations, read_description
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.progress import clock

CARD_FILE = "README.md"
SOURCES_NAMED = 10


def write_card(directory: Path) -> None:
    """Write the card of a trained or imported model into its folder.

    Parameters
    ----------
    directory : Path
        Folder of the model, with ``model.json`` and, if it was trained here, ``metrics.json``.

    Raises
    ------
    ModelError
        If the folder contains no model.
    """
    metrics = directory / "metrics.json"
    trained = json.loads(metrics.read_text()) if metrics.exists() else None
    write_atomically(directory / CARD_FILE, card_text(read_description(directory), trained))


def card_text(description: Description, trained: dict[str, Any] | None) -> str:
    """Return the card as Markdown.

    Parameters
    ----------
    description : Description
        ``model.json``.
    trained : dict, optional
        ``metrics.json``: steps, seconds and the history of the training.
    """
    task = TASKS[description.task]
    name = description.name or description.task
    parts = [
        "---",
        "library_name: emdiffuse",
        "pipeline_tag: image-to-image",
        "tags: [electron-microscopy, image-restoration, diffusion]",
        "---",
        f"# {name}",
        "",
        f"Task `{description.task}`: {task.title}.",
        "",
        *_use(description),
        "",
        "## Learned from",
        "",
        *_sources(description),
        "",
        "## How well it does",
        "",
        *_quality(description, trained),
        "",
        "## Limits",
        "",
        *_limits(description),
        "",
        "The method: Lu et al., Nature Communications 2024, doi 10.1038/s41467-024-49125-z.",
    ]
    return "\n".join(parts) + "\n"


def _use(description: Description) -> list[str]:
    """Return how the model is run."""
    network = description.network.model_dump(exclude={"residual_scale"})
    how = "--factor N " if TASKS[description.task].volumetric else ""
    return [
        f"    emdiffuse enhance INPUT.tif OUTPUT.tif {how}--model FOLDER",
        "",
        f"Network: {', '.join(f'{key} {value}' for key, value in network.items())}. "
        f"A sample takes {evaluations(description.sampler.steps)} ({description.sampler.name}) by default.",
    ]


def _sources(description: Description) -> list[str]:
    """Return the list of training files."""
    sources = description.sources
    listed = [f"* `{source.path}` (sha256 `{source.sha256[:16]}…`)" for source in sources[:SOURCES_NAMED]]
    if len(sources) > SOURCES_NAMED:
        listed.append(f"* and {len(sources) - SOURCES_NAMED} more files, see `model.json`")
    return listed or ["The training files are unknown."]


def _quality(description: Description, trained: dict[str, Any] | None) -> list[str]:
    """Return the validation figures beside their baseline."""
    if trained is None:
        return ["Not measured here: the weights were imported."]
    if "validation_psnr" not in trained["history"][-1]:
        return _quality_without_truth(description, trained)
    entry = max(trained["history"], key=lambda e: e["validation_psnr"])
    plain = "linear interpolation" if TASKS[description.task].volumetric else "the (enlarged) input"
    first, outlook = trained["history"][0], trained.get("outlook")
    started = [first] if first["step"] == 0 else []
    return [
        f"{trained['steps']} steps in {clock(trained['seconds'])} on {trained['device']}. On held-out "
        "patches "
        "of its datasets:",
        "",
        "| | PSNR (dB) | SSIM |",
        "| --- | --- | --- |",
        f"| this model | {entry['validation_psnr']:.2f} | {entry['validation_ssim']:.3f} |",
        *(
            f"| the starting model | {e['validation_psnr']:.2f} | {e['validation_ssim']:.3f} |"
            for e in started
        ),
        f"| {plain} | {entry['plain_psnr']:.2f} | {entry['plain_ssim']:.3f} |",
        *(["", *(f"* {sentence}." for sentence in outlook["sentences"])] if outlook else []),
    ]


def _quality_without_truth(description: Description, trained: dict[str, Any]) -> list[str]:
    """Return the error against noisy pixels, the only available reference."""
    entry = min(trained["history"], key=lambda e: e["validation_loss"])
    hidden, outlook = description.learned_from == "hidden pixels", trained.get("outlook")
    noisy, plain = (
        ("hidden noisy pixels", "the pixels around them") if hidden else ("the second scan", "the first")
    )
    return [
        f"{trained['steps']} steps in {clock(trained['seconds'])} on {trained['device']}. There were no "
        "clean images to compare with. On held-out patches of its datasets, squared error against "
        f"{noisy}, which includes the noise variance (intensities in [-1, 1]):",
        "",
        "| | squared error |",
        "| --- | --- |",
        f"| this model | {entry['validation_loss']:.5f} |",
        f"| {plain} | {entry['plain_loss']:.5f} |",
        *(["", *(f"* {sentence}." for sentence in outlook["sentences"])] if outlook else []),
    ]


def _limits(description: Description) -> list[str]:
    """Return the limits of the model."""
    limits = [
        "* The detail that it adds is typical of such data, not measured: it can be wrong and still look "
        "convincing. Evaluate it on your own data with ground truth (`emdiffuse evaluate`).",
        "* Its figures do not cover other tissue, stains, microscopes or voxel sizes than it learned from.",
    ]
    if description.learned_from:
        limits.append(
            f"* It learned from noisy images alone ({description.learned_from}). It gives the mean of the "
            "possible clean images, and draws no samples: there is no uncertainty."
        )
    if description.network.architecture == "native" and description.network.blind_spot:
        y, x = description.network.blind_spot
        limits.append(
            f"* It assumes that noise is independent beyond {x} pixels along x, the fast scan axis, and {y} "
            "along y. Noise correlated over longer distances remains in its images."
        )
    if TASKS[description.task].volumetric and description.factors:
        limits.append(f"* Anisotropy factors from {min(description.factors)} to {max(description.factors)}.")
    return limits
