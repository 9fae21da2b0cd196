"""Put a trained model among those that come with the package, in half precision.

    python config/pretrained/ship.py NAME [experiments/NAME/best]
    python config/pretrained/ship.py            # the checksums alone, after a card was edited

Its card, `emdiffuse/models/weights/NAME/README.md`, is written by hand, with the figures of
`benchmarks/shipped_models.py`. The checksums of all shipped files are updated.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from emdiffuse.config.shipped import SHIPPED, SHIPPED_FOLDER
from emdiffuse.models.description import DESCRIPTION_FILE, read_description
from emdiffuse.models.networks.build import load_network
from emdiffuse.models.networks.weights import save_model
from emdiffuse.models.shipped import SUMS

FILES = ("README.md", DESCRIPTION_FILE, "model.safetensors")


def ship(name: str, source: Path) -> None:
    """Copy a model, in half precision."""
    description = read_description(source)
    if description.task != SHIPPED[name]:
        sys.exit(f"{source}: its task is {description.task}, that of {name} is {SHIPPED[name]}")
    sources = tuple(dict.fromkeys(description.sources))  # several datasets may be of one file
    shipped = description.model_copy(update={"name": name, "sources": sources})
    save_model(SHIPPED_FOLDER / name, load_network(source).half(), shipped)


def write_checksums() -> None:
    """Write the checksums of all shipped files."""
    lines = []
    for file in (SHIPPED_FOLDER / shipped / part for shipped in SHIPPED for part in FILES):
        if file.exists():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"{digest}  {file.relative_to(SHIPPED_FOLDER)}\n")
    (SHIPPED_FOLDER / SUMS).write_text("".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 3 or (len(sys.argv) > 1 and sys.argv[1] not in SHIPPED):
        sys.exit(__doc__)
    if len(sys.argv) > 1:
        ship(sys.argv[1], Path(sys.argv[2] if len(sys.argv) == 3 else f"experiments/{sys.argv[1]}/best"))
    write_checksums()
