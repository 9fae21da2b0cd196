# The restored volume against the truth, beside interpolation on the same voxels.
rule evaluate:
    input:
        restored="results/restored/{dataset}/{model}/restored.ome.zarr/zarr.json",
        dataset=source_volume,
        truth=truth_volume,
    output:
        json="results/evaluation/{dataset}/{model}.json",
        table=report(
            "results/evaluation/{dataset}/{model}.csv",
            caption="../report/evaluate.rst",
            category="Evaluation",
        ),
    log:
        "logs/evaluate/{dataset}-{model}.log",
    benchmark:
        "results/benchmarks/evaluate/{dataset}-{model}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        volumes=lambda wildcards, input: folder(input),
    shell:
        "emdiffuse --log {log} evaluate {params.volumes} {output.json}"
