# Training; what a resume needs lies in experiments/{model}/run, which no rule declares and so nothing deletes.
# The rule runs where Snakemake runs: on a cluster it is a light process that submits the training itself, and follows
# a job that requeues itself, or that an earlier run has submitted.
rule train:
    input:
        patches="results/patches/{model}.zarr/zarr.json",
        begun_from=begun_from,
    output:
        "experiments/{model}/best/model.safetensors",
        "experiments/{model}/best/model.json",
        "experiments/{model}/best/metrics.json",
        "experiments/{model}/best/batch.png",
    log:
        "logs/train/{model}.log",
    benchmark:
        "results/benchmarks/train/{model}.tsv"
    retries: 0  # a job of SLURM requeues itself: never both
    localrule: True
    conda:
        "../envs/emdiffuse.yaml"
    threads: 8  # or all cores of a smaller machine; a small network gains no more
    resources:
        mem_mb=8000,
        runtime=1440,
        launcher="local",
    params:
        settings=model_settings,
        launch=launch_options,
    shell:
        "emdiffuse --log {log} --threads {threads} train results/patches/{wildcards.model}.zarr"
        " {wildcards.model} experiments/{wildcards.model} --settings {params.settings:q} {params.launch}"
