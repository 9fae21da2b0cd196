# Training; what a resume needs lies in experiments/{model}/run, which no rule declares and so nothing deletes.
rule train:
    input:
        "results/patches/{model}.zarr/zarr.json",
    output:
        "experiments/{model}/best/model.safetensors",
        "experiments/{model}/best/model.json",
        "experiments/{model}/best/metrics.json",
    params:
        settings=model_settings,
    threads: 2
    log:
        "logs/train/{model}.log",
    conda:
        "../envs/emdiffuse.yaml"
    resources:
        mem_mb=8000,
        runtime=1440,
    shell:
        "emdiffuse --log {log} --threads {threads} train results/patches/{wildcards.model}.zarr"
        " {wildcards.model} experiments/{wildcards.model} --settings {params.settings:q}"
