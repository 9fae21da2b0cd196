"""The whole configuration: reading, validation, and JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import field_validator, model_validator

from emdiffuse.config.datasets import Dataset
from emdiffuse.config.entries import Entries
from emdiffuse.config.lpips import require_lpips
from emdiffuse.config.references import require_model_fits, require_names_differ, require_restoration_fits
from emdiffuse.config.settings import parse
from emdiffuse.config.sheet import expand
from emdiffuse.config.shipped import SHIPPED, model_folder
from emdiffuse.config.sources import parse_source
from emdiffuse.runtime.errors import ConfigError


class Config(Entries):
    """The whole configuration."""

    @field_validator("datasets")
    @classmethod
    def _derived_exist(cls, datasets: dict[str, Dataset]) -> dict[str, Dataset]:
        for name, dataset in datasets.items():
            if dataset.derived is None:
                continue
            key, origin = "keep_every" if dataset.keep_every else "degrade", dataset.derived.dataset
            if origin not in datasets or datasets[origin].source is None:
                raise ValueError(f"{name}.{key}.dataset: there is no raw dataset named '{origin}'")
        return datasets

    @model_validator(mode="after")
    def _references(self) -> Config:
        if not self.datasets:
            raise ValueError("`datasets` is missing: list the datasets, or give a `sheet` of them")
        require_names_differ(self)
        for name in self.models:
            require_model_fits(self, name)
        for index in range(len(self.restorations)):
            require_restoration_fits(self, index)
        return self


def validate(values: Any, where: str = "config") -> Config:
    """Validate a whole configuration, and check that the files it names exist.

    Parameters
    ----------
    values : Any
        The mapping read from YAML.
    where : str
        Name of the file, for the error.

    Raises
    ------
    ConfigError
        One sentence that names the key.
    """
    config = parse(Config, expand(values), where)
    for key, message in _missing_files(config):
        raise ConfigError(f"{where}: {key}: {message}")
    if config.lpips is not None:
        require_lpips(Path(config.lpips), f"{where}: lpips")
    return config


def _missing_files(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the key and the mistake of every path that does not exist."""
    for name, dataset in config.datasets.items():
        source, pairs = dataset.source, dataset.pairs
        if source is not None and not parse_source(source).exists:
            yield f"datasets.{name}.source", f"there is no '{source}'; check the path"
        if pairs is not None and not Path(pairs.folder).is_dir():
            yield f"datasets.{name}.pairs.folder", f"there is no folder '{pairs.folder}'; check the path"
    shipped = ", ".join(SHIPPED)
    for name, model in config.models.items():
        weights, begun = model.weights, model.training.init_from
        if weights is not None and not model_folder(weights).exists():
            yield (
                f"models.{name}.weights",
                f"there is no '{weights}'; give a shipped model ({shipped}), the folder of a model, or a "
                "published checkpoint (.pth)",
            )
        elif weights is not None and (lacking := _lacking(model_folder(weights))):
            yield f"models.{name}.weights", f"'{weights}' is not the folder of a model: it has no {lacking}"
        if not (begun is None or begun in config.models or (model_folder(begun) / "model.json").exists()):
            yield (
                f"models.{name}.training.init_from",
                f"'{begun}' is neither a model of this configuration, nor a shipped one ({shipped}), nor the "
                "folder of one; check the name",
            )


def _lacking(folder: Path) -> str | None:
    """Return the first model file that a folder lacks; None if it is complete, or not a folder."""
    names = ("model.json", "model.safetensors") if folder.is_dir() else ()
    return next((name for name in names if not (folder / name).is_file()), None)


def read_config(path: Path) -> Config:
    """Read a configuration file; its paths are relative to the working directory.

    Raises
    ------
    ConfigError
        If it cannot be read, or is wrong; one sentence.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return validate(values, str(path))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
