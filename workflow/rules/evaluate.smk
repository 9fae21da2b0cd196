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
        mem_mb=memory(4000),
        runtime=240,
    params:
        beside=beside_options,
        lpips=lpips_option,
    shell:
        "emdiffuse --log {log} --threads {threads} evaluate {input.restored} {input.dataset} {input.truth}"
        " {output.json} {params.beside} {params.lpips}"
