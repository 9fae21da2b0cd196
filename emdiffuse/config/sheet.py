"""A sample sheet: many datasets as rows of a table, instead of entries in the configuration.

Conventions
-----------
* The sheet is a table of tab-separated values with a header line. `name` and `source` are required; the
  other columns are keys of a dataset; `z`, `y`, `x` and `unit` are those of its voxel size. An empty cell
  omits its key.
* Paths are relative to the run's folder, like those of the configuration.
* A restoration with the dataset ``"*"`` stands for one per row.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from emdiffuse.runtime.errors import ConfigError

EVERY = "*"
SIZE = ("z", "y", "x", "unit")
COLUMNS = ("name", "source", *SIZE, "images", "invert", "repair", "square_pixels", "truth")
"""Allowed column names; `truth` becomes a key of the restoration of this dataset."""


def expand(values: Any) -> Any:
    """Return a configuration with the rows of its sheet as datasets, and each ``"*"`` expanded.

    Parameters
    ----------
    values : Any
        The values read from YAML; returned unchanged if not a mapping, or without a sheet.

    Raises
    ------
    ConfigError
        If the sheet cannot be read; names the file, line and column.
    """
    if not isinstance(values, dict) or not isinstance(values.get("sheet"), str):
        return values
    path = Path(values["sheet"])
    rows = read_sheet(path)
    datasets = dict(values.get("datasets") or {})
    if twice := sorted(datasets.keys() & rows.keys()):
        raise ConfigError(f"{path}: '{twice[0]}' is also a dataset of the configuration; rename one")
    truths = {name: row.pop("truth") for name, row in rows.items() if "truth" in row}
    restorations: list[Any] = []
    for item in values.get("restorations") or []:
        if isinstance(item, dict) and item.get("dataset") == EVERY:
            for name in rows:
                truth = {"truth": truths[name]} if name in truths else {}
                restorations.append({**item, "dataset": name, **truth})
        else:
            restorations.append(item)
    return {**values, "datasets": {**datasets, **rows}, "restorations": restorations}


def read_sheet(path: Path) -> dict[str, dict[str, Any]]:
    """Return the datasets of a sheet, by name, each in the form of the configuration.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.reader(file, delimiter="\t"))
    except OSError as error:
        raise ConfigError(f"sheet: {path} cannot be read ({error.strerror}); check the path") from None
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(f"{path}: not a table of tab-separated values; export it as TSV") from None
    lines = [(number, [c.strip() for c in cells]) for number, cells in enumerate(table, 1) if any(cells)]
    if not lines:
        raise ConfigError(f"{path}: the sheet is empty; write a header line, and one line per dataset")
    (_, headings), *rows = lines
    for needed in ("name", "source"):
        if needed not in headings:
            raise ConfigError(f"{path}: there is no column '{needed}'; separate the columns by tabs")
    for heading in headings:
        if heading not in COLUMNS:
            raise ConfigError(f"{path}: unknown column '{heading}'; known: {', '.join(COLUMNS)}")
    found: dict[str, dict[str, Any]] = {}
    for number, cells in rows:
        if len(cells) > len(headings):
            raise ConfigError(f"{path}: line {number} has {len(cells)} cells for {len(headings)} columns")
        row = {key: cell for key, cell in zip(headings, cells, strict=False) if cell}
        if "name" not in row or row["name"] in found:
            what = f"a second '{row['name']}'" if "name" in row else "no name"
            raise ConfigError(f"{path}: line {number} has {what}; give each row a unique name")
        found[row["name"]] = _dataset(row)
    return found


def _dataset(row: dict[str, str]) -> dict[str, Any]:
    """Return a row as a dataset of the configuration, whose models check the values."""
    dataset: dict[str, Any] = {key: row[key] for key in ("source", "truth") if key in row}
    for key in ("images", "invert", "repair", "square_pixels"):
        if key in row:
            dataset[key] = yaml.safe_load(row[key])
    if size := {key: row[key] if key == "unit" else yaml.safe_load(row[key]) for key in SIZE if key in row}:
        dataset["voxel_size"] = size
    return dataset
