# Calibrates the uncertainty intervals of a restoration on another dataset restored by the same model.


rule calibrate:
    input:
        restored=calibration_restored,
        dataset=calibration_dataset,
        truth=calibration_truth,
    output:
        "results/calibration/{dataset}/{model}.json",
    log:
        "logs/calibrate/{dataset}-{model}.log",
    benchmark:
        "results/benchmarks/calibrate/{dataset}-{model}.tsv"
    conda:
        "../envs/emdiffuse.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        settings=calibration_settings,
        second_scan=second_scan_option,
    shell:
        "emdiffuse --log {log:q} --threads {threads} calibrate {input.restored:q} {input.dataset:q} {input.truth:q}"
        " {output:q} --settings {params.settings:q} {params.second_scan}"
