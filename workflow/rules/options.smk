# The parameters of the rules' commands: one function each, in pipeline order.
import shlex

from emdiffuse.config.reading import Reading
from emdiffuse.config.sources import MARKS, parse_source
from emdiffuse.project.workflow import state_of


def acquisition_settings(wildcards):
    """Return the settings of acquisition; alignment belongs to a later stage."""
    keys = {"source", "voxel_size", "slice_thickness", "pairs", "images", "invert"}
    keys |= {"repair", *Reading.model_fields}
    return CONFIG.datasets[wildcards.dataset].canonical(keys)


def raw_state(wildcards):
    """Return the state of the raw files, which detects changes that modification times miss."""
    source = CONFIG.datasets[wildcards.dataset].source
    name = source and parse_source(source)
    # including all chunks of a store, as the rule's input is only the metadata
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
    """Return the alignment settings; degraded pairs are aligned by construction and only checked."""
    dataset = CONFIG.datasets[wildcards.dataset]
    known = {"method": "check"} if dataset.degrade else {}
    return dataset.alignment.model_copy(update=known).canonical()


def flow_state(wildcards):
    """Return the state of the optical flow weights, if they are a file."""
    return state_of([CONFIG.datasets[wildcards.dataset].alignment.weights])


def patch_settings(wildcards):
    """Return the settings of the patch store, which depends on neither network nor training."""
    model = CONFIG.models[wildcards.model]
    keys = {"task", "datasets", "factor", "thickness", "patches"}
    return model.canonical(keys)


def model_settings(wildcards):
    """Return the model's settings, with the folder of its starting model if it has one."""
    model = CONFIG.models[wildcards.model]
    values = model.model_dump(mode="json")
    if model.training.init_from in CONFIG.models:
        values["training"]["init_from"] = f"experiments/{model.training.init_from}/best"
    return json.dumps(values, sort_keys=True)


def begun_state(wildcards):
    """Return the state of the starting model, if it is not in the configuration."""
    begun = CONFIG.models[wildcards.model].training.init_from
    if begun is None or begun in CONFIG.models:
        return ""
    return state_of(
        [model_folder(begun) / "model.json", model_folder(begun) / "model.safetensors"]
    )


def launch_options(wildcards, resources, threads):
    """Return where a training runs; changing only resources or threads reruns nothing."""
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
    """Return the state of the given weights."""
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
    """Return how the network runs; this depends on the device, so the profile sets it."""
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
    """Return the state of the LPIPS weights, if given."""
    weights = CONFIG.lpips
    return state_of([weights]) if weights else ""


def lpips_option(wildcards):
    """Return the LPIPS weights, if given."""
    weights = CONFIG.lpips
    return f"--lpips {shlex.quote(weights)}" if weights else ""


def report_settings(wildcards):
    """Return the whole configuration; a function, as Snakemake takes braces in strings for wildcards."""
    return CONFIG.canonical()
