# Evaluates restorations that have a ground truth. Classical methods are measured once for all restorations that
# share input, truth and task, and each restoration separately: adding one reruns nothing.


rule baselines:
    input:
        dataset=baselines_dataset,
        truth=baselines_truth,
    output:
        "results/evaluation/{dataset}/baselines/{baselines}.json",
    log:
        "logs/baselines/{dataset}-{baselines}.log",
    benchmark:
        "results/benchmarks/baselines/{dataset}-{baselines}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime=240,
    params:
        task=baselines_task,
        lpips=lpips_option,
        state=lpips_state,
    shell:
        "emdiffuse --log {log:q} --threads {threads} baselines {input.dataset:q} {input.truth:q} {output:q}"
        " --task {params.task} {params.lpips}"


rule evaluate:
    input:
        restored="results/restored/{dataset}/{model}/restored.ome.zarr/zarr.json",
        dataset=source_volume,
        truth=truth_volume,
        baselines=baselines_file,
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
        lpips=lpips_option,
        state=lpips_state,
    shell:
        "emdiffuse --log {log:q} --threads {threads} evaluate {input.restored:q} {input.dataset:q} {input.truth:q}"
        " {output.json:q} --baselines {input.baselines:q} {params.lpips}"
