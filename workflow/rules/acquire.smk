# Raw files to canonical OME-Zarr, and datasets derived from others.
# Names may contain spaces and begin with a dash: commands quote them, and `--` ends the options.


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
    threads: 2  # SLURM never starts a job that requests more than a node has; `set-threads` raises it
    resources:
        mem_mb=memory(4000),
        runtime=240,
    params:
        settings=acquisition_settings,
        state=raw_state,
    shell:
        "emdiffuse --log {log:q} --threads {threads} acquire"
        " --settings {params.settings:q} -- {wildcards.dataset:q} {output:q}"


# An anisotropic volume from an isotropic one; the omitted slices are the ground truth.
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


# Degraded/clean pairs, or degraded images alone, from the slices of a clean volume.
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
