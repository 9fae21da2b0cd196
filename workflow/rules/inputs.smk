# The input files of the rules: one function per input, in pipeline order.
from functools import cache

from snakemake.io import contains_wildcard
from snakemake.logging import logger

from emdiffuse.acquisition.layouts import find_pairs
from emdiffuse.config.sources import source_files


@cache
def raw_files_of(name):
    """Return the files of a dataset; log the pairs found once, before any job starts."""
    dataset = CONFIG.datasets[name]
    try:
        if dataset.pairs is None:
            return source_files(dataset.source)
        folder = Path(dataset.pairs.folder)
        pairs = dataset.pairs
        found = find_pairs(folder, pairs.pattern, pairs.scale, pairs.scans)
    except EmdiffuseError as error:
        stop(f"datasets.{name}: {error}")
    if workflow.is_main_process:
        logger.info(f"datasets.{name}: {found.summary()}")
    return found.files()


if workflow.is_main_process:
    for name in RAW:
        raw_files_of(name)


def plain_names(files):
    """Return the files without braces in their names, which Snakemake would take for wildcards.

    Changes in the others are still noticed, through the `state` parameter.
    """
    return [file for file in files if not contains_wildcard(str(file))]


def raw_files(wildcards):
    return plain_names(raw_files_of(wildcards.dataset))


def origin_volume(wildcards):
    return f"results/acquired/{CONFIG.origin(wildcards.dataset)}.ome.zarr/zarr.json"


def training_volumes(wildcards):
    return [registered(name) for name in CONFIG.models[wildcards.model].datasets]


def begun_from(wildcards):
    """Return the files of the starting model, if it is in the configuration."""
    begun = CONFIG.models[wildcards.model].training.init_from
    if begun not in CONFIG.models:
        return []
    return multiext(f"experiments/{begun}/best/model", ".json", ".safetensors")


def given_files_of(name):
    """Return the files of a model that is not trained here."""
    source = model_folder(CONFIG.models[name].weights)
    files = ("model.json", "model.safetensors")
    return [source / file for file in files] if source.is_dir() else [source]


def given_weights(wildcards):
    return plain_names(given_files_of(wildcards.model))


def source_volume(wildcards):
    """Return the input of a restoration: the dataset, or its slices restored by another model."""
    model = restoration(wildcards).real_slices
    if model is None:
        return registered(wildcards.dataset)
    return restored(wildcards.dataset, model)


def truth_volume(wildcards):
    return registered(CONFIG.truth(restoration(wildcards)))


def calibration_file(wildcards):
    """Return the calibration of a restoration, if it has one."""
    if restoration(wildcards).calibration is None:
        return []
    return f"results/calibration/{wildcards.dataset}/{wildcards.model}.json"


def calibrated_on(wildcards):
    return CONFIG.calibrated_on(restoration(wildcards))


def calibration_restored(wildcards):
    other = calibrated_on(wildcards)
    return restored(other.dataset, other.model)


def calibration_dataset(wildcards):
    return registered(calibrated_on(wildcards).dataset)


def calibration_truth(wildcards):
    """Return the ground truth, or the second scan that replaces it."""
    other = calibrated_on(wildcards)
    return registered(other.second_scan or CONFIG.truth(other))


def baselines_file(wildcards):
    name = CONFIG.baselines(restoration(wildcards))
    return f"results/evaluation/{wildcards.dataset}/baselines/{name}.json"


def measured_beside(wildcards):
    """Return one of the restorations that share these baselines, and thus input, truth and task."""
    return next(
        item
        for item in CONFIG.restorations
        if (item.dataset, CONFIG.baselines(item))
        == (wildcards.dataset, wildcards.baselines)
    )


def baselines_dataset(wildcards):
    return source_volume(measured_beside(wildcards))


def baselines_truth(wildcards):
    return truth_volume(measured_beside(wildcards))


def restored_volumes(wildcards):
    return [restored(item.dataset, item.model) for item in CONFIG.restorations]


def alignments(wildcards):
    """Return the alignment metrics and figures of every dataset restored or trained on."""
    names = [item.dataset for item in CONFIG.restorations]
    names += [name for model in CONFIG.models.values() for name in model.datasets]
    return [
        f"results/registered/{name}.quality.{kind}"
        for name in dict.fromkeys(names)
        for kind in ("json", "png")
    ]


def truths(wildcards):
    names = {CONFIG.truth(item) for item in CONFIG.restorations} - {None}
    return [registered(name) for name in sorted(names)]


def training_histories(wildcards):
    """What the report reads of every model that is trained here."""
    names = dict.fromkeys(item.model for item in CONFIG.restorations)
    return [
        f"experiments/{name}/best/metrics.json" for name in names if name in TRAINED
    ]


def evaluations(wildcards):
    return [
        f"results/evaluation/{item.dataset}/{item.model}.json"
        for item in CONFIG.restorations
        if CONFIG.truth(item) is not None
    ]


def unfinished_stores(wildcards):
    """Return stores whose zarr.json `emdiffuse verify --repair` removed; no other rule requests them."""
    names = [
        f"{stage}/{name}.ome"
        for stage in ("acquired", "registered")
        for name in CONFIG.datasets
    ]
    names += [f"patches/{name}" for name in TRAINED]
    stores = [Path(f"results/{name}.zarr") for name in names]
    return [
        store / "zarr.json"
        for store in stores
        if store.exists() and not (store / "zarr.json").exists()
    ]
