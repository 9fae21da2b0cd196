"""The settings of every model and restoration, and versions, as text for the report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from emdiffuse.config import Config
from emdiffuse.config.settings import Section

PACKAGES = (
    *("emdiffuse", "torch", "numpy", "scipy", "zarr", "tensorstore", "ome-zarr", "opencv-python-headless"),
    *("imagecodecs", "snakemake"),
)


def parameters(config: Config) -> list[dict[str, Any]]:
    """Return the settings of every model and restoration."""
    sections: list[tuple[str, Section]] = [
        (f"Model {name}", config.models[name]) for name in models_of(config)
    ]
    sections += [(f"Restoration of {item.dataset} by {item.model}", item) for item in config.restorations]
    return [{"name": name, "values": flatten(section.model_dump(mode="json"))} for name, section in sections]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the numbers depend on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def models_of(config: Config) -> list[str]:
    """Return the models that are used, and those they start from."""
    return list(dict.fromkeys(name for item in config.restorations for name in config.lineage(item.model)))


def datasets_of(config: Config) -> list[str]:
    """Return the datasets that are restored or trained on."""
    names = [item.dataset for item in config.restorations]
    return list(dict.fromkeys(names + [name for model in config.models.values() for name in model.datasets]))


def subjects_of(config: Config) -> set[str]:
    """Return the names that a job of this run can be about: datasets, models, and ``dataset-model``."""
    pairs = {f"{item.dataset}-{item.model}" for item in config.restorations}
    pairs |= {f"{item.dataset}-{config.baselines(item)}" for item in config.restorations}
    return pairs | set(config.datasets) | set(config.models)


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level of dotted keys and text; long lists are omitted."""
    if isinstance(values, dict):
        parts = (flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items())
        return {key: text for part in parts for key, text in part.items()}
    if isinstance(values, list):
        return {prefix: ", ".join(map(str, values))} if len(values) <= 8 and not _nested(values) else {}
    if isinstance(values, bool):
        return {prefix: "yes" if values else "no"}
    return {} if values is None else {prefix: f"{values:.4g}" if isinstance(values, float) else str(values)}


def _nested(values: list[Any]) -> bool:
    return any(isinstance(value, dict | list) for value in values)
