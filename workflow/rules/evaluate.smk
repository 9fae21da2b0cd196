# The restored volume against the truth, beside classical methods, and other restorations of the same dataset, on the
# same voxels.
rule evaluate:
    input:
        restored="results/restored/{dataset}/{model}/restored.ome.zarr/zarr.json",
        dataset=source_volume,
        truth=truth_volume,
        beside=other_restorations,
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
        volumes=lambda wildcards, input: folder(
            [input.restored, input.dataset, input.truth]
        ),
        options=evaluation_options,
    shell:
        "emdiffuse --log {log} evaluate {params.volumes} {output.json} {params.options}"
