# Raw files to canonical OME-Zarr; a store's zarr.json is written last, and stands for the store.
rule acquire:
    input:
        raw_files,
    output:
        "results/acquired/{dataset}.ome.zarr/zarr.json",
    log:
        "logs/acquire/{dataset}.log",
    benchmark:
        "results/benchmarks/acquire/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(RAW),
    conda:
        "../envs/emdiffuse.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        settings=dataset_settings,
    shell:
        "emdiffuse --log {log} acquire {wildcards.dataset} results/acquired/{wildcards.dataset}.ome.zarr"
        " --settings {params.settings:q} --workers {threads}"


# An anisotropic volume from an isotropic one; the slices left out are the truth.
rule keep_every:
    input:
        origin_of,
    output:
        "results/acquired/{dataset}.ome.zarr/zarr.json",
    log:
        "logs/acquire/{dataset}.log",
    benchmark:
        "results/benchmarks/acquire/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(THINNED),
    conda:
        "../envs/emdiffuse.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        origin=lambda wildcards, input: folder(input),
        factor=kept_factor,
    shell:
        "emdiffuse --log {log} keep-every {params.origin} {params.factor} {wildcards.dataset}"
        " results/acquired/{wildcards.dataset}.ome.zarr --workers {threads}"


# Pairs (degraded and clean), or degraded images, from the slices of a clean volume.
rule degrade:
    input:
        origin_of,
    output:
        "results/acquired/{dataset}.ome.zarr/zarr.json",
    log:
        "logs/acquire/{dataset}.log",
    benchmark:
        "results/benchmarks/acquire/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(DEGRADED),
    conda:
        "../envs/emdiffuse.yaml"
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        origin=lambda wildcards, input: folder(input),
        settings=degradation_settings,
        images=images_option,
    shell:
        "emdiffuse --log {log} degrade {params.origin} {wildcards.dataset}"
        " results/acquired/{wildcards.dataset}.ome.zarr --settings {params.settings:q} {params.images}"
