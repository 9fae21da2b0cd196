# Reads the configuration once, and answers the rules' questions about it.
import fcntl
import functools
import json
import shlex
import sys
from pathlib import Path

from snakemake.logging import logger

from emdiffuse.acquisition.layouts import find_pairs
from emdiffuse.config import validate
from emdiffuse.runtime.errors import ConfigError, EmdiffuseError
from emdiffuse.readers import source_files

try:
    CONFIG = validate(config, "config")
except ConfigError as error:
    sys.exit(f"error: {error}")

THINNED = [name for name, dataset in CONFIG.datasets.items() if dataset.keep_every]
DEGRADED = [name for name, dataset in CONFIG.datasets.items() if dataset.degrade]
RAW = [name for name, dataset in CONFIG.datasets.items() if not dataset.derived]
IMPORTED = [name for name, model in CONFIG.models.items() if model.weights]
TRAINED = [name for name in CONFIG.models if name not in IMPORTED]


def one_of(names):
    """A wildcard constraint that matches these names alone."""
    return "|".join(names) or "(?!)"


wildcard_constraints:
    dataset=one_of(CONFIG.datasets),
    model=one_of(CONFIG.models),


def only_one_run():
    """Refuse a second run in this folder; unlike Snakemake's own lock, a killed run leaves nothing to unlock."""
    global run_lock
    run_lock = open(".snakemake/emdiffuse.lock", "w")
    try:
        fcntl.flock(run_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            "another run is under way in this folder; wait for it, or stop it"
        )


def raw_files(wildcards):
    pairs = CONFIG.datasets[wildcards.dataset].pairs
    if pairs is None:
        return source_files(CONFIG.datasets[wildcards.dataset].source)
    return files_of_pairs(wildcards.dataset, pairs)


@functools.cache
def files_of_pairs(name, pairs):
    """The images of pairs; what was found is listed once, before any work."""
    try:
        found = find_pairs(Path(pairs.folder), pairs.pattern, pairs.scale)
    except EmdiffuseError as error:
        sys.exit(f"error: {error}")
    if workflow.is_main_process:
        logger.info(f"datasets.{name}: {found.summary()}")
    return found.files()


def dataset_settings(wildcards):
    """What acquisition depends on; the alignment check is a later stage's."""
    dataset = CONFIG.datasets[wildcards.dataset]
    keys = {"source", "voxel_size", "pairs", "images", "invert", "repair"}
    return dataset.model_dump_json(include=keys)


def alignment_settings(wildcards):
    """How a dataset is registered; degraded pairs are aligned as they are made, and are checked alone."""
    dataset = CONFIG.datasets[wildcards.dataset]
    known = {"method": "check"} if dataset.degrade else {}
    return dataset.alignment.model_copy(update=known).canonical()


def origin_of(wildcards):
    return f"results/acquired/{CONFIG.origin(wildcards.dataset)}.ome.zarr/zarr.json"


def kept_factor(wildcards):
    return CONFIG.datasets[wildcards.dataset].keep_every.factor


def degradation_settings(wildcards):
    return CONFIG.datasets[wildcards.dataset].degrade.canonical()


def images_option(wildcards):
    return "--images" if CONFIG.datasets[wildcards.dataset].images else ""


def training_volumes(wildcards):
    names = CONFIG.models[wildcards.model].datasets
    return [f"results/registered/{name}.ome.zarr/zarr.json" for name in names]


def patch_settings(wildcards):
    """What the patch store depends on: not the network, nor the training."""
    model = CONFIG.models[wildcards.model]
    return model.model_dump_json(include={"task", "datasets", "factor", "patches"})


def begun_from(wildcards):
    """The model whose weights a model of the configuration is begun from, if that is one too."""
    begun = CONFIG.models[wildcards.model].training.init_from
    files = ("model.json", "model.safetensors")
    return [
        f"experiments/{begun}/best/{name}" for name in files if begun in CONFIG.models
    ]


def model_settings(wildcards):
    """The model; where it is begun from another one, with that one's folder."""
    model = CONFIG.models[wildcards.model]
    values = model.model_dump(mode="json")
    if model.training.init_from in CONFIG.models:
        values["training"]["init_from"] = f"experiments/{model.training.init_from}/best"
    return json.dumps(values, sort_keys=True)


def given_weights(wildcards):
    """The files of a model that is not trained here."""
    source = Path(CONFIG.models[wildcards.model].weights)
    files = ("model.json", "model.safetensors")
    return [source / name for name in files] if source.is_dir() else source


def launch_options(wildcards, resources, threads):
    """Where a training runs; what follows from resources and threads alone makes nothing run again."""
    gpus = resources.get("gpu", 0)
    if resources.launcher == "local":
        return f"--processes {max(gpus, 1)}"
    asked = {
        "partition": resources.get("slurm_partition"),
        "account": resources.get("slurm_account"),
        "qos": resources.get("qos"),
        "constraint": resources.get("constraint"),
        "nodes": resources.get("nodes", 1),
        "gpus": gpus,
        "gpu_model": resources.get("gpu_model"),
        "extra": resources.get("slurm_extra"),
        "cpus": threads,
        "memory_mb": resources.mem_mb,
        "minutes": resources.runtime,
        "requeues": resources.get("requeues"),
    }
    given = {key: value for key, value in asked.items() if value is not None}
    return (
        f"--launcher {resources.launcher} --resources {shlex.quote(json.dumps(given))}"
    )


def device_options(wildcards, resources):
    """How the network is run: what the device has room for, and what pays on it, so the profile says it."""
    mode = resources.get("compile")
    compiled = f" --compile {mode}" if mode else ""
    return f"--batch {resources.get('batch', 'auto')}{compiled}"


def restoration(wildcards):
    found = [
        item
        for item in CONFIG.restorations
        if (item.dataset, item.model) == (wildcards.dataset, wildcards.model)
    ]
    return found[0]


def source_volume(wildcards):
    """What a restoration starts from: the dataset, or its slices as another model restored them."""
    model = restoration(wildcards).real_slices
    if model is None:
        return f"results/registered/{wildcards.dataset}.ome.zarr/zarr.json"
    return f"results/restored/{wildcards.dataset}/{model}/restored.ome.zarr/zarr.json"


def restoration_settings(wildcards):
    return restoration(wildcards).canonical()


def calibration_settings(wildcards):
    return restoration(wildcards).calibration.canonical()


def calibration_file(wildcards):
    """The calibration of a restoration, or nothing."""
    if restoration(wildcards).calibration is None:
        return []
    return [f"results/calibration/{wildcards.dataset}/{wildcards.model}.json"]


def calibration_volumes(wildcards):
    """What a restoration is calibrated on: another dataset restored, its input, and its truth."""
    other = CONFIG.calibrated_on(restoration(wildcards))
    return {
        "restored": f"results/restored/{other.dataset}/{other.model}/restored.ome.zarr/zarr.json",
        "dataset": f"results/registered/{other.dataset}.ome.zarr/zarr.json",
        "truth": f"results/registered/{CONFIG.truth(other)}.ome.zarr/zarr.json",
    }


def truth_volume(wildcards):
    truth = CONFIG.truth(restoration(wildcards))
    return f"results/registered/{truth}.ome.zarr/zarr.json"


def other_restorations(wildcards):
    """What is measured beside a restoration: those of its dataset by other models, with the same truth."""
    pattern = "results/restored/{0.dataset}/{0.model}/restored.ome.zarr/zarr.json"
    return [pattern.format(item) for item in CONFIG.beside(restoration(wildcards))]


def evaluation_options(wildcards, input):
    """Other restorations, and the weights of LPIPS."""
    options = [f"--beside {store}" for store in folder(input.beside)]
    if CONFIG.evaluation.lpips:
        options.append(f"--lpips {shlex.quote(CONFIG.evaluation.lpips)}")
    return " ".join(options)


def folder(files):
    """The folder of a store whose zarr.json is an input or output."""
    return [str(Path(str(file)).parent) for file in files]


def reported(pattern):
    """A file of every restoration."""
    return [
        pattern.format(dataset=item.dataset, model=item.model)
        for item in CONFIG.restorations
    ]


def training_histories():
    """What the report reads of every model that is trained here."""
    names = dict.fromkeys(item.model for item in CONFIG.restorations)
    return [
        f"experiments/{name}/best/metrics.json" for name in names if name in TRAINED
    ]


def registered(pattern):
    """A file of every dataset that is restored or trained on."""
    names = [item.dataset for item in CONFIG.restorations]
    names += [name for model in CONFIG.models.values() for name in model.datasets]
    return [pattern.format(dataset=name) for name in dict.fromkeys(names)]


def truths():
    names = {CONFIG.truth(item) for item in CONFIG.restorations} - {None}
    return [f"results/registered/{name}.ome.zarr/zarr.json" for name in sorted(names)]


def evaluations():
    return [
        f"results/evaluation/{item.dataset}/{item.model}.json"
        for item in CONFIG.restorations
        if CONFIG.truth(item) is not None
    ]
