# The training patches of a model, in one sharded store.


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
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=240,
    params:
        settings=patch_settings,
    shell:
        "emdiffuse --log {log:q} --threads {threads} patches {input:q} --out {output:q}"
        " --settings {params.settings:q}"
