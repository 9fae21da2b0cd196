# Models: trained here or imported.


# The state for resuming is in experiments/{model}/run, which is no rule's output, so Snakemake never deletes it.
# The rule runs where Snakemake runs: on a cluster it is a light process that submits the training and follows its job,
# which requeues itself and may have been submitted by an earlier run.
rule train:
    input:
        patches="results/patches/{model}.zarr/zarr.json",
        begun_from=begun_from,
    output:
        weights="experiments/{model}/best/model.safetensors",
        model="experiments/{model}/best/model.json",
        metrics="experiments/{model}/best/metrics.json",
        batch="experiments/{model}/best/batch.png",
    log:
        "logs/train/{model}.log",
    benchmark:
        "results/benchmarks/train/{model}.tsv"
    wildcard_constraints:
        model=one_of(TRAINED),
    retries: 0  # the SLURM job requeues itself; never both
    localrule: True
    conda:
        "../envs/emdiffuse.yaml"
    threads: 8  # or all cores of a smaller machine; more do not speed up a small network
    resources:
        mem_mb=8000,
        runtime=1440,
        launcher="local",
    params:
        settings=model_settings,
        state=begun_state,
        launch=launch_options,
    shell:
        "emdiffuse --log {log:q} --threads {threads} train --settings {params.settings:q} {params.launch}"
        " -- {input.patches:q} {wildcards.model:q} experiments/{wildcards.model:q}"


# Imports given weights: a published checkpoint, or a model trained elsewhere.
rule import_weights:
    input:
        ancient(given_weights),
    output:
        weights="experiments/{model}/best/model.safetensors",
        model="experiments/{model}/best/model.json",
    log:
        "logs/import_weights/{model}.log",
    benchmark:
        "results/benchmarks/import_weights/{model}.tsv"
    wildcard_constraints:
        model=one_of(IMPORTED),
    conda:
        "../envs/emdiffuse.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        source=given_model,
        task=task_of,
        state=given_state,
    shell:
        "emdiffuse --log {log:q} --threads {threads} import-weights --task {params.task}"
        " --out experiments/{wildcards.model:q}/best -- {params.source:q}"
