# Raw files to canonical OME-Zarr, and datasets that are made from others.


rule acquire:
    input:
        ancient(raw_files),
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
    threads: 2  # which every node has: SLURM never starts a job that asks for more; `set-threads` gives more
    resources:
        mem_mb=memory(4000),
        runtime=240,
    params:
        settings=acquisition_settings,
        state=raw_state,
    shell:
        "emdiffuse --log {log} --threads {threads} acquire {wildcards.dataset} {output}"
        " --settings {params.settings:q}"


# An anisotropic volume from an isotropic one; the slices left out are the truth.
rule keep_every:
    input:
        origin_volume,
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
        mem_mb=memory(4000),
        runtime=240,
    params:
        factor=kept_factor,
        thickness=kept_thickness,
    shell:
        "emdiffuse --log {log} --threads {threads} keep-every {input} {params.factor}"
        " {wildcards.dataset} {output} --thickness {params.thickness}"


# Pairs (degraded and clean), or degraded images, from the slices of a clean volume.
rule degrade:
    input:
        origin_volume,
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
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=240,
    params:
        settings=degradation_settings,
        images=images_option,
    shell:
        "emdiffuse --log {log} --threads {threads} degrade {input} {wildcards.dataset} {output}"
        " --settings {params.settings:q} {params.images}"
