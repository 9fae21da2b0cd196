# Raw files to canonical OME-Zarr, and datasets that are made from others.
# A name may have spaces and begin with a dash: commands quote it, and `--` says that no options follow.


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
        "emdiffuse --log {log:q} --threads {threads} acquire"
        " --settings {params.settings:q} -- {wildcards.dataset:q} {output:q}"


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
        "emdiffuse --log {log:q} --threads {threads} keep-every"
        " --thickness {params.thickness} -- {input:q} {params.factor} {wildcards.dataset:q} {output:q}"


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
        "emdiffuse --log {log:q} --threads {threads} degrade"
        " --settings {params.settings:q} {params.images} -- {input:q} {wildcards.dataset:q} {output:q}"
