# Training patches of a model, in one sharded store.
rule patches:
    input:
        training_volumes,
    output:
        "results/patches/{model}.zarr/zarr.json",
    log:
        "logs/patches/{model}.log",
    benchmark:
        "results/benchmarks/patches/{model}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        volumes=lambda wildcards, input: folder(input),
        settings=patch_settings,
    shell:
        "emdiffuse --log {log} patches {params.volumes} --out results/patches/{wildcards.model}.zarr"
        " --settings {params.settings:q}"
