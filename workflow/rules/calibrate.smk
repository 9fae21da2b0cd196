# How wide the intervals of a restoration must be, found on another dataset that the same model restored.
rule calibrate:
    input:
        unpack(calibration_volumes),
    output:
        "results/calibration/{dataset}/{model}.json",
    log:
        "logs/calibrate/{dataset}-{model}.log",
    benchmark:
        "results/benchmarks/calibrate/{dataset}-{model}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        volumes=lambda wildcards, input: folder(input),
        settings=calibration_settings,
    shell:
        "emdiffuse --log {log} calibrate {params.volumes} {output} --settings {params.settings:q}"
