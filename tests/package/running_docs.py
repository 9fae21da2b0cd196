"""Run the commands and configurations in the documentation, at toy size.

Conventions
-----------
* ``sh`` blocks are run, line by line, in page order and in one folder per page. `emdiffuse` runs in this
  process, which has imported torch; Snakemake in its own.
* A ``yaml`` or ``tsv`` block with a title is a file; a ``yaml`` block without one is part of a configuration,
  and each of its entries is validated like the program does.
* Toy size: patches, steps and networks of a configuration are reduced, and shipped models replaced by small
  ones with random weights and the same tasks.
* ``console`` blocks show what a test cannot do (install, serve, reach a cluster): only those in `SHOWN`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emdiffuse.config import Dataset, Model, Restoration
from emdiffuse.config.settings import parse

SHOWN = {"pip", "docker", "apptainer", "ssh", "napari", "snakemake", "emdiffuse"}
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its file name (or ""), and its text."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command."""
        return [shlex.split(line, comments=True) for line in self.text.splitlines() if line.strip()]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(*match) for match in FENCE.findall(page.read_text())]


def at_toy_size(text: str, models: Path) -> str:
    """Return a configuration reduced to toy size, with small models."""
    values = yaml.safe_load(text)
    for model in values.get("models", {}).values():
        if model.get("weights") in ("emdiffuse-n", "emdiffuse-r", "vemdiffuse"):
            model["weights"] = str(models / model["weights"])
        if "datasets" not in model:
            continue
        model["patches"] = {"size": 32, "validation": 0.3}
        model["network"] = {"channels": 8, "multipliers": [1, 2], "blocks": 1}
        model["training"] = {
            **model.get("training", {}),
            "steps": 2,
            "batch": 2,
            "warmup": 1,
            "validate_every": 2,
        }
        begun = model["training"].get("init_from")
        if begun in ("emdiffuse-n", "emdiffuse-r", "vemdiffuse"):
            model["training"]["init_from"] = str(models / begun)
    for item in values.get("restorations", []):
        item["sampler"] = {"steps": 2, "samples": 2} if item.get("sampler", {}).get("samples", 1) > 1 else {}
    return yaml.safe_dump(values, sort_keys=False)


def check_part(text: str) -> None:
    """Check each entry of a part of a configuration separately."""
    kinds: dict[str, Any] = {"datasets": Dataset, "models": Model, "restorations": Restoration}
    values = yaml.safe_load(text)
    assert values.keys() <= kinds.keys(), text
    for section, entries in values.items():
        for entry in entries if isinstance(entries, list) else entries.values():
            parse(kinds[section], entry, section)
