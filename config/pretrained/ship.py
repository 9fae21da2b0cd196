"""Add a trained model to those shipped with the package, in half precision.

    python config/pretrained/ship.py NAME [experiments/NAME/best]
    python config/pretrained/ship.py NAME FIRST LAST   # the mean of the weights of two rounds of one training
    python config/pretrained/ship.py            # only the checksums, after editing a card

Its card, `emdiffuse/models/weights/NAME/README.md`, is written by hand, with the figures from
`benchmarks/shipped_models.py`. The checksums of all shipped files are updated.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from emdiffuse.config.shipped import SHIPPED, SHIPPED_FOLDER
from emdiffuse.models.description import DESCRIPTION_FILE, read_description
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.networks.weights import save_model
from emdiffuse.models.shipped import SUMS

FILES = ("README.md", DESCRIPTION_FILE, "model.safetensors")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=SHIPPED, help="Without it, only checksums are written.")
    parser.add_argument("rounds", type=Path, nargs="*", help="Folders of models; experiments/NAME/best.")
    options = parser.parse_args()
    if options.name:
        ship(options.name, *(options.rounds or [Path("experiments", options.name, "best")]))
    write_checksums()


def ship(name: str, *rounds: Path) -> None:
    """Copy a model in half precision; average the weights of several rounds (arXiv 2203.05482)."""
    source = rounds[-1]
    description = read_description(source)
    if description.task != SHIPPED[name]:
        sys.exit(f"{source}: its task is {description.task}, but {name} needs {SHIPPED[name]}")
    sources = tuple(dict.fromkeys(description.sources))  # several datasets may share one file
    shipped = description.model_copy(update={"name": name, "sources": sources})
    network = load_network(source)
    weights = [load_network(folder).state_dict() for folder in rounds]
    network.load_state_dict({key: sum(each[key] for each in weights) / len(weights) for key in weights[0]})
    save_model(SHIPPED_FOLDER / name, network.half(), shipped)


def write_checksums() -> None:
    """Write the checksums of all shipped files."""
    lines = []
    for file in (SHIPPED_FOLDER / shipped / part for shipped in SHIPPED for part in FILES):
        if file.exists():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"{digest}  {file.relative_to(SHIPPED_FOLDER)}\n")
    (SHIPPED_FOLDER / SUMS).write_text("".join(lines))


if __name__ == "__main__":
    main()
