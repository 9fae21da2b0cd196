# Which files the rules read: one function an input, in the order of the chain.
from functools import cache

from snakemake.io import contains_wildcard
from snakemake.logging import logger

from emdiffuse.acquisition.layouts import find_pairs
from emdiffuse.config.sources import source_files


@cache
def raw_files_of(name):
    """The files of a dataset; what was found of pairs is listed once, before any work."""
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
    """The files that Snakemake can be told of: it takes braces in a name for a wildcard.

    What changes in the others is noticed all the same, by the `state` among the parameters.
    """
    return [file for file in files if not contains_wildcard(str(file))]


def raw_files(wildcards):
    return plain_names(raw_files_of(wildcards.dataset))


def origin_volume(wildcards):
    return f"results/acquired/{CONFIG.origin(wildcards.dataset)}.ome.zarr/zarr.json"


def training_volumes(wildcards):
    return [registered(name) for name in CONFIG.models[wildcards.model].datasets]


def begun_from(wildcards):
    """The model whose weights a model of the configuration is begun from, if that is one too."""
    begun = CONFIG.models[wildcards.model].training.init_from
    if begun not in CONFIG.models:
        return []
    return multiext(f"experiments/{begun}/best/model", ".json", ".safetensors")


def given_files_of(name):
    """The files of a model that is not trained here."""
    source = model_folder(CONFIG.models[name].weights)
    files = ("model.json", "model.safetensors")
    return [source / file for file in files] if source.is_dir() else [source]


def given_weights(wildcards):
    return plain_names(given_files_of(wildcards.model))


def source_volume(wildcards):
    """What a restoration starts from: the dataset, or its slices as another model restored them."""
    model = restoration(wildcards).real_slices
    if model is None:
        return registered(wildcards.dataset)
    return restored(wildcards.dataset, model)


def truth_volume(wildcards):
    return registered(CONFIG.truth(restoration(wildcards)))


def calibration_file(wildcards):
    """The calibration of a restoration, or nothing."""
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
    """The truth, or the second scan that stands in for it."""
    other = calibrated_on(wildcards)
    return registered(other.second_scan or CONFIG.truth(other))


def baselines_file(wildcards):
    name = CONFIG.baselines(restoration(wildcards))
    return f"results/evaluation/{wildcards.dataset}/baselines/{name}.json"


def measured_beside(wildcards):
    """A restoration that stands beside these baselines; all that do have the same input, truth and task."""
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
    """How well every dataset that is restored or trained on is aligned, in numbers and pictures."""
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
    """Stores whose zarr.json `emdiffuse verify --repair` removed, which nothing else asks for once all is made."""
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
