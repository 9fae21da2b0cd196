# The parameters of the rules' commands: one function each, in the order of the chain.
import shlex

from emdiffuse.config.reading import Reading
from emdiffuse.config.sources import MARKS, parse_source
from emdiffuse.project.workflow import state_of


def acquisition_settings(wildcards):
    """What acquisition depends on; alignment is a later stage's."""
    keys = {"source", "voxel_size", "slice_thickness", "pairs", "images", "invert"}
    keys |= {"repair", *Reading.model_fields}
    return CONFIG.datasets[wildcards.dataset].canonical(keys)


def raw_state(wildcards):
    """Whether raw files may have changed: more than their times tell, so that these do not count."""
    source = CONFIG.datasets[wildcards.dataset].source
    name = source and parse_source(source)
    # of a store with all its chunks, of which the rule names the metadata alone
    stores = [name.place] if name and name.kind in MARKS and not name.remote else []
    return state_of([*raw_files_of(wildcards.dataset), *stores])


def kept_factor(wildcards):
    return CONFIG.datasets[wildcards.dataset].keep_every.factor


def kept_thickness(wildcards):
    return CONFIG.datasets[wildcards.dataset].keep_every.thickness


def degradation_settings(wildcards):
    return CONFIG.datasets[wildcards.dataset].degrade.canonical()


def images_option(wildcards):
    return "--images" if CONFIG.datasets[wildcards.dataset].images else ""


def alignment_settings(wildcards):
    """How a dataset is registered; degraded pairs are aligned as they are made, and are checked alone."""
    dataset = CONFIG.datasets[wildcards.dataset]
    known = {"method": "check"} if dataset.degrade else {}
    return dataset.alignment.model_copy(update=known).canonical()


def flow_state(wildcards):
    """Whether the weights of the optical flow may have changed, where they are a file."""
    return state_of([CONFIG.datasets[wildcards.dataset].alignment.weights])


def patch_settings(wildcards):
    """What the patch store depends on: not the network, nor the training."""
    model = CONFIG.models[wildcards.model]
    keys = {"task", "datasets", "factor", "thickness", "patches"}
    return model.canonical(keys)


def model_settings(wildcards):
    """The model; where it is begun from another one, with that one's folder."""
    model = CONFIG.models[wildcards.model]
    values = model.model_dump(mode="json")
    if model.training.init_from in CONFIG.models:
        values["training"]["init_from"] = f"experiments/{model.training.init_from}/best"
    return json.dumps(values, sort_keys=True)


def begun_state(wildcards):
    """Whether the model that one is begun from may have changed, where it is none of the configuration."""
    begun = CONFIG.models[wildcards.model].training.init_from
    if begun is None or begun in CONFIG.models:
        return ""
    return state_of(
        [model_folder(begun) / "model.json", model_folder(begun) / "model.safetensors"]
    )


def launch_options(wildcards, resources, threads):
    """Where a training runs; a change of resources or threads alone reruns nothing."""
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


def given_state(wildcards):
    """Whether given weights may have changed."""
    return state_of(given_files_of(wildcards.model))


def given_model(wildcards):
    return CONFIG.models[wildcards.model].weights


def task_of(wildcards):
    return CONFIG.models[wildcards.model].task


def restoration_settings(wildcards):
    return restoration(wildcards).canonical()


def calibration_option(wildcards, input):
    return (
        f"--calibration {shlex.quote(input.calibration)}" if input.calibration else ""
    )


def device_options(wildcards, resources):
    """How the network is run: what the device has room for, and what pays on it, so the profile says it."""
    mode = resources.get("compile")
    compiled = f" --compile {mode}" if mode else ""
    precision = resources.get("precision", "auto")
    return f"--batch {resources.get('batch', 'auto')} --precision {precision}{compiled}"


def calibration_settings(wildcards):
    return restoration(wildcards).calibration.canonical()


def second_scan_option(wildcards):
    return "--second-scan" if calibrated_on(wildcards).second_scan else ""


def baselines_task(wildcards):
    return CONFIG.baselines_task(measured_beside(wildcards))


def lpips_state(wildcards):
    """Whether the weights of LPIPS may have changed, where they are given."""
    weights = CONFIG.lpips
    return state_of([weights]) if weights else ""


def lpips_option(wildcards):
    """The weights of LPIPS, where they are given."""
    weights = CONFIG.lpips
    return f"--lpips {shlex.quote(weights)}" if weights else ""


def report_settings(wildcards):
    """All of the configuration, by a function: in a plain text Snakemake would take braces for wildcards."""
    return CONFIG.canonical()
