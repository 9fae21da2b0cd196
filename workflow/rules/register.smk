# Registers image pairs; checks the alignment of a volume's slices, or aligns them with `method: warp`. Aligned volumes
# are passed on as hard links, not copied. results/registered/{dataset}.quality/ has a figure of every pair.


rule register:
    input:
        "results/acquired/{dataset}.ome.zarr/zarr.json",
    output:
        volume="results/registered/{dataset}.ome.zarr/zarr.json",
        quality="results/registered/{dataset}.quality.json",
        figure=report(
            "results/registered/{dataset}.quality.png",
            caption="../report/register.rst",
            category="Registration",
        ),
    log:
        "logs/register/{dataset}.log",
    benchmark:
        "results/benchmarks/register/{dataset}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=240,
    params:
        settings=alignment_settings,
        state=flow_state,
    shell:
        "emdiffuse --log {log:q} --threads {threads} register {input:q}"
        " {output.volume:q} {output.quality:q} {output.figure:q} --settings {params.settings:q}"
