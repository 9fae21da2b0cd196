# A volume restored by a model: planned once, shared by N workers, blended by N workers, finished once.
rule plan:
    input:
        "experiments/{model}/best/model.safetensors",
        "experiments/{model}/best/model.json",
        source=source_volume,
        calibration=calibration_file,
    output:
        "results/restored/{dataset}/{model}/plan.json",
    log:
        "logs/plan/{dataset}-{model}.log",
    benchmark:
        "results/benchmarks/plan/{dataset}-{model}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        source=lambda wildcards, input: folder([input.source]),
        settings=restoration_settings,
        calibration=lambda wildcards, input: " ".join(
            f"--calibration {file}" for file in input.calibration
        ),
    shell:
        "emdiffuse --log {log} plan {params.source}"
        " experiments/{wildcards.model}/best {output} --settings {params.settings:q} {params.calibration}"


rule restore:
    input:
        "results/restored/{dataset}/{model}/plan.json",
    output:
        "results/restored/{dataset}/{model}/restored-{scatteritem}.done",
    log:
        "logs/restore/{dataset}-{model}-{scatteritem}.log",
    benchmark:
        "results/benchmarks/restore/{dataset}-{model}-{scatteritem}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=1440,
    params:
        options=device_options,
    shell:
        "emdiffuse --log {log} --threads {threads} restore {input} --worker {wildcards.scatteritem} --done {output}"
        " {params.options}"


rule stitch:
    input:
        plan="results/restored/{dataset}/{model}/plan.json",
        restored=gather.restore(
            "results/restored/{{dataset}}/{{model}}/restored-{scatteritem}.done"
        ),
    output:
        "results/restored/{dataset}/{model}/stitched-{scatteritem}.done",
    log:
        "logs/stitch/{dataset}-{model}-{scatteritem}.log",
    benchmark:
        "results/benchmarks/stitch/{dataset}-{model}-{scatteritem}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "emdiffuse --log {log} --threads {threads} stitch {input.plan} --worker {wildcards.scatteritem} --done {output}"


rule pyramid:
    input:
        plan="results/restored/{dataset}/{model}/plan.json",
        stitched=gather.stitch(
            "results/restored/{{dataset}}/{{model}}/stitched-{scatteritem}.done"
        ),
    output:
        "results/restored/{dataset}/{model}/restored.ome.zarr/zarr.json",
    log:
        "logs/pyramid/{dataset}-{model}.log",
    benchmark:
        "results/benchmarks/pyramid/{dataset}-{model}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "emdiffuse --log {log} pyramid {input.plan}"
