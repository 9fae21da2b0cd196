# Restores a volume: one plan, N workers that restore tiles, N that blend them, and one job for the pyramid.


rule plan:
    input:
        model="experiments/{model}/best/model.json",
        weights="experiments/{model}/best/model.safetensors",
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
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        settings=restoration_settings,
        calibration=calibration_option,
    shell:
        "emdiffuse --log {log:q} --threads {threads} plan {input.source:q} {input.model:q} {output:q}"
        " --settings {params.settings:q} {params.calibration}"


rule restore:
    input:
        plan="results/restored/{dataset}/{model}/plan.json",
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
        mem_mb=planned_memory("restore"),
        runtime=1440,
    params:
        options=device_options,
    shell:
        "emdiffuse --log {log:q} --threads {threads} restore {input.plan:q} --worker {wildcards.scatteritem}"
        " --done {output:q} {params.options}"


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
        mem_mb=planned_memory("stitch"),
        runtime=480,
    shell:
        "emdiffuse --log {log:q} --threads {threads} stitch {input.plan:q} --worker {wildcards.scatteritem}"
        " --done {output:q}"


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
    threads: 1
    resources:
        mem_mb=planned_memory("pyramid"),
        runtime=480,
    shell:
        "emdiffuse --log {log:q} --threads {threads} pyramid {input.plan:q}"
