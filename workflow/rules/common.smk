# The configuration, read once, and functions shared by the rules of several stages.
# Rules refer to a store by its zarr.json and to a model by its model.json: these are written last.
import json
import os
import re
import sys
import time
from pathlib import Path

# With `--sdm conda` the package is installed for the jobs only, so import it from its source here.
SOURCE = (
    Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
    .resolve()
    .parents[1]
)
if (SOURCE / "pyproject.toml").is_file():
    sys.path.append(str(SOURCE))

from emdiffuse import __version__
from emdiffuse.config import validate
from emdiffuse.config.settings import require_unique_keys
from emdiffuse.config.shipped import model_folder
from emdiffuse.project.workflow import mistakes_in, only_one_run
from emdiffuse.runtime.errors import EmdiffuseError

# For envs/emdiffuse.post-deploy.sh, which Snakemake runs from a copy.
os.environ.update(EMDIFFUSE_SOURCE=str(SOURCE), EMDIFFUSE_VERSION=__version__)


def stop(mistake):
    """Exit with the error as one sentence, without Snakemake's traceback."""
    sys.exit(f"error: {mistake}")


try:
    for path in filter(os.path.exists, workflow.configfiles):
        require_unique_keys(Path(path))
    CONFIG = validate(config, "config")
except EmdiffuseError as error:
    stop(error)

STARTED = time.time()
THINNED = [name for name, dataset in CONFIG.datasets.items() if dataset.keep_every]
DEGRADED = [name for name, dataset in CONFIG.datasets.items() if dataset.degrade]
RAW = [name for name, dataset in CONFIG.datasets.items() if not dataset.derived]
IMPORTED = [name for name, model in CONFIG.models.items() if model.weights]
TRAINED = [name for name in CONFIG.models if name not in IMPORTED]


def one_of(names):
    """Return a wildcard constraint that matches exactly these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    dataset=one_of(CONFIG.datasets),
    model=one_of(CONFIG.models),


def memory(mb):
    """Return the memory of a job, which grows by `mb` with each attempt, in case it ran out."""

    def mem_mb(wildcards, attempt):
        return mb * attempt

    return mem_mb


def planned_memory(stage):
    """Return the memory of a worker from the plan, which accounts for tiles, blocks and network."""

    def mem_mb(wildcards, input, attempt):
        return json.loads(Path(input.plan).read_text())["memory_mb"][stage] * attempt

    return mem_mb


def registered(dataset):
    return f"results/registered/{dataset}.ome.zarr/zarr.json"


def restored(dataset, model):
    return f"results/restored/{dataset}/{model}/restored.ome.zarr/zarr.json"


def restoration(wildcards):
    """Return the entry of `restorations` that a job belongs to."""
    return next(
        item
        for item in CONFIG.restorations
        if (item.dataset, item.model) == (wildcards.dataset, wildcards.model)
    )


def wanted():
    """Return the targets of a run: the report, or the models if nothing is restored."""
    if CONFIG.restorations:
        return ["results/report.html"]
    return [f"experiments/{name}/best/model.json" for name in CONFIG.models]
